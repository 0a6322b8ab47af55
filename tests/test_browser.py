"""The page of examples/browser: what prepares its agents, and the page itself in Chromium."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import aaren_rl
from aaren_rl.agents import DecisionAgent
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.stepping.exported import FORMAT

PAGE = Path(__file__).parents[1] / "examples" / "browser"
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")


@pytest.fixture
def page(tmp_path):
    """A copy of the page without what npm and prepare.py wrote."""
    return shutil.copytree(PAGE, tmp_path / "page", ignore=shutil.ignore_patterns("node_modules", "agents"))


def prepare(page, *arguments):
    return subprocess.run(
        [sys.executable, page / "prepare.py", *arguments], capture_output=True, text=True, timeout=120
    )


def save_with(folder, environment):
    """The agent of a folder with another environment, in a folder beside it."""
    agent = DecisionAgent.load(folder)
    agent.card = dataclasses.replace(agent.card, environment=environment)
    agent.save(folder.parent / "other")
    return folder.parent / "other"


def test_prepare_writes_what_the_page_reads(page, run_folder):
    done = prepare(page, run_folder / "last")
    assert done.returncode == 0, done.stderr
    folder = page / "agents" / "hopper"
    assert {file.name for file in folder.iterdir()} == {"step", "check.json", "hopper.xml"}
    episode = json.loads((folder / "check.json").read_text())
    agent = aaren_rl.load(folder / "step")
    agent.reset()
    for observation, reward, action in zip(*episode.values(), strict=True):
        np.testing.assert_allclose(agent.act(np.array(observation), reward), action, atol=1e-4)


OTHERS = [
    (EnvironmentSpec("Walker2d-v5"), "Walker2d-v5; this page has Hopper-v5 and aaren/PassiveTMaze-v0"),
    (EnvironmentSpec("Hopper-v5", {"ctrl_cost_weight": 1.0}), "this page has Hopper-v5 as it is registered"),
    (EnvironmentSpec("Hopper-v5", max_episode_steps=500), "this page has Hopper-v5 as it is registered"),
]


@pytest.mark.parametrize(("environment", "message"), OTHERS)
def test_prepare_refuses_agents_of_other_worlds(page, run_folder, environment, message):
    done = prepare(page, save_with(run_folder / "last", environment))
    assert done.returncode == 2
    assert message in done.stderr


def test_the_page_reads_exports_of_this_version():
    (written,) = re.findall(r"const FORMAT = (\d+);", (PAGE / "agent.js").read_text())
    assert int(written) == FORMAT


def test_prepare_without_agents_says_what_it_takes(page):
    done = prepare(page)
    assert done.returncode == 2
    assert "no agent is given; expected folders of agents for Hopper-v5 or aaren/PassiveTMaze-v0" in done.stderr


@pytest.mark.slow
def test_the_page_acts_in_chromium(page, tmp_path):
    """npm ci, two agents trained as docs/edge.md says, and the page's own tests."""
    for tool in ("node", "npm", CHROMIUM):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not here; on Debian: apt-get install nodejs npm chromium")
    settings = {"source": "bundled", "device": "cpu", "episodes": 1, "progress": False}
    aaren_rl.fit("hopper-medium", preset="quick", folder=tmp_path / "hopper", **settings)
    aaren_rl.fit("t-maze-expert", preset="memory", folder=tmp_path / "t-maze", **settings)
    done = prepare(page, tmp_path / "hopper" / "last", tmp_path / "t-maze" / "last")
    assert done.returncode == 0, done.stderr
    subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=page, check=True, capture_output=True, timeout=600)
    done = subprocess.run(["npm", "test"], cwd=page, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
