"""The state that `predict` returns is all that an agent carries."""

import dataclasses
import re

import gymnasium as gym
import numpy as np
import pytest
import torch

from aaren_rl.agents import DecisionAgent, OnnxAgent, decision_agent
from aaren_rl.agents.stable_baselines3 import ObserveReward
from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.spaces import Box
from aaren_rl.errors import InvalidInput
from aaren_rl.model import DecisionModel, ModelConfig, Scaling
from aaren_rl.stepping.onnx import to_onnx

SHAPES = [
    {},
    {"heads": 2, "mixer": "gated-aaren"},
    {"mixer": "softmax"},
    {"timesteps": "learned", "max_steps": 50},
    {"layout": "interleaved", "reward": True},
]


def make_agent(acting="stream", **shape):
    """An agent of random weights, so large that what it has seen shows in its actions."""
    spaces = Box.unbounded((3,)), Box.bounded([-1.0, -2.0], [1.0, 2.0])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DecisionModel(ModelConfig(**{"blocks": 2, "width": 16, "dropout": 0.0, **shape}), *spaces, scaling())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    return DecisionAgent(model, AgentCard(EnvironmentSpec("Mine-v0"), "mine", "arrays", (5.0,), 0, acting))


def scaling():
    return dataclasses.replace(Scaling.identity(Box.unbounded((3,))), return_scale=3.0)


def episode(seed, steps=9, rows=None):
    rng = np.random.default_rng(seed)
    shape = () if rows is None else (rows,)
    return rng.normal(size=(steps, *shape, 3)), rng.normal(size=(steps, *shape))


def alone(agent, observations, rewards):
    """Actions by `act`, which takes rewards."""
    agent.reset(num_envs=None if observations.ndim == 2 else observations.shape[1])
    flags = {} if observations.ndim == 2 else {"terminated": np.zeros(observations.shape[1], dtype=bool)}
    acted = [agent.act(observations[0])]
    acted += [agent.act(observations[t], rewards[t], **flags) for t in range(1, len(observations))]
    return np.array(acted)


def predicted(agent, observation, reward, state):
    if state is not None:
        agent.observe_reward(reward)
    return agent.predict(observation, state, np.array([state is None]))


@pytest.mark.parametrize("acting", ["stream", "window:3", "reset:4"])
@pytest.mark.parametrize("shape", SHAPES)
def test_environments_can_take_turns(shape, acting):
    agent, rounds = make_agent(acting, **shape), [episode(0), episode(1)]
    states, acted = [None, None], [[], []]
    for t in range(9):
        for turn, (observations, rewards) in enumerate(rounds):
            action, states[turn] = predicted(agent, observations[t], rewards[t], states[turn])
            acted[turn].append(action)
    for turn, given in enumerate(rounds):
        np.testing.assert_allclose(acted[turn], alone(make_agent(acting, **shape), *given), atol=1e-5)


@pytest.mark.parametrize("small", [0, 2**18])
def test_a_batch_and_a_single_environment_can_take_turns(small, monkeypatch):
    monkeypatch.setattr(decision_agent, "SMALL", small)
    agent, single, batch = make_agent(), episode(0), episode(1, rows=3)
    states, acted = [None, None], [[], []]
    for t in range(9):
        for turn, (observations, rewards) in enumerate((single, batch)):
            if states[turn] is not None:
                agent.observe_reward(rewards[t])
            starts = np.full(3 if turn else 1, states[turn] is None)
            action, states[turn] = agent.predict(observations[t], states[turn], starts)
            acted[turn].append(action)
    np.testing.assert_allclose(acted[0], alone(make_agent(), *single), atol=1e-5)
    np.testing.assert_allclose(acted[1], alone(make_agent(), *batch), atol=1e-5)


def test_a_state_can_be_gone_back_to():
    agent, (observations, rewards) = make_agent(), episode(0)
    state, kept = None, []
    for t in range(9):
        action, after = predicted(agent, observations[t], rewards[t], state)
        kept.append((state, action))
        state = after
    for t in (5, 2, 8):
        again, _ = predicted(agent, observations[t], rewards[t], kept[t][0])
        np.testing.assert_array_equal(again, kept[t][1])


def test_a_reward_counts_in_the_state():
    agent, (observations, _) = make_agent(), episode(0)
    _, state = agent.predict(observations[0])
    agent.observe_reward(2.0)
    agent.predict(observations[1], state)
    assert agent.return_to_go == pytest.approx([3.0])


def test_states_keep_the_target_that_they_were_asked_for():
    agent = make_agent()
    observations, _ = episode(0)
    states = []
    for target in (5.0, -3.0):
        agent.reset(target)
        states.append(agent.predict(observations[0])[1])
    for state, target in zip(states, (5.0, -3.0), strict=True):
        agent.observe_reward(0.0)
        # The next episode of this row asks for the same.
        _, after = agent.predict(observations[1], state, np.array([True]))
        assert agent.return_to_go == pytest.approx([target])
        assert after[1] == pytest.approx([target])


