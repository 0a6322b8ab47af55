import copy
import importlib.util
import json
import pickle
import shutil
import sys
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from aaren_rl.agents import DecisionAgent, OnnxAgent
from aaren_rl.checkpoint import AgentCard, card_digest, digest
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.spaces import Box, space_of
from aaren_rl.envs.rollout import roll_out
from aaren_rl.errors import CheckpointError, InvalidInput
from aaren_rl.model import DecisionModel, ModelConfig, Scaling
from aaren_rl.stepping.onnx import to_onnx

LONGEST = 250
"""Steps that the learned timestep embedding holds."""


def make_env(limit=LONGEST):
    return gym.make("Hopper-v5", max_episode_steps=limit)


@pytest.fixture(scope="module")
def source():
    """An untrained agent with weights so large that what it has seen shows in its actions."""
    env = make_env()
    spaces = space_of(env.observation_space), space_of(env.action_space)
    env.close()
    scaling = replace(Scaling.identity(spaces[0]), return_scale=10.0)
    shape = {"blocks": 2, "width": 16, "heads": 2, "dropout": 0.0, "timesteps": "learned", "max_steps": LONGEST}
    shape["layout"] = "interleaved"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DecisionModel(ModelConfig(**shape), *spaces, scaling)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    return DecisionAgent(model, AgentCard(EnvironmentSpec("Hopper-v5"), "untrained", "bundled", (30.0, 10.0), 3))


@pytest.fixture(scope="module")
def exported(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "agent"
    to_onnx(source.model, source.card, folder)
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    """A copy of the export, to change at will."""
    return shutil.copytree(exported, tmp_path / "copy")


@pytest.fixture
def agent(exported):
    return OnnxAgent(exported)


def change_card(folder, **changes):
    path = folder / "export.json"
    card = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in card.items() if value is not ...}))


def test_it_knows_what_the_agent_knew(agent, source):
    assert agent.card == source.card
    assert agent.observation_space == source.observation_space
    assert agent.action_space == source.action_space
    assert agent.observation_space.shape == (11,)
    assert (agent.longest, agent.int8) == (LONGEST, False)


def test_an_episode_of_the_real_environment_is_acted_in_alike(agent, source):
    env, target = make_env(), 25.0
    for seed in (0, 1):
        observation, _ = env.reset(seed=seed)
        agent.reset(target)
        source.reset(target)
        given, actions, steps = (observation,), [], 0
        while True:
            action, expected = agent.act(*given), source.act(*given)
            assert action.dtype == np.float32
            assert env.action_space.contains(action)
            np.testing.assert_allclose(action, expected, rtol=0, atol=1e-4)
            np.testing.assert_array_equal(agent.return_to_go, source.return_to_go)
            actions.append(action)
            steps += 1
            observation, reward, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                break
            given = (observation, reward, terminated, truncated)
        assert steps > 5
        assert np.std(actions, 0).min() > 0.01
    with pytest.raises(InvalidInput, match="the episode has ended"):
        agent.act(observation, reward, terminated, truncated)


def test_it_forgets_every_so_many_steps_as_the_agent_does(exported, source):
    ours, theirs = OnnxAgent(exported, acting="reset:4"), DecisionAgent(source.model, source.card, acting="reset:4")
    streaming, differs = OnnxAgent(exported), False
    rng = np.random.default_rng(0)
    for each in (ours, theirs, streaming):
        each.reset(20.0)
    given: tuple = ()
    for _ in range(12):
        observation = rng.normal(size=11)
        action, expected, streamed = (each.act(observation, *given) for each in (ours, theirs, streaming))
        np.testing.assert_allclose(action, expected, rtol=0, atol=1e-4)
        differs, given = differs or np.abs(action - streamed).max() > 1e-3, (rng.normal(),)
    assert differs


def test_a_window_cannot_be_recomputed_from_a_single_step(exported):
    with pytest.raises(InvalidInput, match="cannot act by window:5; pass stream"):
        OnnxAgent(exported, acting="window:5")


