import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from aaren_rl.agents import DecisionAgent
from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.envs.environments import describe
from aaren_rl.envs.memory import RECALL, T_MAZE
from aaren_rl.experiments.memory.contamination import AGES, Disturbed, measure
from aaren_rl.model import DecisionModel, ModelConfig, Scaling

RECALL_4 = EnvironmentSpec(RECALL, {"k": 4, "length": 64, "symbols": 4})


class Remembering:
    """An agent whose action is a function of all observations so far, (steps, rows, ...)."""

    def __init__(self, spec, answer):
        self.card, self.answer = AgentCard(spec, "tests/any-v0", "bundled", (1.0,)), answer

    def reset(self, target_return, num_envs, autoreset_mode):
        self.seen = []

    def act(self, observation, reward, terminated, truncated):
        self.seen.append(observation.copy())
        return self.answer(np.array(self.seen))


@pytest.mark.parametrize("window", [1, 2, 5, 64, 65])
def test_discrete_actions_deviate_as_long_as_they_depend_on_it(window):
    found = measure(Remembering(RECALL_4, lambda seen: seen[-window:].sum(0) % 4), 5, 3)
    # One of the summed symbols is another, so the remainder is.
    assert found.deviation == {age: float(age < window) for age in AGES}


def test_continuous_actions_deviate_by_their_mean_difference():
    def answer(seen):
        return (0.01 * seen[-17:, :, :1].sum(0)).astype(np.float32)

    found = measure(Remembering(EnvironmentSpec(T_MAZE), answer), 5, 3)
    # The corridor shows 0, and the foreign observation 10 or -10.
    assert found.deviation == {age: pytest.approx(0.1 if age < 17 else 0, abs=1e-6) for age in AGES}


def test_one_answer_of_perfect_recall_becomes_wrong():
    perfect = Remembering(RECALL_4, lambda seen: seen[-min(4, len(seen))])
    found = measure(perfect, 6, 0)
    assert (found.length, found.episodes, found.accuracy) == (321, 6, 1.0)
    assert found.disturbed_accuracy == pytest.approx(1 - 1 / (321 - 3))
    assert set(found.deviation.values()) == {0.0}


@pytest.mark.parametrize(
    ("space", "shown"),
    [
        (gym.spaces.Discrete(3), np.array([0, 1, 2, 1])),
        (gym.spaces.Box(np.float32([0, -4]), np.float32([2, 4])), np.ones((4, 2), np.float32)),
    ],
    ids=["Discrete", "Box"],
)
def test_one_step_of_all_rows_is_foreign(space, shown):
    inner = Remembering(RECALL_4, lambda seen: seen[-1])
    actor = Disturbed(inner, space, step=2, seed=0)
    for _ in range(2):
        actor.reset(1.0, 4, AutoresetMode.DISABLED)
        for step in range(4):
            seen = actor.act(shown, None, np.zeros(4, bool), np.zeros(4, bool))
            assert (step == 2) != np.array_equal(seen, shown)
        foreign = inner.seen[2]
        assert foreign.dtype == shown.dtype
        if isinstance(space, gym.spaces.Box):
            # Ten half ranges from the middle.
            np.testing.assert_allclose(np.abs(foreign - [1, 0]), np.tile([10, 40], (4, 1)))
        else:
            assert all(map(space.contains, foreign))
            assert (foreign != shown).all()


@pytest.mark.parametrize(
    ("spec", "mixer"),
    [(RECALL_4, "none"), (EnvironmentSpec(T_MAZE), "none"), (EnvironmentSpec(T_MAZE), "aaren")],
    ids=str,
)
def test_contamination_takes_memory(spec, mixer):
    torch.manual_seed(0)
    described = describe(spec)
    shape = described.observation_space.shape
    config = ModelConfig(mixer=mixer, width=16, blocks=2, previous_action=False)
    scaling = Scaling(np.zeros(shape, np.float32), np.ones(shape, np.float32))
    model = DecisionModel(config, described.observation_space, described.action_space, scaling)
    agent = DecisionAgent(model, AgentCard(spec, "tests/any-v0", "bundled", (1.0,)))
    deviations = set(measure(agent, 4, 0).deviation.values())
    if mixer == "none":
        assert deviations == {0.0}
    else:
        # Continuous actions show every change.
        assert min(deviations) > 0
