import copy
import hashlib
import json
import random
import resource
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers import draw_segment, predict
from safetensors.torch import load_file, save_file

import aaren_rl
from aaren_rl.checkpoint import AgentCard, load_agent, save_agent
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.reference import RECORDED, Reference
from aaren_rl.data.spaces import Box
from aaren_rl.errors import CheckpointError, InvalidInput


@pytest.fixture
def saved(tmp_path, make_model, card):
    folder = tmp_path / "agent"
    save_agent(folder, make_model(), card)
    return folder


def rewrite_card(folder, sign=True, **changes):
    """Changes an agent.json, and its digest with it, as another version of the code might have written it."""
    path = folder / "agent.json"
    description = {**json.loads(path.read_text()), **changes}
    if sign:
        weights = {"model.safetensors": description["sha256"].get("model.safetensors")}
        content = json.dumps({**description, "sha256": weights}, sort_keys=True).encode()
        description["sha256"] = {**weights, "agent.json": hashlib.sha256(content).hexdigest()}
    path.write_text(json.dumps(description))


def same_weights(ours, theirs):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@contextmanager
def files_no_larger_than(size):
    """The kernel refuses to let files grow past this many bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layout": "fused", "timesteps": "sinusoidal"},
        {"mixer": "softmax", "timesteps": "learned", "max_steps": 30, "heads": 4, "dropout": 0.25},
    ],
)
def test_what_is_loaded_is_what_was_saved_bit_for_bit(tmp_path, make_model, card, changes):
    model = make_model(**changes)
    save_agent(tmp_path / "deep" / "agent", model, card)
    loaded, loaded_card = load_agent(tmp_path / "deep" / "agent")
    assert loaded_card == card
    assert loaded.config == model.config
    assert same_weights(loaded, model)
    assert not loaded.training
    assert (loaded.observation_space, loaded.action_space) == (model.observation_space, model.action_space)
    assert torch.equal(predict(loaded, draw_segment(9)), predict(model, draw_segment(9)))


def test_a_saved_agent_is_two_files_and_nothing_beside_them(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["agent.json", "model.safetensors"]
    assert [path.name for path in saved.parent.iterdir()] == ["agent"]
    assert json.loads((saved / "agent.json").read_text())["aaren_rl"] == aaren_rl.__version__


def test_the_same_agent_is_saved_as_the_same_bytes(tmp_path, saved, make_model, card):
    save_agent(tmp_path / "again", make_model(), card)
    for name in ("agent.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


@pytest.mark.parametrize("name", ["agent.json", "model.safetensors"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load_agent(saved)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere.*is missing"):
        load_agent(tmp_path / "nowhere")


@pytest.mark.parametrize("at", [0, 100, -1])
def test_one_altered_byte_of_the_weights_is_found(saved, at):
    path = saved / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is not the file that was saved"):
        load_agent(saved)


@pytest.mark.parametrize("name", ["agent.json", "model.safetensors"])
@pytest.mark.parametrize("kept", [0, 50, -1])
def test_a_truncated_file_is_found(saved, name, kept):
    path = saved / name
    # The file of JSON ends in a newline, which means nothing.
    path.write_bytes(path.read_bytes().rstrip()[:kept])
    with pytest.raises(CheckpointError, match=name):
        load_agent(saved)


@pytest.mark.parametrize("version", [0, 1, 2, 3, 4, 6, None, "5"])
def test_another_format_version_is_refused(saved, version):
    rewrite_card(saved, format=version, aaren_rl="0.1.7")
    message = f"has format {version}, written by aaren-rl 0.1.7; this version .* reads format 5 only: train the agent"
    with pytest.raises(CheckpointError, match=message):
        load_agent(saved)


def test_an_agent_folder_of_format_2_is_refused_by_name(tmp_path):
    """A card as version 0.1.0 wrote it, which knew sizes and bounds and no spaces."""
    folder = tmp_path / "agent"
    folder.mkdir()
    card = {
        "format": 2,
        "aaren_rl": "0.1.0",
        "model": {"mixer": "aaren", "blocks": 3, "width": 128, "recency": False},
        "observation_size": 11,
        "action_size": 3,
        "env_id": "Hopper-v5",
        "dataset_id": "mujoco/hopper/medium-v0",
        "source": "minari",
        "target_returns": [3600.0],
        "env_kwargs": {},
        "updates": 2500,
        "acting": "stream",
        "data_returns": [],
        "sha256": {},
    }
    (folder / "agent.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError) as caught:
        load_agent(folder)
    assert str(folder / "agent.json") in str(caught.value)
    assert "has format 2, written by aaren-rl 0.1.0" in str(caught.value)
    assert "train the agent again, or load it with the version that wrote it" in str(caught.value)


@pytest.mark.parametrize("content", ["[]", '"agent"', "3", "null"])
def test_a_card_that_is_no_object_is_refused(saved, content):
    (saved / "agent.json").write_text(content)
    with pytest.raises(CheckpointError, match="expected a JSON object"):
        load_agent(saved)


def test_a_card_that_is_not_text_is_refused(saved):
    (saved / "agent.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_agent(saved)


@pytest.mark.parametrize("changes", [{"target_returns": [1e9]}, {"environment": None}, {"updates": 8}])
def test_an_altered_card_is_found(saved, changes):
    rewrite_card(saved, **changes)
    load_agent(saved)
    rewrite_card(saved, sign=False, dataset_id="another")
    with pytest.raises(CheckpointError, match="is not as it was saved"):
        load_agent(saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"observation_space": Box.unbounded((5,)).to_json()},
        {"observation_space": Box.unbounded((2, 2)).to_json()},
        {"observation_space": {"type": "later"}},
        {"action_space": None},
        {"action_space": Box.bounded([-1.0] * 3, [1.0] * 3).to_json()},
        {"action_space": Box.unbounded((2,)).to_json()},
        {"model": {"width": 16}},
        {"model": {"depth": 3}},
        {"model": {"mixer": "later"}},
        {"model": None},
        {"target_returns": 3},
        {"sha256": {}},
    ],
)
def test_a_card_that_does_not_fit_its_weights_is_refused(saved, changes):
    rewrite_card(saved, **changes)
    with pytest.raises(CheckpointError):
        load_agent(saved)


@pytest.mark.parametrize(
    "name", ["model", "environment", "target_returns", "observation_space", "action_space", "sha256"]
)
def test_a_card_without_a_field_is_refused(saved, name):
    description = json.loads((saved / "agent.json").read_text())
    del description[name]
    (saved / "agent.json").write_text(json.dumps(description))
    with pytest.raises(CheckpointError):
        load_agent(saved)


@pytest.mark.parametrize("digest", [None, "abc", []])
def test_a_card_whose_digest_is_no_object_is_refused(saved, digest):
    rewrite_card(saved, sign=False, sha256=digest)
    with pytest.raises(CheckpointError):
        load_agent(saved)


def test_saving_replaces_the_whole_folder(saved, make_model, card):
    (saved / "training.json").write_text("{}")  # a checkpoint's, that has nothing to do with the new agent
    model = make_model(seed=1, layout="fused")
    save_agent(saved, model, card)
    assert sorted(path.name for path in saved.iterdir()) == ["agent.json", "model.safetensors"]
    assert [path.name for path in saved.parent.iterdir()] == ["agent"]
    assert same_weights(load_agent(saved)[0], model)


def test_a_folder_of_something_else_is_left_alone(tmp_path, make_model, card):
    thesis = tmp_path / "work" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("years of it")
    for folder in (thesis.parent, thesis):
        with pytest.raises(CheckpointError, match="is not an agent folder; it is left alone"):
            save_agent(folder, make_model(), card)
    assert [path.name for path in tmp_path.rglob("*")] == ["work", "thesis.tex"]
    assert thesis.read_text() == "years of it"


def test_an_empty_folder_is_taken(tmp_path, make_model, card):
    (tmp_path / "agent").mkdir()
    save_agent(tmp_path / "agent", make_model(), card)
    assert load_agent(tmp_path / "agent")[1] == card


@pytest.mark.parametrize("size", [0, 1000])
def test_a_failing_write_leaves_the_old_folder_alone(saved, make_model, card, size):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with files_no_larger_than(size), pytest.raises(CheckpointError, match="nothing was changed there"):
        save_agent(saved, make_model(seed=1), card)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["agent"]
    # With room again, the same call works.
    save_agent(saved, make_model(seed=1), card)
    assert same_weights(load_agent(saved)[0], make_model(seed=1))


def test_a_failing_first_write_leaves_nothing(tmp_path, make_model, card):
    with files_no_larger_than(1000), pytest.raises(CheckpointError, match="could not be written"):
        save_agent(tmp_path / "agent", make_model(), card)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path, make_model, card):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="could not be written"):
        save_agent(tmp_path / "file" / "agent", make_model(), card)


def test_a_card_keeps_its_defaults(tmp_path, make_model):
    card = AgentCard(EnvironmentSpec("Ant-v5"), "data", "minari", (1.0,))
    save_agent(tmp_path / "agent", make_model(), card)
    assert load_agent(tmp_path / "agent")[1] == card
    assert (card.data_returns, card.updates) == ((), 0)


def test_a_card_may_have_no_environment(tmp_path, make_model):
    card = AgentCard(None, "mine", "arrays", (1.0,))
    save_agent(tmp_path / "agent", make_model(), card)
    assert load_agent(tmp_path / "agent")[1] == card


def test_a_card_keeps_the_returns_that_its_data_record(tmp_path, make_model):
    card = AgentCard(EnvironmentSpec("Ant-v5"), "data", "minari", (1.0,), reference=Reference(RECORDED, -1.0, 8.5))
    save_agent(tmp_path / "agent", make_model(), card)
    assert load_agent(tmp_path / "agent")[1] == card


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ({"random": 1.0, "expert": 1.0}, "expert is 1.0 and random 1.0; expected it to be above"),
        ({"random": 1.0}, "expert is None; expected a finite number"),
        ([1.0, 2.0], r"saved as \[1.0, 2.0\]"),
    ],
)
def test_reference_returns_that_are_no_measure_are_refused(saved, reference, why):
    rewrite_card(saved, reference=reference)
    with pytest.raises(CheckpointError, match=why):
        load_agent(saved)


def test_reference_returns_of_a_folder_never_bear_the_name_of_a_table(saved):
    rewrite_card(saved, reference={"name": "D4RL v2", "random": 0.0, "expert": 1.0})
    assert load_agent(saved)[1].reference == Reference(RECORDED, 0.0, 1.0)


def test_a_card_without_target_returns_is_refused():
    with pytest.raises(InvalidInput, match="target_returns is empty"):
        AgentCard(EnvironmentSpec("Ant-v5"), "data", "minari", ())


def test_the_card_describes_the_spaces(saved, make_model):
    model, description = make_model(), json.loads((saved / "agent.json").read_text())
    assert description["format"] == 5
    for name in ("observation_space", "action_space"):
        assert description[name] == getattr(model, name).to_json()


def sign_weights(folder, change):
    """Changes the weights of an agent, and the digests with them, as another program might have written them."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    digests = {"model.safetensors": hashlib.sha256(path.read_bytes()).hexdigest()}
    rewrite_card(folder, sha256=digests)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("which", ["weight", "scaling"])