@pytest.mark.parametrize("mode", tuple(AutoresetMode))
def test_a_batch_acts_alike_in_every_autoreset_mode(agent, source, mode):
    """Rows whose episodes end at different times, over several of them."""
    limits, targets = (3, 7, 200), np.array([10.0, 20.0, 30.0])
    envs = SyncVectorEnv([lambda limit=limit: make_env(limit) for limit in limits], autoreset_mode=mode)
    observation, _ = envs.reset(seed=0)
    for each in (agent, source):
        each.reset(targets, 3, mode)
    given, ends = (observation,), np.zeros(3, dtype=int)
    for _ in range(60):
        action = agent.act(*given)
        np.testing.assert_allclose(action, source.act(*given), rtol=0, atol=1e-4)
        np.testing.assert_array_equal(agent.return_to_go, source.return_to_go)
        observation, reward, terminated, truncated, _ = envs.step(action)
        ended = terminated | truncated
        ends += ended
        if mode == AutoresetMode.DISABLED and ended.any():
            observation, _ = envs.reset(options={"reset_mask": ended})
        given = observation, reward, terminated, truncated
    envs.close()
    assert (ends >= [10, 5, 1]).all()


def test_a_roll_out_gives_the_returns_of_the_agent(agent, source):
    ours, theirs = (
        roll_out(each, SyncVectorEnv([lambda: make_env(15)] * 2), 5, 20.0, seed=3) for each in (agent, source)
    )
    assert ours.lengths.tolist() == theirs.lengths.tolist()
    np.testing.assert_allclose(ours.returns, theirs.returns, rtol=1e-3)


def test_predict_acts_alike(agent, source):
    state, other_state = None, None
    for each in (agent, source):
        # What a state of None asks for is the target of the last reset.
        each.reset(20.0)
    for observation in np.random.default_rng(0).normal(size=(5, 2, 11)):
        for each in (agent, source):
            each.observe_reward(np.ones(2))
        action, state = agent.predict(observation, state)
        expected, other_state = source.predict(observation, other_state)
        np.testing.assert_allclose(action, expected, rtol=0, atol=1e-4)


def test_the_state_keeps_its_size_in_every_row(agent):
    for rows in (1, 5):
        agent.reset(num_envs=rows)
        agent.act(np.zeros((rows, 11)))
        # Return-to-go, timestep, an action of 3; in each of two blocks the sums of 16 values and 2 counts: float64.
        assert agent.state_bytes == rows * (2 + 3 + 2 * (16 + 2)) * 8


def test_the_action_returned_may_be_changed_by_the_caller(agent):
    def second_action(meddle):
        agent.reset()
        action = agent.act(np.ones(11))
        if meddle:
            action += 100.0
        return agent.act(np.ones(11), 1.0)

    assert (second_action(True) == second_action(False)).all()


def test_several_threads_give_the_same_actions(exported, agent):
    actions = []
    for each in (agent, OnnxAgent(str(exported), threads=2)):
        each.reset()
        actions.append(each.act(np.ones(11)))
    np.testing.assert_allclose(*actions, rtol=0, atol=1e-6)


def test_the_default_target_is_the_first_of_the_card(agent):
    actions = []
    for target in (None, 30.0, 10.0):
        agent.reset(target)
        actions.append(agent.act(np.ones(11)))
    assert (actions[0] == actions[1]).all()
    assert (actions[0] != actions[2]).any()


def test_episodes_beyond_the_learned_embedding_are_refused(agent):
    agent.reset()
    agent.act(np.zeros(11))
    for _ in range(LONGEST - 1):
        agent.act(np.zeros(11), 0.0)
    with pytest.raises(InvalidInput, match=f"longer than the {LONGEST} steps"):
        agent.act(np.zeros(11), 0.0)


def test_what_does_not_fit_is_refused(agent):
    with pytest.raises(InvalidInput, match="call reset first"):
        agent.act(np.zeros(11))
    agent.reset()
    with pytest.raises(InvalidInput, match=r"observation has shape \(10,\); expected \(11,\)"):
        agent.act(np.zeros(10))
    with pytest.raises(InvalidInput, match="NaN"):
        agent.act(np.full(11, np.nan))
    with pytest.raises(InvalidInput, match=r"observations have shape \(17,\) in place of \(11,\)"):
        agent.check_environment(gym.make("HalfCheetah-v5"))
    agent.check_environment(make_env())


