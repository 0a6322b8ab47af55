import gymnasium as gym
import numpy as np
import pytest

from aaren_rl.envs.catalogue import catalogue
from aaren_rl.envs.experts import EXPERTS, find
from aaren_rl.envs.experts.expert import Noisy
from aaren_rl.errors import InvalidInput


@pytest.fixture
def cartpole():
    env = gym.make("CartPole-v1")
    yield env
    env.close()


def actions_of(policy, observations):
    taken, actions = None, []
    policy.reset(observations[0], {})
    for observation in observations:
        taken = policy.act(observation, {}, taken)
        actions.append(taken)
    return np.array(actions)


def test_names_are_found_and_near_ones_are_named():
    assert all(find(name).name == name for name in EXPERTS)
    with pytest.raises(InvalidInput, match="cartpole"):
        find("cart-pole")


def test_experts_of_the_catalogue_exist_and_take_their_arguments():
    entries = [entry for entry in catalogue().values() if entry.expert is not None]
    assert len(entries) > 250
    for entry in entries:
        assert set(entry.expert_arguments) <= set(find(entry.expert).arguments), entry.name


def test_environment_of_another_class_is_refused(cartpole):
    with pytest.raises(InvalidInput, match=r"the expert pendulum does not play CartPole-v1, .*pendulum\.PendulumEnv"):
        find("pendulum").policy(cartpole, 0)


def test_arguments_are_checked_by_name(cartpole):
    with pytest.raises(InvalidInput, match="cartpole has no argument speed; expected mixture, noise"):
        find("cartpole").policy(cartpole, 0, speed=3)
    with pytest.raises(InvalidInput, match="mixture is 'bad'; expected good, poor, random, mixed"):
        find("cartpole").policy(cartpole, 0, mixture="bad")


@pytest.mark.parametrize("noise", [-0.1, 1.5, "0.1", True])
def test_noise_is_a_share(cartpole, noise):
    with pytest.raises(InvalidInput, match="expected a number from 0 to 1"):
        find("cartpole").policy(cartpole, 0, noise=noise)


def test_choices_follow_the_seed(cartpole):
    still = np.zeros((200, 4))
    one, same, other = (actions_of(find("random").policy(cartpole, seed), still) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


class Constant:
    def __init__(self, action):
        self.action = action

    def reset(self, observation, info):
        pass

    def act(self, observation, info, taken):
        return self.action


def test_discrete_noise_draws_its_share_at_random():
    noisy = Noisy(Constant(2), gym.spaces.Discrete(5), 0.5, np.random.default_rng(0))
    actions = actions_of(noisy, np.zeros((10_000, 1)))
    # A fifth of the drawn actions is the policy's own.
    assert (actions == 2).mean() == pytest.approx(0.6, abs=0.02)
    assert [(actions == other).mean() for other in (0, 1, 3, 4)] == pytest.approx([0.1] * 4, abs=0.02)


def test_box_noise_has_its_deviation_and_stays_within():
    space = gym.spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, 10.0]), dtype=np.float32)
    noisy = Noisy(Constant(np.array([0.0, 5.0])), space, 0.1, np.random.default_rng(0))
    actions = actions_of(noisy, np.zeros((10_000, 1)))
    np.testing.assert_allclose(actions.mean(0), [0, 5], atol=0.03)
    np.testing.assert_allclose(actions.std(0), [0.1, 0.5], rtol=0.03)
    wild = actions_of(Noisy(Constant(np.array([0.0, 5.0])), space, 1.0, np.random.default_rng(0)), np.zeros((100, 1)))
    assert all(space.contains(action) for action in wild)


def test_noise_needs_bounds():
    space = gym.spaces.Box(-np.inf, np.inf, (2,))
    with pytest.raises(InvalidInput, match="take no noise"):
        Noisy(Constant(None), space, 0.1, np.random.default_rng(0))


def test_policy_hears_what_noise_made_of_its_action(cartpole):
    heard = []

    class Listening(Constant):
        def act(self, observation, info, taken):
            heard.append(taken)
            return self.action

    noisy = Noisy(Listening(0), cartpole.action_space, 1.0, np.random.default_rng(0))
    actions = actions_of(noisy, np.zeros((50, 1)))
    assert heard[0] is None
    assert heard[1:] == actions[:-1].tolist()
    assert set(heard[1:]) == {0, 1}
