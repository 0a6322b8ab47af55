"""Exported torch programs against the agents that they are of, for every mixer and kind of space."""

import copy
import io
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from small_steps import SCALING, build

import aaren_rl
from aaren_rl import mixers
from aaren_rl.agents import DecisionAgent, TorchAgent
from aaren_rl.checkpoint import AgentCard, card_digest, digest, load_agent, save_agent
from aaren_rl.errors import CheckpointError, InvalidInput
from aaren_rl.scripts import evaluate
from aaren_rl.stepping import ModelStepper
from aaren_rl.stepping.exported import ExportFailed
from aaren_rl.stepping.torch_program import to_torch

CARD = AgentCard(None, "made-up/tiny-v0", "bundled", (100.0, 50.0), 7)
SHAPES = {
    **{name: {"mixer": name} for name in mixers.names() if mixers.get(name).memory != "growing"},
    "interleaved": {"layout": "interleaved", "timesteps": "sinusoidal", "reward": True},
    "post-norm": {"norm": "post", "timesteps": "learned", "max_steps": 300},
    "behind": {"condition": "norm", "reach": True},
    "several": {"mixer": "aaren(recency=true),local:4,gated-aaren", "heads": 2, "blocks": 3, "layout": "interleaved"},
}
GOES_ON = np.zeros(2, np.bool_)
QUICK = ("aaren", "gated-aaren", "local", "behind", "several")


