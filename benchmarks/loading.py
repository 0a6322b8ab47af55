"""Time and memory of loading a dataset."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np

from aaren_rl.envs.readers import d4rl
from aaren_rl.experiments import measuring
from aaren_rl.experiments.measuring import Report, Row

STEPS = 1_000_000


def measure(report: Report) -> None:
    """Measures seconds and peak memory of loading a D4RL file of hopper-sized float64 steps."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "made-up.hdf5"
        _write_file(path, STEPS)
        before = _peak()
        trajectories = d4rl.read_file(path)
        grown = _peak() - before
        taken = measuring.alternate({"load": measuring.timed(lambda: d4rl.read_file(path))})["load"]
    names = ("observations", "actions", "rewards", "returns_to_go")
    kept = sum(getattr(trajectories, name).nbytes for name in names)
    report.add(Row(f"load {STEPS:,} steps", statistics.median(taken), "s"))
    report.add(Row(f"peak memory to load {STEPS:,} steps", grown / 2**20, "MiB", grown / kept, None, "peak / arrays"))


def _peak() -> int:
    """Peak memory of this process, in bytes."""
    # Imported here, since Windows lacks it and can run the other measurements.
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _write_file(path: Path, steps: int) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for name, shape in (("observations", (steps, 11)), ("actions", (steps, 3)), ("rewards", (steps,))):
            # In pieces: writing the file must not raise the peak memory that reading is measured by.
            made = file.create_dataset(name, shape, dtype=np.float64)
            for start in range(0, steps, 50_000):
                made[start : start + 50_000] = rng.standard_normal((len(made[start : start + 50_000]), *shape[1:]))
        ends = np.zeros(steps, dtype=np.bool_)
        ends[499::500] = True
        file["terminals"], file["timeouts"] = ends, np.zeros(steps, dtype=np.bool_)