def test_weights_and_scaling_that_are_not_finite_are_refused_by_name(saved, which, value):
    names = list(load_file(saved / "model.safetensors"))
    # Scaling is the buffers, all of them of the inputs.
    parameters = {name for name, _ in load_agent(saved)[0].named_parameters()}
    name = next(each for each in names if (each in parameters) == (which == "weight"))
    sign_weights(saved, lambda tensors: tensors[name].flatten()[:1].fill_(value))
    with pytest.raises(CheckpointError, match=f"the weight {name} holds a NaN or an infinite value"):
        load_agent(saved)


@pytest.mark.parametrize(
    ("name", "value"),
    [("inputs.return_scale", 0.0), ("inputs.reward_scale", -1.0), ("inputs.observation.std", -0.5)],
)
def test_scaling_that_nothing_can_be_divided_by_is_refused(saved, name, value):
    sign_weights(saved, lambda tensors: tensors[name].fill_(value))
    with pytest.raises(CheckpointError, match=f"the scaling {name} (is|holds) {value:g}, expected"):
        load_agent(saved)


def overflowing(dimensions):
    def change(tensors):
        for name, tensor in tensors.items():
            if tensor.ndim == dimensions and name.endswith("weight"):
                tensor.fill_(3e38)

    return change


@pytest.mark.parametrize("change", [overflowing(2), overflowing(1)], ids=["layers", "norms"])
def test_finite_weights_that_act_in_nan_are_refused(saved, change):
    sign_weights(saved, change)
    with pytest.raises(CheckpointError, match="the action of its first step is not finite"):
        load_agent(saved)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_agent_that_is_not_finite_is_never_saved(saved, make_model, card, value):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    model = make_model(seed=1)
    torch.nn.init.constant_(model.head.linear.bias, value)
    with pytest.raises(CheckpointError, match=r"is not saved: its weight head.linear.bias holds a NaN or an infinite"):
        save_agent(saved, model, card)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("head.linear.bias"), "the weight head.linear.bias is missing"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), "the weight more is unknown"),
        (
            lambda tensors: tensors.update({"head.linear.bias": torch.zeros(3)}),
            "head.linear.bias is float32 of shape \\(3,\\), expected float32 of shape \\(2,\\)",
        ),
        (
            lambda tensors: tensors.update({"head.linear.bias": torch.zeros(2, dtype=torch.float64)}),
            "head.linear.bias is float64 of shape",
        ),
    ],
)
def test_weights_of_another_model_are_named(saved, change, message):
    sign_weights(saved, change)
    with pytest.raises(CheckpointError, match=message):
        load_agent(saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 10**6},
        {"width": 10**12},
        {"blocks": 10**9},
        {"heads": 16, "width": 16 * 10**5},
        {"mixer": "fnet(window=100000)"},
        {"mixer": "performer(features=1000000000)"},
        {"mixer": "local:2000000000"},
        {"mixer": "reformer(chunk=1000000000)"},
        {"timesteps": "learned", "max_steps": 10**12},
        {"timesteps": "learned", "max_steps": 10**30},
    ],
    ids=str,
)
def test_a_small_card_that_asks_for_much_memory_is_refused_before_it_is_allocated(saved, changes):
    description = json.loads((saved / "agent.json").read_text())
    rewrite_card(saved, model={**description["model"], **changes})
    limit, before = 2**30, resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + limit, before[1]))
    began = time.monotonic()
    try:
        with pytest.raises(CheckpointError, match="does not hold the agent that its agent.json describes"):
            load_agent(saved)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    "changes",
    [
        {"target_returns": [float("nan")]},
        {"target_returns": [float("inf"), 1.0]},
        {"target_returns": ["100"]},
        {"target_returns": [100.0, "50"]},
        {"target_returns": [1e308]},
        {"target_returns": [10**400]},
        {"target_returns": []},
        {"target_returns": None},
        {"data_returns": [float("nan")]},
        {"data_returns": "many"},
        {"dataset_id": ["a"]},
        {"source": 3},
        {"updates": "7"},
        {"updates": 1.5},
        {"acting": 20},
        {"observation_space": {"type": "box", "shape": [-2, -2], "dtype": "float32", "low": [0] * 4, "high": [1] * 4}},
        {"observation_space": {"type": "box", "shape": [10**9, 10**9], "dtype": "float32", "low": [], "high": []}},
        {"action_space": {"type": "box", "shape": [2], "dtype": "float32", "low": [None, "x"], "high": [1, 1]}},
        {"action_space": {"type": "box", "shape": [2], "dtype": "float32", "low": [0, 0], "high": [1e300, 1e300]}},
        {"model": {"width": "16"}},
        {"model": {"previous_action": "no"}},
        {"model": {"dropout": None}},
        {"model": []},
    ],
    ids=str,
)
def test_a_card_of_odd_values_is_one_error(saved, changes):
    description = json.loads((saved / "agent.json").read_text())
    if isinstance(changes.get("model"), dict):
        changes = {"model": {**description["model"], **changes["model"]}}
    rewrite_card(saved, **changes)
    with pytest.raises(CheckpointError) as caught:
        load_agent(saved)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"format": ' + b"9" * 5000 + b"}", b'{"a":1}' * 2])
