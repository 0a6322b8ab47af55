"""Trains on made-up data on disk, in little memory: `python benchmarks/larger_than_memory.py FOLDER --gib 20`."""

from __future__ import annotations

import os
import re
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from aaren_rl.data import converted
from aaren_rl.data.converted import Counts, Rows
from aaren_rl.data.packed import arrays_of
from aaren_rl.data.spaces import IMAGE, Box
from aaren_rl.data.spaces.image import ImageSpace
from aaren_rl.data.storage import MEMORY
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.envs.dataset import Dataset, of_trajectories
from aaren_rl.envs.free_memory import CGROUPS, cgroups, in_words
from aaren_rl.errors import DataError, InvalidInput
from aaren_rl.experiments.command_line import Group, parse
from aaren_rl.experiments.console import progress, run, say
from aaren_rl.folders import whole_folder
from aaren_rl.model import DecisionModel, ModelConfig
from aaren_rl.training.config import TrainingConfig
from aaren_rl.training.learner import SingleLearner

EPISODE = 1_000
OBSERVATION, ACTION = (17,), (6,)
"""Shapes of halfcheetah."""
PICTURE = (64, 64, 3)
"""Shape of OGBench's images."""
BASE = 20
"""Episodes that are made up; all others repeat them."""
WARM_UP = 10
"""Updates of each side before the rounds."""


@dataclass(frozen=True)
class Arguments:
    """Make a set of data if the folder holds none, and compare updates on it with those on a part of it in memory."""

    folder: Path
    """Folder of the data."""
    gib: float = 20.0
    """Size of the set."""
    images: bool = False
    """Observations are images of bytes, not vectors of floats."""
    memory_gib: float = 0.5
    """Size of the part in memory."""
    limit_gib: float | None = None
    """Memory that this process may use, cached files included, by a cgroup of its own; needs root on Linux."""
    rounds: int = 5
    """Rounds, in which both sides take turns."""
    updates: int = 50
    """Updates of a turn."""
    width: int = 128
    """Width of the model."""
    threads: int = 1
    """Threads of torch."""
    remove: bool = False
    """Remove the data afterwards."""


GROUPS = (
    Group("data", "What is made.", ("gib", "images", "remove")),
    Group("measurement", "How it is measured.", ("memory_gib", "limit_gib", "rounds", "updates", "width", "threads")),
)


def main() -> None:
    """Entry point of the command."""
    run(lambda: measure(parse(Arguments, "larger_than_memory", GROUPS, ["folder"])))


def measure(arguments: Arguments) -> None:
    """Makes the data, trains on them, and prints updates a second and the memory that it took."""
    torch.set_num_threads(arguments.threads)
    private = _Private()
    limit = None if arguments.limit_gib is None else int(arguments.limit_gib * 2**30)
    with limited_to(limit):
        _measure(arguments, private)
    say(f"private memory: at most {in_words(private.peak)}")
    if arguments.remove:
        shutil.rmtree(arguments.folder)


