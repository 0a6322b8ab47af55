import copy
import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import double, predict

from aaren_rl import __version__
from aaren_rl.checkpoint import AgentCard, load_agent, save_agent
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.segment import Segment
from aaren_rl.data.spaces import Box
from aaren_rl.errors import CheckpointError, InvalidInput
from aaren_rl.mixers.aaren import stepper as aaren_stepper
from aaren_rl.model import DecisionModel, ModelConfig, Scaling
from aaren_rl.stepping import onnx as export
from aaren_rl.stepping.onnx import ExportFailed, to_onnx

FILES = {"agent.onnx", "export.json"}
CARD = AgentCard(EnvironmentSpec("Hopper-v5", {"exclude": True}), "made-up/tiny-v0", "bundled", (100.0, 50.0), 7)
SHAPES = {
    "large": {"blocks": 2, "heads": 4, "layout": "interleaved", "timesteps": "sinusoidal"},
    "behind": {"blocks": 1, "condition": "norm", "reach": True},
    "small": {"blocks": 1, "layout": "fused", "timesteps": "learned", "max_steps": 300},
    "ordered": {"blocks": 2, "heads": 2, "mixer": "gated-aaren,aaren(conv=3)", "layout": "interleaved"},
}


def build(name):
    """A model of odd action bounds in which every part shows."""
    scaling = Scaling(
        np.array([1.0, -2.0, 0.5, 30.0], dtype=np.float32),
        np.array([0.5, 2.0, 1.0, 10.0], dtype=np.float32),
        return_scale=100.0,
    )
    spaces = Box.unbounded((4,)), Box.bounded([-1.0, 0.0], [1.0, 5.0])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = DecisionModel(ModelConfig(width=16, **SHAPES[name]), *spaces, scaling).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.3)
        if model.condition is not None:
            # Otherwise its many units saturate the actions.
            model.condition.modulate.weight.data.mul_(0.1)
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Folders of exports: a large model, a small one with scores in the running form, and one that keeps order."""
    folders = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in SHAPES:
            folders[name] = tmp_path_factory.mktemp("exported") / name
            patch.setattr(aaren_stepper, "NARROW", 60.0 if name == "large" else -1.0)
            assert to_onnx(build(name), CARD, folders[name]) == folders[name] / "agent.onnx"
    return folders


@pytest.fixture
def quick(exported, monkeypatch):
    """The large model; exporting it takes the graph that torch took seconds to make before, and a shorter check."""
    graph = (exported["large"] / "agent.onnx").read_bytes()
    monkeypatch.setattr(export, "_graph", lambda step: graph)
    monkeypatch.setattr(export, "STEPS", 20)
    return build("large")


def card_of(folder):
    return json.loads((folder / "export.json").read_text())


def run_graph(folder, batch, steps, seed=0):
    """Observations, returns-to-go and the graph's actions, each fed back, over made-up steps."""
    session = onnxruntime.InferenceSession(folder / "agent.onnx", providers=["CPUExecutionProvider"])
    card, rng = card_of(folder), np.random.default_rng(seed)
    observations = rng.normal(size=(batch, steps, 4)) * [0.5, 2, 1, 10] + [1, -2, 0.5, 30]
    rewards = rng.uniform(0, 1, (batch, steps))
    rewards[:, 0] = 0
    targets = np.linspace(50, 150, batch)
    state = np.tile(np.array(card["state_start"]), (batch, 1))
    state[:, card["return_to_go_at"]] = targets
    actions = []
    for t in range(steps):
        given = {"observation": observations[:, t], "reward": rewards[:, t], "state": state}
        action, state = session.run(
            None, {name: part.astype(np.float64 if name == "state" else np.float32) for name, part in given.items()}
        )
        actions.append(action)
    np.testing.assert_array_equal(state[:, card["timestep_at"]], steps)
    return observations, targets[:, None] - rewards.cumsum(1), np.stack(actions, 1)


