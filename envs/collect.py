"""Rolls behaviours out into Minari datasets."""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
import numpy.typing as npt
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage
from minari.namespace import create_namespace, list_local_namespaces
from tqdm import tqdm

from aaren_rl import __version__
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.spaces import Box
from aaren_rl.data.trajectories import Episode
from aaren_rl.envs import baselines, minari_reader
from aaren_rl.envs.behaviours import Behaviour
from aaren_rl.envs.catalogue import Entry
from aaren_rl.envs.environments import describe, make
from aaren_rl.errors import DataError, InvalidInput
from aaren_rl.folders import whole_folder

STEPS = 200_000
"""Default number of steps of a bundled dataset."""

_JOB_STEPS = 50_000
_JOB_SLOTS = 8


def collect(entry: Entry, steps: int = STEPS, seed: int = 0, overwrite: bool = False, progress: bool = True) -> Path:
    """Makes an entry's dataset from its bundled behaviours, under the local Minari root.

    The folder takes its name only once it is whole; an interrupted run leaves nothing.

    Args:
        entry: entry of the catalogue.
        steps: least number of steps, in whole episodes.
        seed: the same seed gives the same data.
        overwrite: replace a dataset of this name.
        progress: show a progress bar.

    Returns:
        The folder of the dataset.

    Raises:
        InvalidInput: no behaviour is bundled for the entry, or steps is below 1.
        DataError: the dataset exists already and may not be overwritten, or cannot be written.
    """
    policies = baselines.behaviour_policies(entry)
    if steps < 1:
        raise InvalidInput(f"{steps} steps; expected at least 1")
    folder = minari_reader.local_folder(entry.bundled_id)
    if folder.exists() and not overwrite:
        raise DataError(f"{entry.bundled_id} exists already at {folder}; pass --overwrite to make it anew")
    spec = entry.environments["bundled"]
    with tqdm(
        total=steps, unit="step", unit_scale=True, desc=entry.bundled_id, mininterval=1.0, disable=not progress
    ) as bar:
        episodes = roll_out(spec, policies, steps, (zlib.crc32(entry.name.encode()), seed), bar.update)
    with whole_folder(folder, DataError, replace=overwrite) as partial:
        _write(partial, entry, spec, episodes, seed)
    return folder


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


def _write(folder: Path, entry: Entry, spec: EnvironmentSpec, episodes: list[Episode], seed: int) -> None:
    namespace = entry.bundled_id.rpartition("/")[0]
    if namespace not in list_local_namespaces():
        create_namespace(namespace, description="Roll-outs of the behaviours bundled with aaren-rl.")
    described = describe(spec)
    # Readers take observations in single precision, so they are stored in it.
    observation_space = gym.spaces.Box(*described.observation_space.bounds())
    action_space = _gymnasium_box(described.action_space)
    storage = MinariStorage.new(folder / "data", observation_space, action_space, described.recorded)
    storage.update_episodes(
        EpisodeBuffer(
            observations=episode.observations,
            actions=episode.actions,
            rewards=episode.rewards,
            terminations=_last(len(episode.rewards), episode.terminated),
            truncations=_last(len(episode.rewards), episode.truncated),
            infos={},
        )
        for episode in episodes
    )
    made_by = "scripted expert" if entry.scripted else "uniform random actions"
    if entry.behaviours:
        made_by = f"SAC after {', '.join(map(str, entry.behaviours))} steps"
    storage.update_metadata(
        {
            "dataset_id": entry.bundled_id,
            "minari_version": minari.__version__,
            "author": {"aaren-rl"},
            "algorithm_name": made_by,
            "description": f"Roll-out of the behaviours bundled with aaren-rl {__version__}: {made_by}; seed {seed}.",
        }
    )


def _gymnasium_box(space: Box) -> gym.spaces.Box:
    dtype = np.dtype(space.dtype)
    low, high = (np.array(bound).astype(dtype).reshape(space.shape) for bound in (space.low, space.high))
    return gym.spaces.Box(low, high, dtype=dtype.type)


def _last(length: int, flag: bool) -> npt.NDArray[np.bool_]:
    flags = np.zeros(length, dtype=np.bool_)
    flags[-1] = flag
    return flags
