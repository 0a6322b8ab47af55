"""The target "auto", from training over evaluation to an exported agent."""

import copy
import json

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from aaren_rl.agents import DecisionAgent, OnnxAgent
from aaren_rl.envs.environments import make_vector
from aaren_rl.envs.rollout import roll_out
from aaren_rl.errors import InvalidInput
from aaren_rl.scripts import evaluate, export, train

REACHING = ("--condition", "norm", "--reach", "True")


@pytest.fixture
def reaching(command, tiny, tmp_path):
    """Folder of a tiny run with a head for the return in reach."""
    status, out, error = command(train.main, *tiny, *REACHING, "--run", tmp_path / "run")
    assert status == 0, error
    assert "target auto" in out
    return tmp_path / "run"


def test_auto_is_the_default_where_the_return_in_reach_is_predicted(command, reaching):
    """In the result, on the card, for evaluations, in comparisons of targets, and in the exported agent."""
    assert json.loads((reaching / "result.json").read_text())["target"] == "auto"
    card = json.loads((reaching / "last" / "agent.json").read_text())
    assert card["target_returns"][0] == "auto"
    assert all(isinstance(target, float) for target in card["target_returns"][1:])
    assert command(evaluate.main, reaching / "last", "--episodes", "2")[0] == 0
    auto = json.loads((reaching / "result.json").read_text())
    assert auto["target"] == "auto"
    assert command(evaluate.main, reaching / "last", "--episodes", "2", "--target", "-50")[0] == 0
    low = json.loads((reaching / "result.json").read_text())
    assert low["target"] == -50.0
    assert command(evaluate.main, reaching / "last", "--episodes", "2", "--targets", "sweep")[0] == 0
    swept = json.loads((reaching / "targets-last-stream.json").read_text())["results"]
    assert [figures["target"] for figures in swept] == sorted({*card["data_returns"][::2], *card["target_returns"][1:]})
    status, _, error = command(export.main, reaching / "last", "--episodes", "2")
    assert status == 0, error
    exported, agent = OnnxAgent(reaching / "last-onnx"), DecisionAgent.load(reaching / "last")
    for other in (exported, agent):
        env = gym.make("Hopper-v5", max_episode_steps=20)
        observation, _ = env.reset(seed=0)
        other.reset()
        other.actions = [other.act(observation)]
        ended = False
        while not ended:
            observation, reward, terminated, truncated, _ = env.step(other.actions[-1])
            ended = terminated or truncated
            if not ended:
                other.actions.append(other.act(observation, reward))
        assert np.isinf(other.return_to_go).all()
    np.testing.assert_allclose(exported.actions, agent.actions, atol=1e-4)


def test_all_ways_of_acting_ask_for_what_is_in_reach(reaching):
    agent = DecisionAgent.load(reaching / "last")
    spec = agent.card.environment
    played = {}
    for acting in ("stream", "window:2000"):
        other = DecisionAgent(copy.deepcopy(agent.model), agent.card, acting=acting)
        for target in ("auto", -1000.0):
            envs = make_vector(spec, 2, 1)
            try:
                played[acting, target] = roll_out(other, envs, 2, target, 0).returns
            finally:
                envs.close()
    for target in ("auto", -1000.0):
        np.testing.assert_allclose(played["stream", target], played["window:2000", target], rtol=1e-3)
    assert (played["stream", "auto"] != played["stream", -1000.0]).all()


def test_agents_that_predict_nothing_refuse_it(command, tiny, tmp_path, run_folder):
    agent = DecisionAgent.load(run_folder / "last")
    with pytest.raises(InvalidInput, match="does not predict the return in reach; train it with --condition norm"):
        agent.reset("auto")
    with pytest.raises(InvalidInput, match="target_return is 'best'; expected a number, or auto"):
        agent.reset("best")
    status, _, error = command(train.main, *tiny, "--target", "auto", "--run", tmp_path / "other")
    assert status == 2
    assert "--condition norm --reach" in error
    assert not (tmp_path / "other").exists()
    status, _, error = command(train.main, *tiny, "--reach", "True", "--run", tmp_path / "other")
    assert status == 2
    assert "pass --condition norm" in error


def test_a_batch_asks_row_by_row(reaching):
    agent = DecisionAgent.load(reaching / "last")
    observations = np.random.default_rng(0).normal(size=(3, 11)).astype(np.float32)
    agent.reset("auto", num_envs=3, autoreset_mode=AutoresetMode.NEXT_STEP)
    batch = agent.act(observations)
    for row in range(3):
        agent.reset("auto")
        np.testing.assert_allclose(agent.act(observations[row]), batch[row], atol=1e-5)
