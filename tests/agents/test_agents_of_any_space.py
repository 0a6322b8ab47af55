"""Agents in spaces of every kind: what they refuse, remember, sample and show to Stable-Baselines3."""

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch

from aaren_rl.agents import DecisionAgent
from aaren_rl.checkpoint import AgentCard, load_agent, save_agent
from aaren_rl.data.spaces import Box, DictSpace, DiscreteSpace, ImageSpace, space_of
from aaren_rl.errors import CheckpointError, InvalidInput
from aaren_rl.model import DecisionModel, ModelConfig, Scaling

CARD = AgentCard(None, "made-up", "arrays", (1.0,))
CHOICES = DiscreteSpace((), (5,), (0,))
GOALS = DictSpace((("observation", Box.unbounded((2,))), ("desired_goal", Box.unbounded((2,)))))
PICTURE = ImageSpace((16, 16, 3), "last", 0.0, 1.0, "float32")


def make_agent(observations, actions, mixer="aaren", head="squared-error", **options):
    torch.manual_seed(0)
    config = ModelConfig(mixer=mixer, blocks=1, width=8, head=head)
    return DecisionAgent(DecisionModel(config, observations, actions, Scaling.identity(observations)), CARD, **options)


@pytest.mark.parametrize("actions", [CHOICES, space_of(gym.spaces.MultiBinary(3)), Box.bounded([-1.0], [1.0])], ids=str)
def test_a_picture_that_is_no_number_is_refused(actions):
    agent = make_agent(PICTURE, actions)
    agent.reset()
    good = np.full((16, 16, 3), 0.5, np.float32)
    bad = good.copy()
    bad[3, 4, 1] = np.nan
    with pytest.raises(InvalidInput, match=r"the observation holds nan in image, row 0, at \[3, 4, 1\]"):
        agent.act(bad)
    agent.act(good)


@pytest.mark.parametrize(
    "actions",
    [CHOICES, space_of(gym.spaces.MultiBinary(3)), space_of(gym.spaces.Dict(a=gym.spaces.Discrete(3)))],
    ids=str,
)
def test_agents_whose_logits_are_no_numbers_are_not_loaded(actions, tmp_path):
    agent = make_agent(Box.unbounded((3,)), actions)
    with torch.no_grad():
        for name, weight in agent.model.named_parameters():
            if "head" in name:
                weight.fill_(3e38)
    save_agent(tmp_path / "agent", agent.model, CARD)
    with pytest.raises(CheckpointError, match="the action of its first step is not finite"):
        load_agent(tmp_path / "agent")
    agent.reset()
    with pytest.raises(InvalidInput, match="the model's action is nan"):
        agent.act(np.ones(3, np.float32))


@pytest.mark.parametrize("mixer", ["aaren", "gru"])
def test_the_temperature_may_change_between_episodes(mixer):
    agent = make_agent(Box.unbounded((3,)), Box.bounded([-1.0] * 2, [1.0] * 2), mixer, "gaussian", seed=0)
    first = np.ones(3, np.float32)

    def act():
        agent.reset()
        return agent.act(first)

    likeliest = act()
    agent.temperature = 1.0
    assert not np.allclose(act(), likeliest, atol=1e-3)
    np.testing.assert_allclose(agent.predict(first)[0], likeliest, atol=1e-6)
    assert not np.allclose(agent.predict(first, deterministic=False)[0], likeliest, atol=1e-3)
    agent.temperature = 0.0
    np.testing.assert_allclose(act(), likeliest, atol=1e-6)


def test_copies_sample_alike():
    agent = make_agent(Box.unbounded((3,)), CHOICES, temperature=1.0, seed=0)
    agent.reset()
    agent.act(np.ones(3, np.float32))
    copies = copy.deepcopy(agent), pickle.loads(pickle.dumps(agent))
    actions = [[one.act(np.full(3, t, np.float32), 0.0) for t in range(20)] for one in (agent, *copies)]
    assert actions[0] == actions[1] == actions[2]
    assert len(set(actions[0])) > 1


@pytest.mark.parametrize("mixer", ["aaren", "gru", "softmax"])
@pytest.mark.parametrize("head", ["squared-error", "gaussian"])
def test_whole_number_actions_are_remembered_as_they_were_executed(mixer, head):
    agent = make_agent(Box.unbounded((3,)), Box.bounded([-9.0] * 2, [9.0] * 2, "int64"), mixer, head)
    told = make_agent(Box.unbounded((3,)), Box.bounded([-9.0] * 2, [9.0] * 2, "int64"), mixer, head)
    rng = np.random.default_rng(0)
    for one in (agent, told):
        one.reset()
    action = None
    for t in range(6):
        seen = rng.normal(size=3).astype(np.float32)
        ours = agent.act(seen, 0.0 if t else None)
        theirs = told.act(seen, 0.0 if t else None, executed_action=action)
        assert ours.dtype == np.int64
        np.testing.assert_array_equal(ours, theirs)
        action = ours


def test_goals_are_acted_on_in_predict_too():
    agent = make_agent(GOALS, Box.bounded([-1.0], [1.0]))
    seen = {"observation": np.ones(2, np.float32), "desired_goal": np.zeros(2, np.float32)}
    asked = {**seen, "desired_goal": np.full(2, 3.0, np.float32)}
    agent.reset()
    expected = agent.act(asked)
    agent.reset(goal=asked["desired_goal"])
    np.testing.assert_array_equal(agent.act(seen), expected)
    agent.reset(goal=asked["desired_goal"])
    np.testing.assert_array_equal(agent.predict(seen)[0], expected)


@pytest.mark.parametrize(
    ("rows", "goal", "message"),
    [
        (None, np.zeros(3), r"the goal does not fit: values have shape \(3,\); expected \(2,\)"),
        (2, np.zeros((3, 2)), "3 goals for 2 environments; give one for each"),
        (2, np.zeros(2), "the goal does not fit"),
    ],
)
def test_goals_that_do_not_fit_are_refused(rows, goal, message):
    agent = make_agent(GOALS, Box.bounded([-1.0], [1.0]))
    with pytest.raises(InvalidInput, match=message):
        agent.reset(num_envs=rows, goal=goal)


def test_a_goal_needs_the_other_parts():
    agent = make_agent(GOALS, Box.bounded([-1.0], [1.0]))
    agent.reset(goal=np.zeros(2))
    with pytest.raises(InvalidInput, match="the observation is a ndarray, and the agent was reset with a goal"):
        agent.act(np.zeros(2))
    with pytest.raises(InvalidInput, match="a goal for an agent whose observations have no 'desired_goal'"):
        make_agent(Box.unbounded((2,)), CHOICES).reset(goal=np.zeros(2))
