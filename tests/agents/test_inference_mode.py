"""Agents that are loaded where gradients are switched off, as many evaluation scripts do for all they hold."""

import numpy as np
import pytest
import torch

import aaren_rl
from aaren_rl.agents import DecisionAgent
from aaren_rl.checkpoint import AgentCard, save_agent
from aaren_rl.data.segment import Segment
from aaren_rl.data.spaces import Box
from aaren_rl.model import DecisionModel, ModelConfig, Scaling
from aaren_rl.stepping.onnx import to_onnx

OBSERVATIONS, ACTIONS = Box.unbounded((3,)), Box.bounded([-1.0, 0.0], [1.0, 5.0])
CARD = AgentCard(None, "untrained", "arrays", (10.0,))
WAYS = {
    # Small models step in NumPy, larger ones in torch.
    "numpy": ({"width": 16}, 2, {}),
    "torch": ({"width": 256}, 8, {}),
    "window": ({"width": 16}, 2, {"acting": "window:3"}),
    "growing": ({"width": 16, "mixer": "softmax"}, 2, {}),
    "gru": ({"width": 16, "mixer": "gru"}, 2, {"acting": "reset:2"}),
    "exported": ({"width": 16}, 2, {}),
}


@pytest.fixture(params=WAYS)
def saved(request, tmp_path):
    """Folder of an agent, rows to act in, and options to load it with."""
    shape, rows, options = WAYS[request.param]
    torch.manual_seed(0)
    model = DecisionModel(ModelConfig(blocks=1, **shape), OBSERVATIONS, ACTIONS, Scaling.identity(OBSERVATIONS))
    if request.param == "exported":
        to_onnx(model.eval(), CARD, tmp_path / "agent")
    else:
        save_agent(tmp_path / "agent", model, CARD)
    return tmp_path / "agent", rows, options


def episode(agent, rows, restart=True):
    """Actions over some steps."""
    rng = np.random.default_rng(0)
    if restart:
        agent.reset(np.linspace(5, 10, rows), rows)
    actions = [agent.act(rng.normal(size=(rows, 3)))]
    ended = np.arange(rows) == 1
    for step in range(6):
        given = rng.normal(size=(rows, 3)), rng.normal(size=rows), ended & (step == 3), np.zeros(rows, bool)
        actions.append(agent.act(*given))
    return np.stack(actions)


@pytest.mark.parametrize("inside", ["load", "load and reset", "load and act"])
def test_an_agent_loaded_inside_acts_outside_as_any_other(saved, inside):
    folder, rows, options = saved
    expected = episode(aaren_rl.load(folder, **options), rows)
    with torch.inference_mode():
        agent = aaren_rl.load(folder, **options)
        if inside == "load and reset":
            agent.reset(np.linspace(5, 10, rows), rows)
        if inside == "load and act":
            np.testing.assert_array_equal(episode(agent, rows), expected)
    np.testing.assert_array_equal(episode(agent, rows, inside != "load and reset"), expected)
    with torch.no_grad():
        np.testing.assert_array_equal(episode(agent, rows), expected)


def test_an_agent_loaded_inside_can_be_trained_outside(saved):
    folder, rows, options = saved
    with torch.inference_mode():
        agent = aaren_rl.load(folder, **options)
        episode(agent, rows)
    if not isinstance(agent, DecisionAgent):
        pytest.skip("an exported agent is not trained")
    before = episode(agent, rows)
    segment = Segment(
        observations=torch.randn(2, 5, 3),
        timesteps=torch.arange(5).expand(2, -1),
        actions=torch.rand(2, 5, 2),
        returns_to_go=torch.rand(2, 5),
    )
    optimiser = torch.optim.AdamW(agent.model.parameters(), lr=0.1)
    agent.model.loss(segment)[0].backward()
    optimiser.step()
    assert not np.array_equal(episode(agent, rows), before)