def _measure(arguments: Arguments, private: _Private) -> None:
    if not arguments.folder.exists():
        began = time.perf_counter()
        make(arguments.folder, int(arguments.gib * 2**30), arguments.images)
        say(f"made in {time.perf_counter() - began:.0f} s, with {in_words(private.peak)} of private memory")
    began = time.perf_counter()
    on_disk = converted.open_folder(arguments.folder)
    small = in_memory(on_disk, int(arguments.memory_gib * 2**30))
    sides = {
        "disk": _learner(of_trajectories(on_disk), arguments.width),
        "memory": _learner(of_trajectories(small), arguments.width),
    }
    say(f"data: {on_disk.steps:,} steps on disk, {in_words(_size(on_disk))}; the first {small.steps:,} in memory too")
    say(f"opened, checked and measured in {time.perf_counter() - began:.0f} s")
    for learner in sides.values():
        _updates(learner, WARM_UP)
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(arguments.rounds):
        for name, learner in sides.items():
            taken[name].append(_updates(learner, arguments.updates))
    for name, rates in taken.items():
        say(f"{name}: {statistics.median(rates):.2f} updates a second ({min(rates):.2f} to {max(rates):.2f})")
    ratios = [one / other for one, other in zip(taken["disk"], taken["memory"], strict=True)]
    say(f"disk / memory: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def make(folder: Path, size: int, images: bool) -> None:
    """Writes so many bytes of episodes, most of them copies of a few."""
    shape, dtype = (PICTURE, np.uint8) if images else (OBSERVATION, np.float32)
    a_step = int(np.prod(shape)) * np.dtype(dtype).itemsize + 4 * (ACTION[0] + 1)
    episodes = max(BASE, size // (a_step * EPISODE))
    space = ImageSpace(shape, "last") if images else Box.unbounded(shape)
    counts = Counts(episodes * EPISODE, episodes)
    with whole_folder(folder, DataError) as partial, progress(episodes, "episode") as advance:
        rows = _episodes(episodes, shape, images, advance)
        converted.write(partial, rows, counts, (space, Box.bounded(-np.ones(ACTION), np.ones(ACTION))), {})


def _episodes(count: int, shape: tuple[int, ...], images: bool, advance: Callable[[int], object]) -> Iterator[Rows]:
    rng = np.random.default_rng(0)
    base = []
    for _ in range(BASE):
        made = (
            rng.integers(0, 256, (EPISODE + 1, *shape), np.uint8)
            if images
            else rng.standard_normal((EPISODE + 1, *shape), np.float32)
        )
        acted = rng.uniform(-1, 1, (EPISODE, *ACTION)).astype(np.float32)
        paid = rng.uniform(0, 4, EPISODE).astype(np.float32)
        seen, last = ({IMAGE: made[:-1]}, {IMAGE: made[-1:]}) if images else (made[:-1], made[-1:])
        base.append(Rows(seen, acted, paid, [EPISODE], [False], [True], last))
    for number in range(count):
        yield base[number % BASE]
        advance(1)


def in_memory(trajectories: Trajectories, size: int) -> Trajectories:
    """The first episodes, of so many bytes, in memory."""
    episodes = max(1, int(trajectories.episodes * min(1.0, size / _size(trajectories))))
    return replace(trajectories, storage=MEMORY).select(np.arange(episodes))


@contextmanager
def limited_to(size: int | None) -> Iterator[None]:
    """Keeps this process in a cgroup of its own that may take so many bytes, cached files included; None for any.

    Raises:
        InvalidInput: no cgroup can be made here.
    """
    if size is None:
        yield
        return
    first = (CGROUPS / "memory").is_dir()
    root = CGROUPS / "memory" if first else CGROUPS
    # In a container the path may be the host's, which is not there.
    found = (group for group in cgroups() if root in (group, *group.parents) and (group / "cgroup.procs").exists())
    before, own = next(found, root), str(os.getpid())
    # In version 2 a cgroup that holds processes has none below it with a limit.
    folder = (before if first else root) / f"aaren-rl-{own}"
    try:
        folder.mkdir()
        try:
            (folder / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(size))
            (folder / "cgroup.procs").write_text(own)
        except OSError:
            folder.rmdir()
            raise
    except OSError as error:
        raise InvalidInput(f"no cgroup can be made here: {error}; leave out --limit-gib, or be root") from error
    say(f"limited to {in_words(size)} by the cgroup {folder}")
    try:
        yield
    finally:
        # Back under the limits of the job that this process is part of.
        (before / "cgroup.procs").write_text(own)
        folder.rmdir()


def _learner(data: Dataset, width: int) -> SingleLearner:
    torch.manual_seed(0)
    model = DecisionModel(ModelConfig(width=width), data.observation_space, data.action_space, data.scaling())
    return SingleLearner(model, data.trajectories, TrainingConfig(held_out=0.0))


def _updates(learner: SingleLearner, count: int) -> float:
    """Makes updates; how many a second."""
    began = time.perf_counter()
    for _ in range(count):
        metrics = learner.update()
    if not torch.isfinite(metrics["loss"]):
        raise InvalidInput("the loss is not finite")
    return count / (time.perf_counter() - began)


def _size(trajectories: Trajectories) -> int:
    observed = arrays_of(trajectories.observations).values()
    return sum(array.nbytes for array in (*observed, trajectories.actions, trajectories.rewards))


class _Private:
    """Memory that is this process's alone, without files that are mapped, as Linux counts it."""

    def __init__(self) -> None:
        self.peak = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            text = Path("/proc/self/status").read_text("ascii")
            (found,) = re.findall(r"RssAnon:\s+(\d+)", text)
            self.peak = max(self.peak, int(found) * 1024)
            time.sleep(0.05)


if __name__ == "__main__":
    main()
