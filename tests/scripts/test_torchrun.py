"""`torchrun scripts/train.py`: several processes that train one agent, and what is left when one of them dies."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SCRIPTS, TINY

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes by Linux's /proc")

TIME_TO_STOP = 30
"""Seconds within which everything has ended after a process died."""


@pytest.fixture
def torchrun(surroundings, tmp_path):
    """Starts processes that train in the folder "run"; the options of torchrun stand before "--"."""
    started = []

    def start(processes, *arguments, options=()):
        launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
        process = subprocess.Popen(
            [*launcher, *options, "--", str(SCRIPTS / "train.py"), *arguments],
            cwd=tmp_path,
            env={**os.environ, **surroundings, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        for number in ranks(process).values():
            os.kill(number, signal.SIGKILL)
        process.kill()
        process.wait()


def ranks(agent):
    """Process numbers of the ranks that torchrun started."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            variables = (path / "environ").read_bytes().split(b"\0") if parent == agent.pid else []
        except OSError:
            continue
        found |= {int(variable[5:]): int(path.name) for variable in variables if variable.startswith(b"RANK=")}
    return found


def logged(run):
    """Update and loss of every logged point."""
    points = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [(point["update"], point["train/loss"]) for point in points if "train/loss" in point]


def wait_for_update(run, update, process):
    while not (run / "metrics.jsonl").exists() or not logged(run) or logged(run)[-1][0] < update:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)


def saved_updates(run):
    return [int(path.name) for path in sorted((run / "checkpoints").iterdir())]


def finish(process):
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return said


def arguments(updates):
    given = [*TINY, "--dropout", "0", "--check-episodes", "0"]
    return [*given, "--updates", str(updates)]


def test_runs_go_on_with_any_number_of_processes(torchrun, script, tmp_path):
    run = tmp_path / "run"
    assert script("train", *arguments(3), "--run", "run").returncode == 0
    for processes, updates in ((2, 6), (3, 9), (1, 12)):
        said = finish(torchrun(processes, "--resume", "run", "--updates", str(updates)))
        assert f"resuming run after update {updates - 3}" in said
    assert script("train", *arguments(12), "--run", "whole").returncode == 0
    ours, theirs = logged(run), logged(tmp_path / "whole")
    assert [update for update, _ in ours] == list(range(1, 13))
    assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], rel=1e-4)


LONG = ("--updates", "100000", "--checkpoint-every", "100000", "--evaluate-every", "100000")


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_killed_process_loses_nothing(victim, torchrun, script, tmp_path):
    process, run = torchrun(2, *arguments(1), *LONG, "--run", "run"), tmp_path / "run"
    wait_for_update(run, 5, process)
    os.kill(ranks(process)[victim], signal.SIGKILL)
    said, _ = process.communicate(timeout=TIME_TO_STOP)
    assert process.returncode != 0
    (update,) = saved_updates(run)
    assert f"the checkpoint of update {update} is saved, go on with --resume run" in said
    assert update >= logged(run)[-1][0]
    assert script("train", "--resume", "run", "--updates", str(update + 2)).returncode == 0
    assert logged(run)[-1][0] == update + 2


def test_ctrl_c_ends_all_with_a_checkpoint(torchrun, tmp_path):
    process, run = torchrun(2, *arguments(1), *LONG, "--run", "run"), tmp_path / "run"
    wait_for_update(run, 3, process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=TIME_TO_STOP)
    (update,) = saved_updates(run)
    assert f"stopped after update {update}, its checkpoint is saved" in said
    assert said.count("stopped after update") == 1


@pytest.mark.slow
def test_a_restart_goes_on_by_itself(torchrun, tmp_path):
    restarts = ("--max-restarts=1",)
    run = tmp_path / "run"
    process = torchrun(2, *arguments(400), "--evaluate-every", "1000", "--run", "run", options=restarts)
    wait_for_update(run, 5, process)
    os.kill(ranks(process)[1], signal.SIGKILL)
    assert "resuming run after update" in finish(process)
    assert [update for update, _ in logged(run)] == list(range(1, 401))


@pytest.mark.slow
def test_thirty_kills_lose_nothing(torchrun, tmp_path):
    run, random_numbers = tmp_path / "run", random.Random(0)
    process = torchrun(3, *arguments(1), *LONG, "--run", "run", options=("--max-restarts=40",))
    update = 0
    for _ in range(30):
        wait_for_update(run, update + 2, process)
        time.sleep(random_numbers.random() / 5)
        killed = ranks(process)
        began = time.monotonic()
        os.kill(killed[random_numbers.randrange(3)], signal.SIGKILL)
        while set(ranks(process).values()) & set(killed.values()):
            assert time.monotonic() - began < TIME_TO_STOP
            time.sleep(0.1)
        assert saved_updates(run)[-1] >= update
        update = saved_updates(run)[-1]
    wait_for_update(run, update + 2, process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=TIME_TO_STOP)
    assert said.count("resuming run after update") == 30
    assert [update for update, _ in logged(run)] == list(range(1, logged(run)[-1][0] + 1))