def test_an_altered_graph_is_refused(folder):
    content = bytearray((folder / "agent.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "agent.onnx").write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="is not as it was exported; export the agent again"):
        OnnxAgent(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "has format 2; this version reads 5"),
        ({"format": ...}, "has format None"),
        ({"sha256": "0" * 64}, "is not as it was exported"),
        ({"sha256": ...}, "is not as it was exported"),
        ({"environment": ...}, "is not as it was exported"),
        ({"state_start": ...}, "is not as it was exported"),
        ({"observation_space": "many"}, "is not as it was exported"),
        ({"action_space": {"type": "box", "low": [[1], 2]}}, "is not as it was exported"),
        ({"target_returns": []}, "is not as it was exported"),
        ({"target_returns": 5}, "is not as it was exported"),
    ],
)
def test_a_card_that_does_not_describe_the_graph_is_refused(folder, changes, message):
    change_card(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        OnnxAgent(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"action_space": Box.bounded([-1.0] * 3, [2.0] * 3).to_json()},
        {"state_start": [0.0]},
        {"target_returns": [5.0]},
        {"longest_episode": None},
    ],
)
def test_a_card_with_other_values_than_were_exported_is_refused(folder, changes):
    change_card(folder, **changes)
    with pytest.raises(CheckpointError):
        OnnxAgent(folder)