def test_json_that_overflows_its_reader_is_one_error(saved, content):
    (saved / "agent.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"agent\.json"):
        load_agent(saved)


HEADERS = [
    {"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}},
    {"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}},
    {"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 4]}},
    {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
    {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
    {"a": 3},
    [],
]


@pytest.mark.parametrize("header", HEADERS, ids=str)
def test_weights_with_an_odd_header_are_one_error(saved, header):
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(4)
    (saved / "model.safetensors").write_bytes(content)
    rewrite_card(saved, sha256={"model.safetensors": hashlib.sha256(content).hexdigest()})
    with pytest.raises(CheckpointError):
        load_agent(saved)


def test_random_changes_of_a_card_give_an_agent_or_one_error(saved):
    """Values of all depths replaced by odd ones, with digests that fit; an agent that is loaded acts on numbers."""
    description = json.loads((saved / "agent.json").read_text())
    odd = [
        None,
        True,
        -1,
        0,
        1,
        3.5,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "x",
        "\x1b[2J",
        [],
        {},
        [[]],
        10**12,
        10**40,
    ]
    rng, outcomes = random.Random(0), {"loaded": 0, "refused": 0}
    for _ in range(400):
        changed = copy.deepcopy(description)
        for _ in range(rng.randint(1, 2)):
            part, key = changed, rng.choice([name for name in changed if name not in ("sha256", "format")])
            while isinstance(part[key], (dict, list)) and part[key] and rng.random() < 0.8:
                part = part[key]
                key = rng.choice(list(part)) if isinstance(part, dict) else rng.randrange(len(part))
            part[key] = rng.choice(odd)
        rewrite_card(saved, **changed)
        refusal = None
        try:
            model, _ = load_agent(saved)
        except CheckpointError as error:
            refusal = str(error)
        if refusal is not None:
            assert refusal.isprintable()
            outcomes["refused"] += 1
        else:
            assert predict(model, draw_segment(3)).isfinite().all()
            outcomes["loaded"] += 1
    assert min(outcomes.values()) > 20, outcomes


@pytest.mark.parametrize("changes", [{}, {"mixer": "softmax"}, {"mixer": "gru"}, {"layout": "fused"}])
def test_an_agent_loaded_in_inference_mode_can_be_trained_outside_of_it(tmp_path, make_model, card, changes):
    save_agent(tmp_path / "agent", make_model(**changes), card)
    with torch.inference_mode():
        model, _ = load_agent(tmp_path / "agent")
        assert torch.is_inference_mode_enabled()
    for tensor in (*model.parameters(), *model.buffers()):
        assert not tensor.is_inference()
    loss, _ = model.train().loss(draw_segment(5))
    loss.backward()
    before = model.head.linear.weight.detach().clone()
    torch.optim.AdamW(model.parameters(), lr=0.1).step()
    assert not torch.equal(model.head.linear.weight, before)


def test_loading_takes_no_random_numbers_from_the_caller(saved):
    before = torch.get_rng_state()
    load_agent(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_source_of_the_installed_package_loads_pickles():
    sources = list(Path(aaren_rl.__file__).parent.rglob("*.py"))
    assert len(sources) > 5
    for path in sources:
        text = path.read_text("utf-8")
        assert "torch.load(" not in text, path
        assert "torch.save(" not in text, path
        assert "import pickle" not in text, path
        assert "allow_pickle=True" not in text, path
