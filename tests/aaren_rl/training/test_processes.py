"""One training over several processes, held against the same training in one."""

import os
import subprocess
import sys

import pytest
import several_processes as several
import torch
from helpers import assert_close
from safetensors.torch import load_file

from aaren_rl.errors import InvalidInput
from aaren_rl.training.launch import launched
from aaren_rl.training.processes import ALONE, Processes, Word


def torchrun(count, *arguments):
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}")
    return subprocess.run(
        [*launcher, several.__file__, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module", params=[2, 3])
def together(request, tmp_path_factory):
    """States of all cases, trained by several processes, and their number."""
    folder, count = tmp_path_factory.mktemp("together"), request.param
    done = torchrun(count, folder)
    assert done.returncode == 0, done.stderr
    return {case: load_file(folder / f"{case}.safetensors") for case in several.CASES}, count


@pytest.mark.parametrize("case", several.CASES)
def test_several_processes_train_as_one_does(case, together, tmp_path):
    theirs, count = together
    theirs = theirs[case]
    learner = several.make_learner(case, tmp_path)
    metrics = [learner.update() for _ in range(several.UPDATES)]
    # Each process divides by its own mean size of values, so with a critic the sum is another one.
    tolerance = {"rtol": 0.1, "atol": 0.02} if case == "critic" else {"rtol": 2e-4, "atol": 2e-5}
    for name in metrics[0]:
        ours = torch.stack([of_update[name] for of_update in metrics])
        assert_close(f"{name} of {count}", theirs.pop(f"metrics.{name}"), ours, **tolerance)
    state = learner.state_dict()
    assert theirs.keys() == state.keys()
    for name in ("random.sampler", "carried.cursor", "carried.goal"):
        if name in state:
            assert torch.equal(theirs[name], state[name]), f"{name} of {count}"
    # Moments are sums of gradients; weights move by as much as the gradient's sign says, however small it is.
    near = {"rtol": 0.3, "atol": 0.03} if case == "critic" else {"rtol": 1e-2, "atol": 1e-3}
    for name in state:
        if name.startswith(("carried.", "optimiser.", "objective.")) and state[name].is_floating_point():
            assert_close(f"{name} of {count}", theirs[name], state[name], **near)


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_in_one_process_ends_all_and_loses_nothing(rank, tmp_path):
    done = torchrun(2, tmp_path, rank)
    assert done.returncode != 0
    assert "MemoryError: no memory" in done.stderr
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["000000003"]
    assert "the checkpoint of update 3 is saved" in done.stdout


def test_shares_are_all_rows_once():
    for rows in range(1, 12):
        for count in range(1, rows + 1):
            shares = [range(rows)[Processes(rank, count).share(rows)] for rank in range(count)]
            assert [row for share in shares for row in share] == list(range(rows))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_fewer_rows_than_processes_are_refused():
    with pytest.raises(InvalidInput, match="batches of 2 rows for 3 processes; expected at least one row for each"):
        Processes(0, 3).share(2)


def test_one_process_talks_to_nobody():
    assert ALONE.leads
    assert ALONE.agree(Word.SAVE, True) == (Word.SAVE, True)
    assert ALONE.broadcast("text") == "text"
    ALONE.check_same("text", "nothing")


def test_half_of_torchruns_variables_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(InvalidInput, match="WORLD_SIZE is 4, and LOCAL_RANK, MASTER_ADDR, MASTER_PORT is missing"):
        launched()


def test_other_scripts_refuse_several_processes(command, monkeypatch):
    from aaren_rl.scripts import compare

    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, _, said = command(compare.main, "some.toml")
    assert status == 2
    assert "torchrun is for scripts/train.py; start this command by itself" in said
