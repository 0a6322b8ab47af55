import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch

pytest.importorskip("tianshou", reason="the extra tianshou is not installed")

from tianshou.algorithm.algorithm_base import Policy
from tianshou.data import AsyncCollector, Batch, Collector, ReplayBuffer, VectorReplayBuffer
from tianshou.env import DummyVectorEnv, SubprocVectorEnv, VectorEnvNormObs

from aaren_rl.agents import DecisionAgent
from aaren_rl.agents.tianshou import AgentPolicy, buffer_of, trajectories_of
from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.spaces import Box, space_of
from aaren_rl.data.trajectories import Episode, Trajectories
from aaren_rl.envs.evaluation import Protocol, evaluate
from aaren_rl.errors import DataError, InvalidInput
from aaren_rl.model import DecisionModel, ModelConfig, Scaling

SPEC = EnvironmentSpec("Pendulum-v1", max_episode_steps=30)


def make_agent(mixer="aaren", acting="stream"):
    """Its model counts the return-to-go down, so wrong rewards or states would show."""
    spaces = Box.unbounded((3,)), Box.bounded([-2.0], [2.0])
    scaling = dataclasses.replace(Scaling.identity(spaces[0]), return_scale=100.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DecisionModel(ModelConfig(blocks=1, width=16, mixer=mixer), *spaces, scaling)
    return DecisionAgent(model, AgentCard(SPEC, "some data", "arrays", (-80.0,), 0, acting))


class Seeded(gym.Wrapper):
    """Begins with a seed each time that it is asked without one for the first time."""

    def __init__(self, env, seed):
        super().__init__(env)
        self.seed = seed

    def reset(self, **options):
        seed, self.seed = self.seed, None
        return self.env.reset(seed=seed)


def environments(count):
    return DummyVectorEnv(
        [lambda seed=seed: Seeded(gym.make("Pendulum-v1", max_episode_steps=30), 7 + seed) for seed in range(count)]
    )


def collector_of(policy, rows, **options):
    options = {"on_step_hook": policy.observe_rewards, **options}
    return Collector(policy, environments(rows), VectorReplayBuffer(1000 * rows, rows), **options)


@pytest.mark.parametrize(("mixer", "acting"), [("aaren", "stream"), ("softmax", "stream"), ("aaren", "window:5")])
def test_collector_gives_the_returns_of_ours(mixer, acting):
    """Of six episodes in three environments, and of five, where one environment is taken out of the batch."""
    agent = make_agent(mixer, acting)
    expected = evaluate(agent, Protocol(SPEC, 6, 7, -80.0, None, instances=3)).returns
    assert len(np.unique(expected)) == 6
    for episodes in (6, 5):
        collector = collector_of(AgentPolicy(agent), 3)
        collector.reset()
        found = collector.collect(n_episode=episodes).returns
        # Tianshou chooses itself which environment plays one episode less.
        same = np.isclose(found[:, None], expected, rtol=1e-5)
        assert same.any(1).all()
        assert same.any(0).sum() == episodes


def test_the_target_return_is_the_policys():
    agent = make_agent()
    returns = {}
    for target in (-80.0, -20.0, None):
        collector = collector_of(AgentPolicy(agent, target), 2)
        agent.reset(-50.0)
        collector.reset()
        returns[target] = collector.collect(n_episode=2).returns
    np.testing.assert_array_equal(returns[None], returns[-80.0])
    assert not np.isclose(returns[-20.0], returns[-80.0]).any()
    with pytest.raises(InvalidInput, match="target_return is auto, and this agent does not predict"):
        AgentPolicy(agent, "auto")


def test_wrappers_of_tianshous_environments_are_noticed():
    agent = make_agent()
    agent.check_environment(environments(2))
    with pytest.raises(InvalidInput, match="wrapped in VectorEnvNormObs.*take VectorEnvNormObs off"):
        agent.check_environment(VectorEnvNormObs(environments(2)))
    with pytest.raises(InvalidInput, match="wrapped in NormalizeReward"):
        agent.check_environment(DummyVectorEnv([lambda: gym.wrappers.NormalizeReward(gym.make("Pendulum-v1"))] * 2))
    with pytest.raises(InvalidInput, match="take RescaleAction off"):
        agent.check_environment(
            DummyVectorEnv(
                [lambda: gym.wrappers.RescaleAction(gym.make("Pendulum-v1"), np.float32([-5]), np.float32([5]))]
            )
        )
    with pytest.raises(InvalidInput, match="observations"):
        agent.check_environment(DummyVectorEnv([lambda: gym.make("CartPole-v1")]))
    processes = SubprocVectorEnv([lambda: gym.make("Pendulum-v1")])
    with pytest.raises(InvalidInput, match="wrapped in VectorEnvNormObs"):
        agent.check_environment(VectorEnvNormObs(processes))
    agent.check_environment(processes)
    processes.close()


def test_collecting_goes_on_where_it_ended():
    agent = make_agent()
    collector, whole = collector_of(AgentPolicy(agent), 2), collector_of(AgentPolicy(make_agent()), 2)
    for one, pieces in ((collector, [14, 26, 80]), (whole, [120])):
        one.reset()
        for steps in pieces:
            one.collect(n_step=steps)
    for name in ("obs", "act", "rew"):
        np.testing.assert_allclose(collector.buffer[:][name], whole.buffer[:][name], rtol=1e-5)


def test_rewards_and_other_collectors_are_missed():
    policy = AgentPolicy(make_agent())
    collector = collector_of(policy, 2, on_step_hook=None)
    collector.reset()
    with pytest.raises(InvalidInput, match="on_step_hook=policy.observe_rewards"):
        collector.collect(n_step=4)
    first, second = collector_of(policy, 2), collector_of(policy, 2)
    for one in (first, second):
        one.reset()
        one.collect(n_step=4)
    with pytest.raises(InvalidInput, match="another collector acted with this policy"):
        first.collect(n_step=4)


def test_collectors_that_call_no_hook_are_named():
    spaces = Box.unbounded((4,)), space_of(gym.spaces.Discrete(2))
    model = DecisionModel(ModelConfig(blocks=1, width=16), *spaces, Scaling.identity(spaces[0]))
    policy = AgentPolicy(DecisionAgent(model, AgentCard(None, "some data", "arrays", (20.0,))))
    envs = DummyVectorEnv([lambda: gym.make("CartPole-v1")] * 2)
    collector = AsyncCollector(policy, envs, VectorReplayBuffer(100, 2))
    collector.reset()
    with pytest.raises(InvalidInput, match="an AsyncCollector takes no hook"):
        collector.collect(n_step=8)


class Scaled(Policy):
    """Always half of the greatest action, as a policy between -1 and 1."""

    def __init__(self, bound="clip"):
        spaces = gym.spaces.Box(-2, 2, (1,)), gym.spaces.Box(-10, 10, (3,))
        super().__init__(*spaces, action_scaling=True, action_bound_method=bound)

    def forward(self, batch, state=None, **options):
        return Batch(act=np.full((len(batch), 1), 0.5, np.float32))


@pytest.mark.parametrize("keeps_next", [True, False])
@pytest.mark.parametrize("rows", [1, 2])
def test_buffers_become_the_episodes_that_they_were(keeps_next, rows):
    buffer = VectorReplayBuffer(200 * rows, rows, ignore_obs_next=not keeps_next, stack_num=2)
    policy = Scaled()
    collector = Collector(policy, environments(rows), buffer)
    collector.reset()
    collector.collect(n_step=70 * rows)
    found = trajectories_of(buffer, policy)
    assert found.lengths.tolist() == [30, 30, 10] * rows
    assert not found.terminated.any()
    steps = np.concatenate([np.arange(70) + 200 * row for row in range(rows)])
    np.testing.assert_allclose(found.observations, buffer.obs[steps], rtol=1e-6)
    np.testing.assert_allclose(found.rewards, buffer.rew[steps], rtol=1e-6)
    np.testing.assert_array_equal(found.actions, np.full((70 * rows, 1), 1.0))
    np.testing.assert_array_equal(trajectories_of(buffer, None).actions, np.full((70 * rows, 1), 0.5))
    if keeps_next:
        ends = found.offsets[1:] - 1
        np.testing.assert_allclose(found.final_observations, buffer.obs_next[steps][ends], rtol=1e-6)
    else:
        assert found.final_observations is None


def test_unused_parts_and_single_steps_of_a_buffer_are_read():
    buffer = VectorReplayBuffer(20, 2)
    assert len(buffer.buffers) == 2
    collector = Collector(Scaled(), environments(1), buffer)
    collector.reset()
    collector.collect(n_step=1)
    assert trajectories_of(buffer, None).lengths.tolist() == [1]
    collector.collect(n_step=4)
    found = trajectories_of(buffer, None, gym.spaces.Box(-9, 9, (3,)), gym.spaces.Box(-2, 2, (1,)))
    assert found.lengths.tolist() == [5]
    np.testing.assert_allclose(found.observations, buffer.obs[:5], rtol=1e-6)
    assert [space.low[0] for space in (found.observation_space, found.action_space)] == [-9, -2]
    with pytest.raises(DataError, match="no episode with its start"):
        trajectories_of(VectorReplayBuffer(20, 2), None)


def test_an_overwritten_start_is_left_out_with_a_warning():
    buffer = ReplayBuffer(70)
    collector = Collector(Scaled(), environments(1), buffer)
    collector.reset()
    collector.collect(n_step=100)
    with pytest.warns(RuntimeWarning, match="30 steps were left out: the buffer is full"):
        found = trajectories_of(buffer, None)
    assert found.lengths.tolist() == [30, 10]
    small = ReplayBuffer(20)
    collector = Collector(Scaled(), environments(1), small)
    collector.reset()
    collector.collect(n_step=25)
    with pytest.warns(RuntimeWarning, match="20 steps"), pytest.raises(DataError, match="no episode with its start"):
        trajectories_of(small, None)


def test_steps_that_do_not_follow_each_other_are_refused():
    buffer = VectorReplayBuffer(200, 2)
    collector = Collector(Scaled(), environments(2), buffer)
    collector.reset()
    collector.collect(n_step=20)
    collector.reset_env()
    collector.collect(n_step=20)
    with pytest.raises(DataError, match="step 10 of an environment does not follow the one before"):
        trajectories_of(buffer, None)


def data_of(kind):
    rng = np.random.default_rng(0)
    made = []
    for number, length in enumerate([4, 2, 5]):
        numbers = rng.normal(size=(length + 1, 3))
        pixels = rng.integers(0, 256, (length + 1, 8, 8, 3), dtype=np.uint8)
        observations = {"parts": {"a": numbers, "pixels": pixels}, "images": pixels}.get(kind, numbers)
        choices = kind in ("choices", "images")
        actions = rng.integers(0, 3, length) if choices else rng.uniform(-1, 1, (length, 1))
        made.append(Episode(observations, actions, rng.normal(size=length), terminated=number != 1))
    return Trajectories.from_episodes(made)


@pytest.mark.parametrize("kind", ["vectors", "choices", "images", "parts"])
def test_trajectories_come_back_from_buffers(kind):
    expected = data_of(kind)
    buffer = buffer_of(expected, None)
    assert len(buffer) == 11
    found = trajectories_of(buffer, None)
    assert found.action_space == expected.action_space
    for name in ("observations", "actions", "rewards", "offsets", "terminated", "final_observations"):
        np.testing.assert_equal(getattr(found, name), getattr(expected, name))


def test_a_policy_finds_its_own_actions_in_a_buffer():
    expected, policy = data_of("vectors"), Scaled()
    buffer = buffer_of(expected, policy)
    np.testing.assert_allclose(buffer[:].act, expected.actions / 2, atol=1e-6)
    np.testing.assert_allclose(trajectories_of(buffer, policy).actions, expected.actions, atol=1e-6)
    again = Trajectories.from_episodes([Episode(np.zeros((3, 3)), np.array([[2.0], [0.0]]), np.ones(2))])
    with pytest.raises(DataError, match="actions at their bounds are infinite before the policy's tanh"):
        buffer_of(again, Scaled("tanh"))
    without = Trajectories.from_episodes([Episode(np.zeros((2, 3)), np.zeros((2, 1)), np.ones(2))])
    with pytest.raises(DataError, match="no observations after the last actions"):
        buffer_of(without, None)


def test_a_buffer_filled_at_once_is_whole():
    steps = buffer_of(data_of("vectors"), None)[:]
    keys = ("obs", "act", "rew", "terminated", "truncated", "done", "obs_next")
    found = trajectories_of(ReplayBuffer.from_data(**{key: steps[key] for key in keys}), None)
    assert found.lengths.tolist() == [4, 2, 5]
