"""What holds for the project as a whole: the README's code runs, imports go one way, nothing unpickles."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aaren_rl.agents import DecisionAgent
from aaren_rl.checkpoint import AgentCard
from aaren_rl.model import DecisionModel, ModelConfig, Scaling

ROOT = Path(__file__).parents[1]
ROOMS = {"aaren_rl": set(), "envs": {"aaren_rl"}, "agents": {"aaren_rl"}, "scripts": {"aaren_rl", "envs", "agents"}}


def test_readme_example_runs(tmp_path):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)
    scaling = Scaling(np.zeros(11, "f4"), np.ones(11, "f4"), -np.ones(3, "f4"), np.ones(3, "f4"))
    model = DecisionModel(ModelConfig(width=16, blocks=1), scaling)
    DecisionAgent(model, AgentCard("Hopper-v5", "none", "bundled", (3600.0,))).save(
        tmp_path / "runs" / "hopper-medium" / "last"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert re.search(r"return -?\d+, state \d+ bytes", ran.stdout)


def test_the_mixer_of_the_docs_is_one(tmp_path):
    """In a process of its own, since it registers a name."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "mixers.md").read_text(), re.DOTALL).group(1)
    check = """
from aaren_rl import mixers
mixer = mixers.build("average", 6, 1).double()
x = torch.randn(2, 9, 6, dtype=torch.float64)
reset, valid = torch.zeros(2, 9, dtype=torch.bool), torch.ones(2, 9, dtype=torch.bool)
reset[0, 4], valid[1, :3] = True, False
x[1, :3] = torch.nan
outputs, after = mixer(x, None, reset, valid)
states = [mixer.initial_state(1).double()] * 2
for row, start in ((0, 0), (0, 4), (1, 3)):
    state = mixer.initial_state(1)
    for t in range(start, 9):
        y, state = mixer.step(x[row : row + 1, t], state)
        if row == 1 or start == 4 or t < 4:
            torch.testing.assert_close(outputs[row, t], y[0])
    states[row] = state
torch.testing.assert_close(after, torch.cat(states))
print("the same")
"""
    ran = subprocess.run([sys.executable, "-c", code + check], cwd=tmp_path, capture_output=True, text=True)
    assert ran.stdout == "the same\n", ran.stderr


def imported_rooms(path):
    """The rooms that a source file imports from."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "aaren_rl":
                yield parts[1] if len(parts) > 1 and parts[1] in ROOMS else "aaren_rl"


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_one_way(room):
    for path in (ROOT / room).rglob("*.py"):
        beyond = set(imported_rooms(path)) - ROOMS[room] - {room}
        assert not beyond, f"{path.relative_to(ROOT)} imports from {beyond}"


def test_nothing_is_unpickled():
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            assert not re.search(r"torch\.load\(|import pickle|allow_pickle=True|joblib", path.read_text())


@pytest.mark.parametrize(
    "script", ["train", "evaluate", "collect", "compare", "memory", "mixers", "train_behaviour", "benchmark"]
)
def test_every_command_line_explains_itself(script, tmp_path):
    environment = {**os.environ, "COLUMNS": "120"}
    ran = subprocess.run(
        [sys.executable, ROOT / "scripts" / f"{script}.py", "--help"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert script in ran.stdout.split("\n")[0]
    assert list(tmp_path.iterdir()) == []
