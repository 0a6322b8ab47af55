"""Comparisons on a Ray cluster, which is started here for each test, apart from any other on this machine."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
import tomli_w

from aaren_rl.scripts.compare import main

pytest.importorskip("ray")

COMPARE = Path(__file__).parents[2] / "scripts" / "compare.py"

TABLE = {
    "datasets": ["hopper-medium"],
    "seeds": [0, 1, 2, 3, 4, 5],
    "settings": {
        "source": "bundled",
        "device": "cpu",
        "episodes": 2,
        "check_episodes": 1,
        "model": {"width": 16, "blocks": 1},
        "training": {"updates": 200, "batch_size": 4, "evaluate_every": 100, "checkpoint_every": 10},
    },
    "agents": {"default": {}, "wide": {"model": {"width": 24}}},
}


@pytest.fixture
def start(surroundings, tmp_path):
    """Starts comparisons as a user does, with a cluster that no other program joins."""
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(TABLE))
    # Names of sockets must be short.
    sockets = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    own = {"RAY_TMPDIR": sockets, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(24)}
    begun = []

    def run(*arguments, **variables):
        begun.append(
            subprocess.Popen(
                [sys.executable, str(COMPARE), "tiny.toml", *map(str, arguments)],
                cwd=tmp_path,
                env={**os.environ, "RAY_ADDRESS": "", **surroundings, **own, **variables},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return begun[-1]

    yield run
    for process in begun:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=60)
    shutil.rmtree(sockets, ignore_errors=True)


def worker_with_a_checkpoint(process, folder, but=()):
    """Folder of a run that trains and has a checkpoint, and the number of its process."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        for lock in folder.glob("*/*/*/.lock"):
            with suppress(OSError, ValueError):
                pid = json.loads(lock.read_text())["pid"]
                if lock.parent not in but and list(lock.parent.glob("checkpoints/[0-9]*")):
                    return lock.parent, pid
        time.sleep(0.02)
    raise AssertionError("no run has a checkpoint")


def rows(out):
    """The rows of a table, less their timings and commands."""
    table = json.loads((out / "table.json").read_text())
    different = ("train_seconds", "command")
    return [{name: value for name, value in row.items() if name not in different} for row in table["rows"]], table[
        "iqm"
    ]


@pytest.mark.slow
def test_runs_of_killed_workers_go_on_and_the_table_is_that_of_processes(start, tmp_path):
    plain = start("--jobs", 2, "--out", "plain")
    out, errors = plain.communicate(timeout=6000)
    assert plain.returncode == 0, errors

    ray = start("--on", "ray", "--out", "ray")
    killed = []
    for _ in range(2):
        folder, pid = worker_with_a_checkpoint(ray, tmp_path / "ray", killed)
        os.kill(pid, signal.SIGKILL)
        killed.append(folder)
    out, errors = ray.communicate(timeout=6000)
    assert ray.returncode == 0, errors
    assert "ray: started a cluster on this machine, " in out
    assert "12 of 12: " in out
    for folder in killed:
        log = (folder / "log.txt").read_text()
        assert "which is gone; the lock is taken over" in log
        assert f"resuming {folder} after update " in log
    assert rows(tmp_path / "ray") == rows(tmp_path / "plain")
    assert not list((tmp_path / "ray").glob(".ray-*"))


@pytest.mark.slow
def test_ctrl_c_saves_every_run_and_the_same_command_goes_on(start, tmp_path):
    ray = start("--on", "ray", "--seeds", 0)
    first, _ = worker_with_a_checkpoint(ray, tmp_path / "runs" / "tiny")
    os.killpg(ray.pid, signal.SIGINT)
    _, errors = ray.communicate(timeout=600)
    assert ray.returncode == 130
    assert "stopped, 0 of 2 runs are finished, all that was trained is saved" in errors
    assert "go on with python scripts/compare.py tiny.toml --seeds 0 --on ray" in errors
    assert "stopped after update " in (first / "log.txt").read_text()
    assert not list((tmp_path / "runs" / "tiny").glob("*/*/*/.lock"))
    ray = start("--on", "ray", "--seeds", 0)
    out, errors = ray.communicate(timeout=600)
    assert ray.returncode == 0, errors
    assert "2 of 2: " in out
    assert f"resuming {first} after update " in (first / "log.txt").read_text()


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nowhere", "ray://127.0.0.1:9"])
def test_address_without_a_cluster_is_named(address, monkeypatch, tmp_path):
    from aaren_rl.errors import InvalidInput
    from aaren_rl.experiments.comparison.ray_cluster import RayCluster

    monkeypatch.setenv("RAY_ADDRESS", address)
    said = "of a Ray client" if "//" in address else "and nothing answers there"
    with RayCluster(tmp_path, 1, 0, print) as cluster, pytest.raises(InvalidInput, match=f"RAY_ADDRESS is .*{said}"):
        assert cluster.capacity


def test_node_that_does_not_see_the_folder_is_named(tmp_path):
    from aaren_rl import __version__
    from aaren_rl.errors import InvalidInput
    from aaren_rl.experiments.comparison import ray_cluster

    def train(version):
        return ray_cluster._train(None, None, None, tmp_path, tmp_path / ".ray-0", version, {})

    with pytest.raises(InvalidInput, match=r"does not see .*\.ray-0, .* pass such a one as --out"):
        train(__version__)
    with pytest.raises(InvalidInput, match=r"and this machine 0\.0; install the same on both"):
        train("0.0")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--on", "ray", "--jobs", "2"], "--jobs 2 is for processes"),
        (["--cpus", "2"], "--cpus and --gpus are for --on ray"),
        (["--on", "ray", "--cpus", "0"], "--cpus 0 and --gpus 0; expected above 0, and at least 0"),
    ],
)
def test_option_that_does_not_fit(command, tmp_path, arguments, said):
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(TABLE))
    status, _, errors = command(main, "tiny.toml", *arguments)
    assert status == 2
    assert said in errors