def test_a_card_that_is_no_json_is_refused(folder):
    (folder / "export.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"export\.json cannot be read"):
        OnnxAgent(folder)


def test_a_missing_graph_is_named(folder):
    (folder / "agent.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"agent\.onnx cannot be read"):
        OnnxAgent(folder)


def test_a_missing_folder_is_refused_with_what_it_should_hold(tmp_path):
    with pytest.raises(CheckpointError, match=r"export\.json is missing; expected a folder with .*agent\.onnx"):
        OnnxAgent(tmp_path / "nowhere")


def test_without_onnxruntime_the_error_says_what_to_install(exported, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else real(name))
    with pytest.raises(InvalidInput, match=r"exported agents need onnxruntime; in a clone: .* pip install onnxruntime"):
        OnnxAgent(exported)


def test_it_needs_neither_onnx_nor_onnxscript(exported, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("onnxs") else real(name))
    monkeypatch.setitem(sys.modules, "onnx", None)
    agent = OnnxAgent(exported)
    agent.reset()
    assert agent.act(np.zeros(11)).shape == (3,)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda agent: pickle.loads(pickle.dumps(agent)),
    "pickle of a copy": lambda agent: pickle.loads(pickle.dumps(copy.deepcopy(agent))),
}


def others(exported, source):
    """Agents that act in different ways, by name."""
    model, card = source.model, source.card
    grows = DecisionModel(
        ModelConfig(mixer="softmax", blocks=1, width=16),
        model.observation_space,
        model.action_space,
        Scaling.identity(model.observation_space),
    )
    return {
        "exported": OnnxAgent(exported),
        "exported, forgets": OnnxAgent(exported, threads=2, acting="reset:3", renew=2),
        "streams": DecisionAgent(model, card),
        "window": DecisionAgent(model, card, acting="window:3"),
        "grows": DecisionAgent(grows, card),
    }


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("name", ["exported", "exported, forgets", "streams", "window", "grows"])
def test_a_copy_goes_on_in_mid_episode_and_on_its_own(exported, source, name, way):
    agent = others(exported, source)[name]
    agent.reset(np.array([20.0, 10.0]), 2)
    rng = np.random.default_rng(0)
    steps = [(rng.normal(size=(2, 11)), rng.normal(size=2)) for _ in range(12)]
    agent.act(steps[0][0])
    for observation, reward in steps[1:4]:
        agent.act(observation, reward)
    copied = COPIES[way](agent)
    assert copied.card == agent.card
    actions = [copied.act(*step) for step in steps[4:]]
    # What the copy did left the agent where it was.
    expected = [agent.act(*step) for step in steps[4:]]
    np.testing.assert_array_equal(actions, expected)
    np.testing.assert_array_equal(copied.return_to_go, agent.return_to_go)


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_of_an_agent_without_an_episode_is_reset_first(exported, way):
    copied = COPIES[way](OnnxAgent(exported))
    with pytest.raises(InvalidInput, match="call reset first"):
        copied.act(np.zeros(11))
    copied.reset()
    assert copied.act(np.zeros(11)).shape == (3,)


def sign(folder, **changes):
    """Changes a card, and its digest with it, as another version of the code might have written it."""
    change_card(folder, **changes)
    path = folder / "export.json"
    card = json.loads(path.read_text())
    card["sha256"] = {"agent.onnx": digest((folder / "agent.onnx").read_bytes())}
    card["sha256"]["export.json"] = card_digest(card, "agent.onnx")
    path.write_text(json.dumps(card))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state_start": [0.0]}, "mixers_at lies outside of it"),
        ({"state_start": [[0.0]]}, "state_start is no row"),
        ({"state_start": "x"}, "ValueError"),
        ({"state_start": [float("nan")] * 41}, "state_start is no row of finite numbers"),
        ({"mixers_at": -1}, "mixers_at"),
        ({"mixers_at": "many"}, "ValueError"),
        ({"longest_episode": "long"}, "longest_episode is 'long'"),
        ({"target_returns": [float("nan")]}, "target_returns .* expected finite numbers"),
        ({"target_returns": ["much"]}, "target_returns"),
        ({"dataset_id": 7}, "dataset_id"),
        ({"updates": None}, "updates"),
        ({"observation_space": Box.unbounded((5,)).to_json()}, "the graph takes"),
        ({"action_space": Box.bounded([-1.0], [1.0]).to_json()}, "gives actions of shape"),
        ({"action_space": 3}, "a space is saved as 3"),
    ],
)
def test_a_signed_card_of_something_else_is_one_error(folder, changes, message):
    sign(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        OnnxAgent(folder)


def test_a_card_of_before_the_return_in_reach_is_read(folder):
    sign(folder, reach=...)
    agent = OnnxAgent(folder)
    agent.reset()
    assert agent.act(np.zeros(11)).shape == (3,)
    with pytest.raises(InvalidInput, match="does not predict the return in reach"):
        agent.reset("auto")
    sign(folder, reach="yes")
    with pytest.raises(CheckpointError, match="reach is 'yes'; expected true or false"):
        OnnxAgent(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("which", [0, -1])
def test_a_graph_whose_weights_are_not_finite_is_refused(folder, value, which):
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(folder / "agent.onnx")
    floats = [tensor for tensor in graph.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    floats = [tensor for tensor in floats if len(tensor.dims) == 2]
    tensor = floats[which]
    spoilt = np.full(tuple(tensor.dims), value, np.float32)
    tensor.CopyFrom(onnx.numpy_helper.from_array(spoilt, tensor.name))
    (folder / "agent.onnx").write_bytes(graph.SerializeToString())
    sign(folder)
    with pytest.raises(CheckpointError, match="first step gives a NaN or an infinite value"):
        OnnxAgent(folder)


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x08\x07" * 50])
def test_a_signed_file_that_is_no_graph_is_one_error(folder, content):
    (folder / "agent.onnx").write_bytes(content)
    sign(folder)
    with pytest.raises(CheckpointError, match="does not hold the agent that its export.json describes"):
        OnnxAgent(folder)


@pytest.mark.parametrize("place", ["weights.bin", "../weights.bin", "absolute"])
def test_a_graph_that_takes_weights_from_other_files_is_refused(folder, place, monkeypatch):
    """They could be any file of the reader's machine."""
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(folder / "agent.onnx")
    tensor = max(graph.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    (folder / "weights.bin").write_bytes(tensor.raw_data)
    monkeypatch.chdir(folder)
    onnx.external_data_helper.set_external_data(tensor, str(folder / "weights.bin") if place == "absolute" else place)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    (folder / "agent.onnx").write_bytes(graph.SerializeToString())
    sign(folder)
    with pytest.raises(CheckpointError, match="takes weights from other files, which an export never does"):
        OnnxAgent(folder)