def predict_all(model, observations, returns_to_go, actions):
    """What the model gives for the whole of it at once, in float64."""
    timesteps = torch.arange(actions.shape[1]).expand(len(actions), -1)
    observed, acted, returns = map(torch.from_numpy, (observations, actions, returns_to_go))
    segment = Segment(observed, timesteps, acted, returns_to_go=returns)
    with torch.inference_mode():
        return predict(copy.deepcopy(model).double(), double(segment)).numpy()


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("batch", [1, 3, 7])
def test_the_graph_gives_the_models_actions_for_any_batch(exported, name, batch):
    observations, returns_to_go, actions = run_graph(exported[name], batch, 100)
    assert actions.dtype == np.float32
    expected = predict_all(build(name), observations, returns_to_go, actions)
    np.testing.assert_allclose(actions, expected, rtol=0, atol=2e-4)
    assert actions.std((0, 1)).min() > 0.02


@pytest.mark.parametrize("name", SHAPES)
def test_rows_of_the_graph_do_not_depend_on_each_other(exported, name):
    session = onnxruntime.InferenceSession(exported[name] / "agent.onnx", providers=["CPUExecutionProvider"])
    rng, start = np.random.default_rng(3), np.array(card_of(exported[name])["state_start"])
    # One row at its start beside rows under way.
    state = np.abs(rng.normal(size=(4, len(start))))
    state[:, 1], state[0] = [0, 1, 2, 3], start
    given = {
        "observation": rng.normal(size=(4, 4)).astype(np.float32),
        "reward": rng.normal(size=4).astype(np.float32),
        "state": state,
    }
    together = session.run(None, given)
    for row in range(4):
        alone = session.run(None, {part: array[row : row + 1] for part, array in given.items()})
        for ours, theirs in zip(alone, together, strict=True):
            np.testing.assert_allclose(ours[0], theirs[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_inputs_and_outputs_have_names_and_a_free_batch(exported, name):
    graph = onnx.load(exported[name] / "agent.onnx").graph
    size = len(card_of(exported[name])["state_start"])

    def shapes(parts):
        return {part.name: [d.dim_param or d.dim_value for d in part.type.tensor_type.shape.dim] for part in parts}

    batch = shapes(graph.input)["reward"][0]
    assert isinstance(batch, str)
    assert shapes(graph.input) == {"observation": [batch, 4], "reward": [batch], "state": [batch, size]}
    assert [part.name for part in graph.output] == ["action", "new_state"]
    dtypes = {part.name: part.type.tensor_type.elem_type for part in [*graph.input, *graph.output]}
    wide, narrow = onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT
    assert dtypes == {"observation": narrow, "reward": narrow, "state": wide, "action": narrow, "new_state": wide}
    onnx.checker.check_model(str(exported[name] / "agent.onnx"), full_check=True)


@pytest.mark.parametrize("name", SHAPES)
def test_the_card_says_all_that_running_the_graph_takes(exported, name):
    card = card_of(exported[name])
    assert {path.name for path in exported[name].iterdir()} == FILES
    expected = {
        "format": 5,
        "aaren_rl": __version__,
        "environment": {"id": "Hopper-v5", "kwargs": {"exclude": True}, "max_episode_steps": None, "wrappers": []},
        "dataset_id": "made-up/tiny-v0",
        "source": "bundled",
        "target_returns": [100.0, 50.0],
        "updates": 7,
        "int8": False,
        "acting": "stream",
        "data_returns": [],
        "observation_space": Box.unbounded((4,)).to_json(),
        "action_space": Box.bounded([-1.0, 0.0], [1.0, 5.0]).to_json(),
        "longest_episode": 300 if name == "small" else None,
        "return_to_go_at": 0,
        "timestep_at": 1,
        "mixers_at": 4,
    }
    assert {key: card[key] for key in expected} == expected
    # In each block, the sums of 16 values and a count (and a maximum) per head. Of the ordered, one block has 3 tokens
    # before them, and two means with their normalisers per head; the other has 2 tokens.
    blocks = {
        "large": 2 * (16 + 4),
        "behind": 16 + 2,
        "small": 16 + 2,
        "ordered": (3 * 16 + 2 * 16 + 4) + (2 * 16 + 16 + 4),
    }
    # Before them, return-to-go, timestep and 2 of the action.
    assert len(card["state_start"]) == 4 + blocks[name]
    assert card["state_start"][:4] == [0.0, 0.0, 0.0, 2.5]
    assert 0 < card["largest_difference"] <= 1e-4
    assert re.fullmatch(r"[0-9a-f]{64}", card["sha256"]["agent.onnx"])
    # Plain JSON, which has no infinities.
    assert not re.search("NaN|Infinity", (exported[name] / "export.json").read_text())


def test_blocks_of_different_mixers_are_exported(make_model, tmp_path):
    """Of three tokens a step, the first missing at the start; each mixer alone is in test_mixer_models.py."""
    model = make_model(mixer="gru,lstm,mingru,minlstm,perceiver,none,local", blocks=7)
    to_onnx(model, CARD, tmp_path / "out")
    for batch in (1, 3):
        observations, returns_to_go, actions = run_graph(tmp_path / "out", batch, 60)
        np.testing.assert_allclose(actions, predict_all(model, observations, returns_to_go, actions), rtol=0, atol=2e-4)
        assert actions.std((0, 1)).min() > 0.01


WITHOUT_TORCH = """
import json, sys
for name in ("torch", "aaren_rl", "gymnasium", "safetensors", "onnx"):
    sys.modules[name] = None
import numpy as np
import onnxruntime

folder = sys.argv[1]
card = json.load(open(folder + "/export.json"))
session = onnxruntime.InferenceSession(folder + "/agent.onnx", providers=["CPUExecutionProvider"])
state = np.array([card["state_start"]])
state[:, card["return_to_go_at"]] = card["target_returns"][0]
for t in range(5):
    observation, reward = np.full((1, *card["observation_space"]["shape"]), t, np.float32), np.full(1, t, np.float32)
    action, state = session.run(None, {"observation": observation, "reward": reward, "state": state})
    print(json.dumps(action[0].tolist()))
assert not {name for name in sys.modules if name.split(".")[0] == "torch" and sys.modules[name]}
"""


def test_the_graph_runs_where_there_is_no_torch(exported):
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(exported["large"])], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    actions = np.array([json.loads(line) for line in ran.stdout.splitlines()])
    returns_to_go = 100.0 - np.arange(5).cumsum()[None]
    observations = np.tile(np.arange(5.0)[:, None], 4)[None]
    np.testing.assert_allclose(
        actions, predict_all(build("large"), observations, returns_to_go, actions[None])[0], rtol=0, atol=2e-4
    )


def test_int8_stores_the_perceptrons_in_8_bits_and_stays_near(exported, quick, tmp_path):
    to_onnx(quick, CARD, tmp_path / "int8", int8=True)
    card, plain = card_of(tmp_path / "int8"), card_of(exported["large"])
    assert card["int8"]
    assert card["sha256"]["agent.onnx"] != plain["sha256"]["agent.onnx"]
    for key in (
        "environment",
        "target_returns",
        "observation_space",
        "action_space",
        "state_start",
        "longest_episode",
        "mixers_at",
    ):
        assert card[key] == plain[key], key
    graphs = [folder / "agent.onnx" for folder in (tmp_path / "int8", exported["large"])]
    quantised, float32 = ([node.op_type for node in onnx.load(graph).graph.node] for graph in graphs)
    # Two layers of each of two perceptrons.
    assert quantised.count("MatMulInteger") == 4
    assert "MatMulInteger" not in float32
    assert graphs[0].stat().st_size < graphs[1].stat().st_size
    observations, returns_to_go, actions = run_graph(tmp_path / "int8", 3, 100)
    expected = predict_all(quick, observations, returns_to_go, actions)
    share = np.abs(actions - expected).max() / 2.5
    assert 1e-5 < share < 0.3
    assert 1e-5 < card["largest_difference"] < 0.3


def test_int8_of_actions_that_are_no_numbers_is_refused(quick, monkeypatch, tmp_path):
    monkeypatch.setattr(export, "largest_difference", lambda *given: float("inf"))
    with pytest.raises(ExportFailed):
        to_onnx(quick, CARD, tmp_path / "out", int8=True)
    assert list(tmp_path.iterdir()) == []


def test_options_of_models_are_exported(make_model, tmp_path):
    """The export itself holds the graph to the model, over an episode with rewards."""
    options = {"mixer": "aaren(recency=true)", "reward": True, "norm": "post"}
    options |= {"timesteps": "first", "previous_action": False}
    to_onnx(make_model(blocks=1, **options), CARD, tmp_path / "exported")
    assert card_of(tmp_path / "exported")["largest_difference"] < 1e-4


def test_an_agent_that_recomputes_a_window_is_refused(make_model, tmp_path):
    with pytest.raises(InvalidInput, match="acts by window:20, which is no single step"):
        to_onnx(make_model(), replace(CARD, acting="window:20"), tmp_path / "exported")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("int8", [False, True])
def test_a_mixer_whose_state_grows_is_refused_unwritten(make_model, tmp_path, int8):
    with pytest.raises(InvalidInput, match="state of mixer 'softmax' grows"):
        to_onnx(make_model(mixer="softmax"), CARD, tmp_path / "out", int8)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", [["onnx"], ["onnxscript"], ["onnx", "onnxruntime"]])
def test_a_missing_package_is_named_with_the_way_to_install_it(quick, monkeypatch, tmp_path, missing):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else real(name))
    with pytest.raises(InvalidInput) as caught:
        to_onnx(quick, CARD, tmp_path / "out")
    assert f"exported agents need {', '.join(missing)};" in str(caught.value)
    assert ".venv/bin/pip install '.[export]'" in str(caught.value)
    assert str(caught.value).endswith(f"pip install {' '.join(missing)}")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_does_something_else_is_not_written(quick, monkeypatch, tmp_path):
    to_onnx(quick, CARD, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    other = copy.deepcopy(quick)
    with torch.no_grad():
        # As little as a thousandth of an action's range.
        other.head.linear.bias.add_(2e-3)
    with pytest.raises(ExportFailed, match=r"over 20 steps the graph's actions differ from torch's by up to \d\.\de-"):
        to_onnx(other, CARD, tmp_path / "out")
    monkeypatch.setattr("aaren_rl.stepping.exported.LARGEST_DIFFERENCE", 0.0)
    for folder in ("out", "new"):
        with pytest.raises(ExportFailed):
            to_onnx(quick, CARD, tmp_path / folder)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_with_other_files_is_left_alone(quick, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="exists and is not an exported agent's folder; it is left alone"):
        to_onnx(quick, CARD, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_weights_of_an_agent_are_not_replaced_by_its_export(quick, tmp_path):
    save_agent(tmp_path / "agent", quick, CARD)
    with pytest.raises(CheckpointError):
        to_onnx(quick, CARD, tmp_path / "agent")
    load_agent(tmp_path / "agent")


def test_an_earlier_export_is_replaced(quick, tmp_path):
    to_onnx(quick, CARD, tmp_path / "out", int8=True)
    to_onnx(quick, AgentCard(EnvironmentSpec("Other-v0"), "d", "bundled", (1.0,)), tmp_path / "out")
    card = card_of(tmp_path / "out")
    assert (card["environment"]["id"], card["int8"], card["target_returns"]) == ("Other-v0", False, [1.0])
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_folders_above_are_made(quick, tmp_path):
    assert to_onnx(quick, CARD, tmp_path / "a" / "b") == tmp_path / "a" / "b" / "agent.onnx"
    assert card_of(tmp_path / "a" / "b")["sha256"]


def test_exporting_leaves_weights_and_random_state_alone(quick, tmp_path):
    weights, random = {name: part.clone() for name, part in quick.state_dict().items()}, torch.get_rng_state()
    to_onnx(quick, CARD, tmp_path / "out", int8=True)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(part, weights[name]) for name, part in quick.state_dict().items())
    assert torch.is_grad_enabled()


def test_an_embedding_shorter_than_the_check_is_exported(exported, monkeypatch, tmp_path):
    """The check may not run past the longest episode."""
    monkeypatch.setattr(aaren_stepper, "NARROW", -1.0)
    monkeypatch.setattr(export, "STEPS", 400)
    graph = (exported["small"] / "agent.onnx").read_bytes()
    monkeypatch.setattr(export, "_graph", lambda step: graph)
    to_onnx(build("small"), CARD, tmp_path / "out")
    assert card_of(tmp_path / "out")["longest_episode"] == 300
