"""Time of an update that two processes share, against one process with the same batch.

As a script, it is what each process does: `torchrun benchmarks/sharing.py BATCH_SIZE FILE`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import setting
from aaren_rl.errors import InvalidInput
from aaren_rl.experiments import measuring
from aaren_rl.experiments.console import say
from aaren_rl.experiments.measuring import Report, Side
from aaren_rl.model import count_parameters
from aaren_rl.training.learner import SingleLearner
from aaren_rl.training.processes import Word, process_group

BATCH_SIZES = (64, 256)
PROCESSES = 2
ROUNDS = 5
STEPS = 100_000
UPDATES = 30
WARM_UP = 5


def measure(report: Report) -> None:
    """Measures a row for each size of the whole batch, with one thread in each process."""
    parameters = count_parameters(setting.make_model())
    # Every process sends and receives its gradient nearly twice (Patarasuk and Yuan 2009, ring all-reduce).
    sent = 4 * parameters * 2 * (PROCESSES - 1) / PROCESSES
    say(f"{parameters} parameters: each of {PROCESSES} processes sends {sent / 2**20:.2f} MiB in an update")
    for rows in BATCH_SIZES:
        with TemporaryDirectory() as folder:
            sides = {count: _side(count, rows, Path(folder) / "seconds") for count in ("1", str(PROCESSES))}
            taken = measuring.alternate(sides, ROUNDS)
        one, several = taken["1"], taken[str(PROCESSES)]
        name = f"update of {rows} rows in {PROCESSES} processes"
        report.add(measuring.compare(name, several, one, several, "one process / ours", "ms"))


def _side(processes: str, rows: int, file: Path) -> Side:
    """Starts processes that write the seconds of an update into a file."""
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")

    def play() -> float:
        command = [*torchrun, __file__, str(rows), str(file)]
        done = subprocess.run(command, env=_one_thread(), capture_output=True, text=True)
        if done.returncode:
            raise InvalidInput(f"the processes failed: {done.stderr[-2_000:]}")
        return float(file.read_text())

    return play


def _one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _time_updates(rows: int, file: Path) -> None:
    """Makes updates as a run does, and writes down the time of one."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with process_group(torch.device("cpu")) as processes:
        config = replace(setting.TRAINING, batch_size=rows)
        learner = SingleLearner(setting.make_model(), setting.make_trajectories(STEPS), config, processes=processes)
        for update in range(WARM_UP + UPDATES):
            if update == WARM_UP:
                began = time.perf_counter()
            processes.agree(Word.UPDATE)
            learner.update()
        if processes.leads:
            file.write_text(str((time.perf_counter() - began) / UPDATES))


if __name__ == "__main__":
    _time_updates(int(sys.argv[1]), Path(sys.argv[2]))
