"""Rolls behaviours out into Minari datasets."""

from __future__ import annotations

import math
import os
import shutil
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from minari.dataset.minari_storage import MinariStorage
from tqdm import tqdm

from aaren_rl import __version__
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.trajectories import Episode
from aaren_rl.envs import baselines, minari_writer
from aaren_rl.envs.behaviours import Behaviour
from aaren_rl.envs.catalogue import Entry
from aaren_rl.envs.environments import Description, describe, make
from aaren_rl.envs.readers import minari
from aaren_rl.envs.turns import one_at_a_time
from aaren_rl.errors import DataError, InvalidInput
from aaren_rl.folders import whole_folder

STEPS = 200_000
"""Default number of steps of a bundled dataset."""

_JOB_STEPS = 50_000
_JOB_SLOTS = 8


def collect(
    entry: Entry,
    steps: int = STEPS,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
    say: Callable[[str], object] = print,
) -> Path:
    """Makes an entry's dataset from its bundled behaviours, under the local Minari root.

    The folder takes its name only once it is whole; an interrupted run leaves nothing. Of several processes that make
    the same dataset at once, one does, and the others wait for it and take what it made.

    Args:
        entry: entry of the catalogue.
        steps: least number of steps, in whole episodes.
        seed: the same seed gives the same data.
        overwrite: replace a dataset of this name.
        progress: show a progress bar.
        say: called with a line where another process makes the dataset, or has made it.

    Returns:
        The folder of the dataset.

    Raises:
        InvalidInput: no behaviour is bundled for the entry, or steps is below 1.
        DataError: another dataset exists already and may not be overwritten, or it cannot be written.
    """
    policies = baselines.behaviour_policies(entry)
    if steps < 1:
        raise InvalidInput(f"{steps} steps; expected at least 1")
    folder = minari.local_folder(entry.bundled_id)
    with one_at_a_time(folder, say):
        _clean_up(folder)
        if folder.exists() and not overwrite:
            if not _holds(folder, _description(entry, seed), steps):
                raise DataError(f"{entry.bundled_id} exists already at {folder}; pass --overwrite to make it anew")
            say(f"data: {entry.bundled_id} has been made already, with these steps and this seed; it stands")
            return folder
        spec = entry.environments["bundled"]
        described = describe(spec)
        minari_writer.require_space(folder.parent, _least_size(described, steps))
        with tqdm(
            total=steps, unit="step", unit_scale=True, desc=entry.bundled_id, mininterval=1.0, disable=not progress
        ) as bar:
            episodes = roll_out(spec, policies, steps, (zlib.crc32(entry.name.encode()), seed), bar.update)
        with whole_folder(folder, DataError, replace=overwrite) as partial:
            minari_writer.write_dataset(
                partial, entry.bundled_id, described, episodes, _made_by(entry), _description(entry, seed)
            )
            minari_writer.describe_namespaces(entry.bundled_id, "Roll-outs of the behaviours bundled with aaren-rl.")
    return folder


def _clean_up(folder: Path) -> None:
    """Takes away what killed processes left of a folder, whose lock is held; one that was set aside comes back."""
    for partial in folder.parent.glob(f".{folder.name}.partial-*"):
        shutil.rmtree(partial, ignore_errors=True)
    for old in folder.parent.glob(f".{folder.name}.old-*"):
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(old, folder)


def _holds(folder: Path, description: str, steps: int) -> bool:
    """True if a dataset's metadata say that it was made as described, with enough steps."""
    try:
        metadata = MinariStorage.read_raw_metadata(folder / "data")
    except (OSError, ValueError):
        return False
    if not isinstance(metadata, dict):
        return False
    found = metadata.get("total_steps")
    return metadata.get("description") == description and isinstance(found, int) and found >= steps


def _least_size(described: Description, steps: int) -> int:
    numbers = math.prod(described.observation_space.shape) + math.prod(described.action_space.shape)
    return steps * 4 * numbers


