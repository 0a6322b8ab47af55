import multiprocessing

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import assert_close

pytest.importorskip("torchrl", reason="the extra torchrl is not installed")

from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.envs import Compose, GymEnv, InitTracker, SerialEnv, StepCounter, TransformedEnv
from torchrl.modules import set_recurrent_mode

from aaren_rl.agents.torchrl import CoreModule, trajectories_of
from aaren_rl.core import RecurrentCore
from aaren_rl.errors import DataError, InvalidInput

# TorchRL makes "spawn" the start method of all processes when it is imported, which other tests would meet.
multiprocessing.set_start_method(None, force=True)


def make_core(mixer="gated-aaren", size=3):
    torch.manual_seed(0)
    return CoreModule(RecurrentCore(size, 16, mixer=mixer, blocks=2))


def policy_of(core):
    head = torch.nn.Sequential(torch.nn.Linear(16, 1), torch.nn.Tanh())
    return TensorDictSequential(core, TensorDictModule(head, in_keys=["features"], out_keys=["action"]))


def pendulum(core, steps=12):
    return TransformedEnv(
        GymEnv("Pendulum-v1"), Compose(InitTracker(), StepCounter(steps), core.make_tensordict_primer())
    )


@pytest.mark.parametrize("mixer", ["aaren", "gated-aaren", "lstm", "local:3"])
def test_sequences_give_what_steps_gave(mixer):
    core = make_core(mixer)
    with torch.no_grad():
        steps = pendulum(core).rollout(40, policy_of(core), break_when_any_done=False)
    assert steps["is_init"].sum() == 4
    # From the middle of an episode, over the ends of two.
    later = steps[17:].clone()
    expected = later.pop("features")
    with torch.no_grad(), set_recurrent_mode(True):
        core(later)
    assert_close("features", later["features"], expected, atol=2e-5, rtol=1e-4)
    assert_close("state", later["next", "core_state"][-1], steps["next", "core_state"][-1], atol=2e-5, rtol=1e-4)


def test_environments_side_by_side():
    core = make_core()
    env = SerialEnv(2, lambda: pendulum(core))
    with torch.no_grad():
        steps = env.rollout(20, policy_of(core), break_when_any_done=False)
        again = steps.clone()
        again.pop("features")
        with set_recurrent_mode(True):
            core(again)
    assert steps.shape == (2, 20)
    assert_close("features", again["features"], steps["features"], atol=2e-5, rtol=1e-4)


def test_gradients_reach_the_core():
    core = make_core()
    steps = pendulum(core).rollout(10, policy_of(core)).detach()
    with set_recurrent_mode(True):
        loss = policy_of(core)(steps)["action"].square().mean()
    loss.backward()
    still = [name for name, weight in core.named_parameters() if weight.grad is None or not weight.grad.abs().sum()]
    assert not [name for name in still if "key.bias" not in name]


def test_what_does_not_fit_is_refused():
    with pytest.raises(InvalidInput, match="state grows with every step"):
        make_core("softmax")
    core = make_core()
    with set_recurrent_mode(True), pytest.raises(InvalidInput, match="the tensordict has no batch"):
        core(TensorDict({"observation": torch.zeros(3), "is_init": torch.ones(1, dtype=torch.bool)}))


@pytest.mark.parametrize("through_buffer", [False, True])
def test_steps_become_the_episodes_that_they_were(through_buffer):
    env = TransformedEnv(GymEnv("Pendulum-v1"), StepCounter(7))
    env.set_seed(0)
    steps = env.rollout(18, break_when_any_done=False)
    if through_buffer:
        buffer = ReplayBuffer(storage=LazyTensorStorage(18))
        buffer.extend(steps)
        found = trajectories_of(buffer[:])
    else:
        found = trajectories_of(steps)
    assert found.lengths.tolist() == [7, 7, 4]
    assert not found.terminated.any()
    np.testing.assert_allclose(found.observations, steps["observation"], rtol=1e-6)
    np.testing.assert_allclose(found.actions, steps["action"], rtol=1e-6)
    np.testing.assert_allclose(found.rewards, steps["next", "reward"].flatten(), rtol=1e-6)
    np.testing.assert_allclose(found.final_observations, steps["next", "observation"][[6, 13, 17]], rtol=1e-6)


@pytest.mark.parametrize("categorical", [False, True])
def test_one_hot_actions_become_choices(categorical):
    env = GymEnv("CartPole-v1", categorical_action_encoding=categorical)
    env.set_seed(0)
    steps = env.rollout(60, break_when_any_done=False)
    found = trajectories_of(steps)
    chosen = steps["action"] if categorical else steps["action"].long().argmax(-1)
    np.testing.assert_array_equal(found.actions.flatten(), chosen.flatten())
    ended = steps["next", "terminated"].flatten()
    assert found.terminated.sum() == ended.sum() > 0
    assert trajectories_of(steps, gym.spaces.Box(-50, 50, (4,))).observation_space.low[0] == -50


def test_steps_that_do_not_follow_each_other_are_refused():
    env = SerialEnv(2, lambda: TransformedEnv(GymEnv("Pendulum-v1"), StepCounter(7)))
    steps = env.rollout(10, break_when_any_done=False)
    assert trajectories_of(steps).lengths.tolist() == [7, 3, 7, 3]
    with pytest.raises(DataError, match=r"step 10 does not follow the one before.*\(environments, time\)"):
        trajectories_of(steps.reshape(-1))
    buffer = ReplayBuffer(storage=LazyTensorStorage(12))
    buffer.extend(steps[0])
    buffer.extend(steps[0])
    with pytest.raises(DataError, match="a replay buffer before it has begun to overwrite"):
        trajectories_of(buffer[:])


def test_steps_from_the_middle_of_an_episode_are_refused():
    steps = TransformedEnv(GymEnv("Pendulum-v1"), Compose(InitTracker(), StepCounter(7))).rollout(7)
    with pytest.raises(DataError, match="the steps begin within an episode"):
        trajectories_of(steps[3:])


def steps_with(actions):
    count = len(actions)
    seen = torch.arange(count + 1.0).unsqueeze(-1)
    ends = torch.zeros(count, 1, dtype=torch.bool)
    ends[-1] = True
    after = {"observation": seen[1:], "reward": torch.ones(count, 1), "terminated": ends}
    return TensorDict({"observation": seen[:-1], "action": actions, "next": after}, batch_size=[count])


def test_actions_whose_meaning_is_not_known_need_their_space():
    several = torch.tensor([[3, 0, 2], [1, 4, 0], [0, 0, 1]])
    with pytest.raises(DataError, match="whole numbers and not one-hot; pass their action_space"):
        trajectories_of(steps_with(several))
    found = trajectories_of(steps_with(several), action_space=gym.spaces.MultiDiscrete([5, 5, 5]))
    np.testing.assert_array_equal(found.actions, several)
    bits = torch.tensor([[True], [False], [True]])
    with pytest.raises(DataError, match="the actions are bits; pass their action_space"):
        trajectories_of(steps_with(bits))
    found = trajectories_of(steps_with(bits), action_space=gym.spaces.MultiBinary(1))
    assert found.actions.flatten().tolist() == [1, 0, 1]


def test_missing_keys_are_named():
    steps = TensorDict({"observation": torch.zeros(4, 3), "action": torch.zeros(4, 1)}, batch_size=[4])
    with pytest.raises(DataError, match=r"the steps lack the key \('next', 'observation'\); they have"):
        trajectories_of(steps)