def observe(rng, rows):
    return rng.normal(SCALING.observation_mean, SCALING.observation_std, (rows, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The agent and its export, to read only."""
    folder = tmp_path_factory.mktemp("exported")
    save_agent(folder / "last", build(), CARD)
    to_torch(build(), CARD, folder / "last-torch")
    return folder


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in SHAPES]
)
def test_every_mixer_acts_like_the_agent(name, tmp_path):
    model = build(**SHAPES[name])
    to_torch(model, CARD, tmp_path / "out")
    agents, rng = (DecisionAgent(model, CARD), TorchAgent(tmp_path / "out")), np.random.default_rng(0)
    acted = []
    for rows in (1, 5):
        for agent in agents:
            agent.reset(np.linspace(60.0, 140.0, rows), rows)
        for t in range(70):
            given = observe(rng, rows), rng.random(rows) if t else None
            # Episodes of some rows end on the way.
            ended = (np.arange(rows) + t) % 23 == 22 if rows > 1 else np.zeros(1, np.bool_)
            theirs, ours = (agent.act(*given, ended, np.zeros(rows, np.bool_)) for agent in agents)
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
            acted.extend(theirs)
    assert np.ptp(acted, 0).min() > 1e-3


ALONE = """
import json, sys
sys.modules["aaren_rl"] = None
import torch

folder = sys.argv[1]
card = json.load(open(folder + "/export.json"))
step = torch.export.load(folder + "/agent.pt2").module()
state = torch.tensor([card["state_start"]], dtype=torch.float64).repeat(2, 1)
state[:, card["return_to_go_at"]] = card["target_returns"][0]
with torch.no_grad():
    for t in range(30):
        action, state = step(torch.full((2, 4), float(t % 5)), torch.full((2,), 0.5 * (t > 0)), state)
        print(json.dumps(action.tolist()))
"""


def test_a_process_without_this_package_acts_by_it(folder):
    ran = subprocess.run(
        [sys.executable, "-c", ALONE, folder / "last-torch"], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    agent = aaren_rl.load(folder / "last")
    agent.reset(num_envs=2)
    for t, line in enumerate(ran.stdout.splitlines()):
        expected = agent.act(np.full((2, 4), t % 5), np.full(2, 0.5) if t else None, GOES_ON, GOES_ON)
        np.testing.assert_allclose(json.loads(line), expected, rtol=0, atol=1e-5)
    assert t == 29


def test_the_card_describes_the_program(folder):
    out = folder / "last-torch"
    assert {path.name for path in out.iterdir()} == {"agent.pt2", "export.json"}
    card = json.loads((out / "export.json").read_text())
    assert (card["int8"], card["torch"], card["target_returns"]) == (False, torch.__version__, [100.0, 50.0])
    assert 0 <= card["largest_difference"] < 1e-4
    assert TorchAgent(out).card == CARD


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda agent: pickle.loads(pickle.dumps(agent))], ids=["deepcopy", "pickle"]
)
def test_a_copy_goes_on_in_mid_episode(folder, copied):
    agent, rng = TorchAgent(folder / "last-torch", acting="reset:3", renew=2), np.random.default_rng(0)
    agent.reset(100.0, 2)
    steps = [(observe(rng, 2), rng.random(2), GOES_ON, GOES_ON) for _ in range(8)]
    agent.act(steps[0][0])
    agent.act(*steps[1])
    other = copied(agent)
    actions = [other.act(*step) for step in steps[2:]]
    np.testing.assert_array_equal([agent.act(*step) for step in steps[2:]], actions)


def test_what_has_no_program_is_refused_unwritten(tmp_path):
    with pytest.raises(InvalidInput, match="the state of mixer 'softmax' grows"):
        to_torch(build(mixer="softmax"), CARD, tmp_path / "out")
    with pytest.raises(InvalidInput, match="acts by window:20, which is no single step"):
        to_torch(build(), AgentCard(None, "x", "arrays", (1.0,), acting="window:20"), tmp_path / "out")
    save_agent(tmp_path / "agent", build(), CARD)
    with pytest.raises(CheckpointError, match="is not an exported agent's folder; it is left alone"):
        to_torch(build(), CARD, tmp_path / "agent")
    load_agent(tmp_path / "agent")
    assert [path.name for path in tmp_path.iterdir()] == ["agent"]


def test_a_program_that_parts_from_the_model_is_not_written(tmp_path, monkeypatch):
    other = build()
    with torch.no_grad():
        other.head.linear.bias.add_(2e-3)
    step = ModelStepper(other)
    monkeypatch.setattr("aaren_rl.stepping.torch_program.ModelStepper", lambda model: step)
    with pytest.raises(
        ExportFailed, match=r"over 200 steps the program's actions differ from torch's by up to \d\.\de-"
    ):
        to_torch(build(), CARD, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_altered_folders_are_refused_unopened(folder, tmp_path):
    changed = tmp_path / "out"
    changed.mkdir()
    content = bytearray((folder / "last-torch" / "agent.pt2").read_bytes())
    content[len(content) // 2] ^= 1
    (changed / "agent.pt2").write_bytes(content)
    card = (folder / "last-torch" / "export.json").read_text()
    (changed / "export.json").write_text(card)
    with pytest.raises(CheckpointError, match="is not as it was exported"):
        TorchAgent(changed)
    (changed / "agent.pt2").unlink()
    with pytest.raises(CheckpointError, match=r"agent\.pt2 cannot be read"):
        TorchAgent(changed)


def sign(folder, content):
    """Puts another program into a folder whose digests then fit."""
    (folder / "agent.pt2").write_bytes(content)
    card = json.loads((folder / "export.json").read_text())
    card["sha256"] = {"agent.pt2": digest(content)}
    card["sha256"]["export.json"] = card_digest(card, "agent.pt2")
    (folder / "export.json").write_text(json.dumps(card))


@pytest.mark.parametrize("content", [b"", b"no program", b"PK\x03\x04" * 50])
def test_a_signed_file_that_is_no_program_is_one_error(tmp_path, folder, content):
    (tmp_path / "export.json").write_text((folder / "last-torch" / "export.json").read_text())
    sign(tmp_path, content)
    with pytest.raises(CheckpointError, match=r"torch cannot load agent\.pt2: "):
        TorchAgent(tmp_path)


def test_a_program_of_another_torch_names_both_versions(tmp_path, folder):
    card = json.loads((folder / "last-torch" / "export.json").read_text())
    (tmp_path / "export.json").write_text(json.dumps({**card, "torch": "9.9.0"}))
    sign(tmp_path, b"of a format that this torch does not know")
    with pytest.raises(CheckpointError, match=rf"exported by torch 9\.9\.0, this is {re.escape(torch.__version__)}"):
        TorchAgent(tmp_path)


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (self.file,)


def test_code_in_a_program_runs_only_when_it_was_asked_for(tmp_path, folder, command):
    """torch.export.load unpickles; what stops a stranger's program is that nobody loads it unasked."""
    flag, hostile, pickled = tmp_path / "ran", tmp_path / "hostile", io.BytesIO()
    hostile.mkdir()
    (hostile / "export.json").write_text((folder / "last-torch" / "export.json").read_text())
    torch.save(Touch(str(flag)), pickled)
    program, changed = zipfile.ZipFile(folder / "last-torch" / "agent.pt2"), io.BytesIO()
    with zipfile.ZipFile(changed, "w") as written:
        for name in program.namelist():
            written.writestr(name, pickled.getvalue() if "sample_inputs" in name else program.read(name))
    sign(hostile, changed.getvalue())
    with pytest.raises(InvalidInput, match=r"a torch program, which can run code as it is loaded; .*TorchAgent\("):
        aaren_rl.load(hostile)
    status, _, errors = command(evaluate.main, hostile, "--env-id", "Hopper-v5")
    assert status == 2
    assert "pass --run-code" in errors
    assert not flag.exists()
    with pytest.raises(CheckpointError):
        TorchAgent(hostile)
    assert flag.exists()
