"""Prints measurements: `python scripts/benchmark.py scan` or `data`."""

from __future__ import annotations

import resource
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import h5py
import numpy as np
import torch
import tyro

from aaren_rl import scan
from aaren_rl.envs import d4rl_reader
from aaren_rl.scripts.console import run, say

REPEATS = 7


@dataclass(frozen=True)
class Arguments:
    """Measure on this machine."""

    what: Annotated[Literal["scan", "data"], tyro.conf.Positional]
    """scan: forward and backward of every form by length, which sets scan.MATRIX_UP_TO. data: loading 1M steps."""
    threads: int = 1
    """Threads that torch may use."""


def main() -> None:
    """Entry point."""
    run(lambda: measure(tyro.cli(Arguments, prog="benchmark")))


def measure(arguments: Arguments) -> None:
    """Measures as the arguments say."""
    torch.set_num_threads(arguments.threads)
    {"scan": scan_forms, "data": load_data}[arguments.what]()


def scan_forms() -> None:
    """Milliseconds of forward and backward, the median of rounds that alternate between the forms."""
    forms: tuple[scan.Form, ...] = ("matrix", "chunked", "blockwise", "parallel")
    say(f"milliseconds, forward and backward, float32, {torch.get_num_threads()} threads")
    say(f"{'batch':>5} {'heads':>5} {'time':>6} {'dim':>4} " + " ".join(f"{form:>10}" for form in forms))
    sizes = [(64, 1, 20, 128), (64, 1, 60, 128), (32, 1, 96, 128), (16, 1, 128, 128), (16, 1, 192, 128)]
    for batch, heads, length, dim in [
        *sizes,
        (16, 1, 256, 128),
        (8, 1, 512, 128),
        (4, 4, 3_000, 32),
        (1, 4, 30_000, 32),
    ]:
        scores = torch.randn(batch, heads, length, requires_grad=True)
        values = torch.randn(batch, heads, length, dim, requires_grad=True)
        taken: dict[str, list[float]] = {form: [] for form in forms}
        for _ in range(REPEATS):
            for form in forms:
                if form == "matrix" and length > 1_000:
                    continue
                began = time.perf_counter()
                scan.prefix_attention(scores, values, form=form)[0].sum().backward()  # type: ignore[no-untyped-call]
                taken[form].append(time.perf_counter() - began)
        cells = [f"{statistics.median(own) * 1e3:10.1f}" if own else f"{'-':>10}" for own in taken.values()]
        say(f"{batch:>5} {heads:>5} {length:>6} {dim:>4} " + " ".join(cells))


def load_data(steps: int = 1_000_000) -> None:
    """Seconds and peak memory to load a D4RL file of a million hopper-sized float64 steps."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "made-up.hdf5"
        _write_file(path, steps)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        trajectories = d4rl_reader.read_file(path)
        seconds = time.perf_counter() - began
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    names = ("observations", "actions", "rewards", "returns_to_go")
    own = sum(getattr(trajectories, name).nbytes for name in names)
    say(
        f"{trajectories.steps} steps in {seconds:.2f} s; peak memory grew by {(after - before) / 1024:.0f} MiB, "
        f"the arrays kept take {own / 2**20:.0f} MiB"
    )


def _write_file(path: Path, steps: int) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for name, shape in (("observations", (steps, 11)), ("actions", (steps, 3)), ("rewards", (steps,))):
            # Written in pieces, so that making the file does not set the peak that reading is measured by.
            made = file.create_dataset(name, shape, dtype=np.float64)
            for start in range(0, steps, 50_000):
                made[start : start + 50_000] = rng.standard_normal((len(made[start : start + 50_000]), *shape[1:]))
        ends = np.zeros(steps, dtype=np.bool_)
        ends[499::500] = True
        file["terminals"], file["timeouts"] = ends, np.zeros(steps, dtype=np.bool_)


if __name__ == "__main__":
    main()
