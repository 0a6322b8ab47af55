"""Writes HDF5 files that d3rlpy's `ReplayBuffer.load` reads; d3rlpy itself need not be installed."""

from __future__ import annotations

import warnings
from pathlib import Path

import h5py
import numpy as np

from aaren_rl.data.d3rlpy_values import values_of
from aaren_rl.data.packed import arrays_of
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.envs.readers.d3rlpy import COLUMNS
from aaren_rl.envs.readers.hdf5 import require_memory
from aaren_rl.errors import DataError
from aaren_rl.folders import replace_file

VERSION = "2.1"
"""Version of d3rlpy's format."""


def to_d3rlpy(trajectories: Trajectories, path: Path, overwrite: bool = False) -> None:
    """Writes trajectories as a file that d3rlpy loads, and that `--env` reads.

    d3rlpy has no place for the observation after the last action. A file does not hold the action space, and
    `ReplayBuffer.load` guesses it: choices if the first episode's actions are whole numbers, as many as the data took.
    To give it, load the episodes alone:

        with open("data.h5", "rb") as file:
            episodes = d3rlpy.dataset.load(d3rlpy.dataset.Episode, file)
        buffer = d3rlpy.dataset.ReplayBuffer(
            d3rlpy.dataset.InfiniteBuffer(), episodes=episodes, action_space=d3rlpy.ActionSpace.DISCRETE, action_size=4
        )

    Warns of continuous actions that d3rlpy would take for choices, and of truncated episodes of one step, which the
    file holds and d3rlpy leaves out.

    Args:
        trajectories: to write.
        path: of the file, as "data.h5".
        overwrite: replace a file.

    Raises:
        DataError: d3rlpy has no such observations or actions, all episodes are truncated ones of one step, the file
            exists already, or memory has too little space.
        OSError: the file cannot be written.
    """
    if path.exists() and not overwrite:
        raise DataError(f"{path} exists already; pass overwrite=True to replace it")
    values = values_of(trajectories)
    first = values.actions[: trajectories.offsets[1]]
    if not values.discrete and (first == np.rint(first)).all():
        warnings.warn(
            "the first episode's actions are whole numbers, which d3rlpy's ReplayBuffer.load takes for choices; load "
            f"with action_space=d3rlpy.ActionSpace.CONTINUOUS, action_size={values.size} (see to_d3rlpy)",
            RuntimeWarning,
            stacklevel=2,
        )
    size = sum(part.nbytes for part in arrays_of(trajectories.observations).values())
    require_memory(2 * (size + trajectories.actions.nbytes + trajectories.rewards.nbytes), path.name)
    # Made in memory: HDF5 crashes where a disk is full.
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        file["columns"], file["num_episodes"], file["version"] = list(COLUMNS), trajectories.episodes, VERSION
        for number, terminated in enumerate(trajectories.terminated):
            steps = slice(*trajectories.offsets[number : number + 2])
            if isinstance(values.observations, tuple):
                for place, part in enumerate(values.observations):
                    file[f"observations_{number}_{place}"] = part[steps]
            else:
                file[f"observations_{number}"] = values.observations[steps]
            file[f"actions_{number}"] = values.actions[steps]
            file[f"rewards_{number}"] = trajectories.rewards[steps, np.newaxis]
            file[f"terminated_{number}"] = bool(terminated)
        file.flush()
        image: bytes = file.id.get_file_image()
    replace_file(path, image)
