"""Another target in mid-episode."""

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from aaren_rl.agents import DecisionAgent
from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.spaces import Box
from aaren_rl.errors import InvalidInput
from aaren_rl.model import DecisionModel, ModelConfig, Scaling

STEPS = 12


def make_agent(acting="stream", **shape):
    space, actions = Box.unbounded((3,)), Box.bounded(-np.ones(2), np.ones(2))
    zeros = np.zeros(3, np.float32)
    config = ModelConfig(**{"blocks": 1, "width": 16, "dropout": 0.0, "condition": "norm", **shape})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DecisionModel(config, space, actions, Scaling(zeros, zeros + 1, 100.0))
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return DecisionAgent(
        model, AgentCard(EnvironmentSpec("Made-up-v0"), "untrained", "bundled", (50.0,)), acting=acting
    )


def play(agent, target, asked=None, rows=None):
    """Actions along made-up observations; `asked` is asked for before step 5."""
    rng = np.random.default_rng(0)
    shape = (STEPS, 3) if rows is None else (STEPS, rows, 3)
    observations = rng.normal(size=shape).astype(np.float32)
    rewards = rng.uniform(size=shape[:-1])
    agent.reset(target, num_envs=rows)
    actions = []
    for t in range(STEPS):
        if t == 5 and asked is not None:
            agent.ask(asked)
        flags = () if rows is None else (np.zeros(rows, bool), np.zeros(rows, bool))
        # What stands at a step is the reward of the action before.
        actions.append(agent.act(observations[t], None if t == 0 else rewards[t], *flags))
        if t == 5 and asked is not None:
            np.testing.assert_allclose(agent.return_to_go, np.broadcast_to(asked, rewards[t].shape or (1,)))
    return np.array(actions), rewards


@pytest.mark.parametrize("acting", ["stream", "window:20"])
@pytest.mark.parametrize("mixer", ["aaren", "softmax"])
def test_another_target_counts_as_if_from_the_start(acting, mixer):
    """Who was asked for as much from the start has as much left at that step, and acts alike from there on."""
    agent = make_agent(acting, mixer=mixer, previous_action=False)
    changed, rewards = play(agent, 50.0, 80.0)
    plain, _ = play(agent, 50.0)
    from_start, _ = play(agent, 80.0 + rewards[1:6].sum())
    np.testing.assert_allclose(changed[:5], plain[:5], atol=1e-5)
    np.testing.assert_allclose(changed[5:], from_start[5:], atol=1e-5)
    assert np.abs(changed[5:] - plain[5:]).max() > 1e-2


def test_a_state_that_holds_returns_remembers_what_was_asked_for_before():
    agent = make_agent(condition="token", previous_action=False)
    changed, rewards = play(agent, 50.0, 80.0)
    from_start, _ = play(agent, 80.0 + rewards[1:6].sum())
    assert np.abs(changed[5:] - from_start[5:]).max() > 1e-4


def test_rows_ask_for_their_own_and_new_episodes_for_the_last_target():
    agent = make_agent()
    play(agent, 50.0, np.array([10.0, 20.0, 30.0]), rows=3)
    single = make_agent()
    agent.reset(50.0, num_envs=2, autoreset_mode=AutoresetMode.SAME_STEP)
    observations, none = np.ones((2, 3), np.float32), np.zeros(2, bool)
    agent.act(observations)
    agent.ask(70.0)
    # Row 1 starts its next episode at the very step.
    batch = agent.act(observations, np.ones(2), np.array([False, True]), none)
    np.testing.assert_allclose(agent.return_to_go, [70.0, 70.0])
    single.reset(70.0)
    np.testing.assert_allclose(single.act(observations[0]), batch[1], atol=1e-5)
    agent.act(observations, np.ones(2), none, none)
    np.testing.assert_allclose(agent.return_to_go, [69.0, 69.0])


def test_stable_baselines_episodes_that_follow_ask_for_it_too():
    agent = make_agent()
    observation = np.ones(3, np.float32)
    agent.reset(5.0)
    agent.ask(50.0)
    agent.predict(observation, state=None)
    np.testing.assert_allclose(agent.return_to_go, [50.0])


def test_what_cannot_be_asked_for_is_refused():
    agent = make_agent()
    with pytest.raises(InvalidInput, match="call reset first"):
        agent.ask(10.0)
    agent.reset()
    with pytest.raises(InvalidInput, match="expected a finite number"):
        agent.ask(float("nan"))
    with pytest.raises(InvalidInput, match="does not predict the return in reach"):
        agent.ask("auto")
    with pytest.raises(InvalidInput, match="expected numbers, or auto for all rows"):
        agent.ask(["auto", 5.0])
    with pytest.warns(RuntimeWarning, match="all targets beyond are the same"):
        agent.ask(1e9)