def roll_out(
    spec: EnvironmentSpec,
    policies: list[Behaviour],
    steps: int,
    seed: tuple[int, ...],
    progress: Callable[[int], object] = lambda steps: None,
) -> list[Episode]:
    """Whole episodes of several policies, in equal shares of the steps.

    Every machine cuts the work into the same jobs, so the episodes depend on the seed alone.

    Args:
        spec: the environment.
        policies: the behaviours that act.
        steps: least number of steps in all.
        seed: seed of the environments and of the policies' noise.
        progress: called with numbers of steps done.

    Returns:
        Episodes in the order of the policies.
    """
    share = -(-steps // len(policies))
    jobs = [(policy, size) for policy in policies for size in _sizes(share)]
    stop = threading.Event()

    def run(number: int) -> list[Episode]:
        policy, size = jobs[number]
        return _run_job(spec, policy, size, np.random.SeedSequence([*seed, number]), progress, stop)

    # MuJoCo releases the interpreter lock while it computes, so threads run in parallel.
    with ThreadPoolExecutor(min(len(jobs), os.cpu_count() or 1)) as pool:
        try:
            return [episode for episodes in pool.map(run, range(len(jobs))) for episode in episodes]
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _sizes(share: int) -> list[int]:
    count = -(-share // _JOB_STEPS)
    return [share // count + (number < share % count) for number in range(count)]


def _run_job(
    spec: EnvironmentSpec,
    policy: Behaviour,
    steps: int,
    seed: np.random.SeedSequence,
    progress: Callable[[int], object],
    stop: threading.Event,
) -> list[Episode]:
    """Episodes 0, 1, 2, ... of a stream, as few as hold the steps.

    A free slot takes the next number. The first episodes by number are kept, not the first to end, which would favour
    short ones.
    """
    rng = np.random.default_rng(seed)
    slots = [_Slot(make(spec)) for _ in range(int(np.clip(steps // 4_000, 1, _JOB_SLOTS)))]
    done: dict[int, Episode] = {}
    whole = counted = started = 0
    try:
        for slot in slots:
            slot.start(started, int(rng.integers(2**31)))
            started += 1
        while not stop.is_set():
            actions = policy([slot.observations for slot in slots], rng)
            for slot, action in zip(slots, actions, strict=True):
                if not slot.step(action):
                    continue
                done[slot.number] = slot.episode()
                slot.start(started, int(rng.integers(2**31)))
                started += 1
                while whole in done:
                    length = len(done[whole].rewards)
                    progress(min(length, max(0, steps - counted)))
                    counted += length
                    whole += 1
                    if counted >= steps:
                        return [done[number] for number in range(whole)]
        return []
    finally:
        for slot in slots:
            slot.env.close()


class _Slot:
    """An environment with its current episode."""

    def __init__(self, env: gym.Env[np.ndarray, np.ndarray]) -> None:
        self.env = env

    def start(self, number: int, seed: int) -> None:
        self.number = number
        self.observations = [self.env.reset(seed=seed)[0]]
        self.actions: list[npt.NDArray[np.float32]] = []
        self.rewards: list[float] = []

    def step(self, action: npt.NDArray[np.float32]) -> bool:
        observation, reward, self.terminated, self.truncated, _ = self.env.step(action)
        self.observations.append(observation)
        self.actions.append(action)
        self.rewards.append(float(reward))
        return self.terminated or self.truncated

    def episode(self) -> Episode:
        return Episode(
            np.asarray(self.observations, dtype=np.float32),
            np.asarray(self.actions),
            np.asarray(self.rewards),
            bool(self.terminated),
            bool(self.truncated),
        )


def _made_by(entry: Entry) -> str:
    if entry.behaviours:
        return f"SAC after {', '.join(map(str, entry.behaviours))} steps"
    return "scripted expert" if entry.expert else "uniform random actions"


def _description(entry: Entry, seed: int) -> str:
    return f"Roll-out of the behaviours bundled with aaren-rl {__version__}: {_made_by(entry)}; seed {seed}."