def test_an_agent_asks_anew_across_states_of_other_rows():
    agent = make_agent()
    _, single = agent.predict(np.zeros(3))
    _, batch = agent.predict(np.zeros((2, 3)), None, np.ones(2, dtype=bool))
    agent.ask(50.0)
    agent.observe_reward(np.zeros(2))
    agent.predict(np.ones((2, 3)), batch)
    assert agent.return_to_go == pytest.approx([50.0, 50.0])
    agent.observe_reward(0.0)
    agent.predict(np.ones(3), single)
    assert agent.return_to_go == pytest.approx([5.0])


@pytest.mark.parametrize("acting", ["stream", "window:3"])
def test_what_is_asked_waits_in_the_state_that_came_last(acting):
    agent, zeros = make_agent(acting), np.zeros(3)
    states = [agent.predict(zeros, None, np.array([True]))[1] for _ in range(3)]
    agent.observe_reward(0.0)
    states[1] = agent.predict(zeros, states[1])[1]
    agent.ask(50.0)
    agent.observe_reward(1.0)
    states[0] = agent.predict(zeros, states[0])[1]
    assert agent.return_to_go == pytest.approx([4.0])
    agent.ask(-2.0)
    for turn, expected in ((2, 4.0), (1, 50.0), (0, -2.0)):
        # Once asked, it counts down; gone back to, the state asks again.
        for _ in range(2):
            agent.observe_reward(1.0)
            _, after = agent.predict(zeros, states[turn])
            assert agent.return_to_go == pytest.approx([expected])
        agent.observe_reward(1.0)
        agent.predict(zeros, after)
        assert agent.return_to_go == pytest.approx([expected - 1.0])
        # The next episode of this row is asked for the same.
        agent.observe_reward(1.0)
        agent.predict(zeros, after, np.array([True]))
        assert agent.return_to_go == pytest.approx([5.0 if turn == 2 else expected])


def test_a_growing_state_of_another_width_is_refused():
    agent = make_agent(mixer="softmax")
    _, state = agent.predict(np.zeros(3))
    _, other = make_agent(mixer="softmax", width=8).predict(np.zeros(3))
    agent.observe_reward(0.0)
    with pytest.raises(InvalidInput, match=r"the state has arrays of shapes .*; this agent begins with"):
        agent.predict(np.zeros(3), other)
    # What was there before is still whole.
    agent.predict(np.zeros(3), state)


def test_exported_agents_of_one_folder_share_states(tmp_path):
    pytest.importorskip("onnxruntime")
    agent, (observations, rewards) = make_agent(), episode(0)
    folder = to_onnx(agent.model, agent.card, tmp_path / "onnx").parent
    agents, state, expected = [OnnxAgent(folder), OnnxAgent(folder)], None, alone(agent, observations, rewards)
    for t in range(9):
        action, state = predicted(agents[t % 2], observations[t], rewards[t], state)
        np.testing.assert_allclose(action, expected[t], atol=1e-4)


@pytest.mark.parametrize("acting", ["stream", "window:3"])
def test_other_states_are_refused(acting):
    agent = make_agent(acting)
    _, state = agent.predict(np.zeros((2, 3)))
    with pytest.raises(InvalidInput, match="and the observation has 1 rows; pass what predict returned for them"):
        agent.predict(np.zeros(3), state)
    with pytest.raises(InvalidInput, match="the state is int, and"):
        agent.predict(np.zeros((2, 3)), 7)
    with pytest.raises(InvalidInput, match=r"the state is \[\(2,\)\], and"):
        agent.predict(np.zeros((2, 3)), state[:1])
    _, other = make_agent(width=8).predict(np.zeros((2, 3)))
    with pytest.raises(InvalidInput, match=r"the state has .*; this agent (carries|begins with)"):
        agent.predict(np.zeros((2, 3)), other)


class Line(gym.Env):
    """Pays what the action says, for five steps."""

    observation_space, action_space = gym.spaces.Box(-9, 9, (3,)), gym.spaces.Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.full(3, self.steps, np.float32), float(action[0]), self.steps == 5, False, {}


def test_a_wrapper_hands_rewards_over(recwarn):
    agent, other = make_agent(), make_agent()
    env, plain = ObserveReward(Line(), agent), Line()
    (observation, _), (seen, _) = env.reset(seed=0), plain.reset(seed=0)
    other.reset()
    state, ended = None, False
    expected = other.act(seen)
    while not ended:
        action, state = agent.predict(observation, state)
        np.testing.assert_allclose(action, expected, atol=1e-6)
        observation, _, ended, _, _ = env.step(action)
        seen, reward, over, _, _ = plain.step(expected)
        expected = None if over else other.act(seen, reward)
    assert not [one for one in recwarn if re.search("predict", str(one.message))]


def test_a_wrapper_refuses_environments_that_take_turns():
    agent = make_agent()
    envs = [ObserveReward(Line(), agent) for _ in range(2)]
    observations = [env.reset(seed=0)[0] for env in envs]
    states, actions = [None, None], [None, None]
    for turn in range(2):
        actions[turn], states[turn] = agent.predict(observations[turn], None, np.array([True]))
    envs[0].step(actions[0])
    with pytest.raises(InvalidInput, match="a reward that no predict has taken"):
        envs[1].step(actions[1])
    envs[0].reset()
    assert not agent.has_reward
