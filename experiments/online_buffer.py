"""The episodes that online fine-tuning learns from, and the files of those that it recorded."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save

from aaren_rl import checkpoint, folders
from aaren_rl.data.packed import arrays_of
from aaren_rl.data.spaces import NUMBERS, Packed
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.errors import AarenError, CheckpointError

Keep = Literal["newest", "best"]

EPISODES = "episodes"
"""Folder of a fine-tuning with the recorded episodes that its buffer holds, a file for each round."""

_PACKED, _PLAIN = ("observations", "final_observations"), ("actions", "rewards", "offsets", "terminated", "truncated")


class Buffer:
    """Episodes of the offline data and recorded ones.

    Episodes have numbers: those of the data from 0 on, the recorded ones in their order behind them.

    Args:
        offline: the data, with the spaces of the model; the best of them are taken first, the best last.
        most: episodes that are kept; None for all.
        keep: which.
    """

    def __init__(self, offline: Trajectories, most: int | None, keep: Keep) -> None:
        self._offline, self._most, self._keep = offline, most, keep
        self._numbers = _best_last(offline.returns, most)
        self.trajectories = offline.select(self._numbers)
        self.recorded = 0
        # Of each round whose episodes are kept: file, first number, number of episodes, digest.
        self._files: list[dict[str, Any]] = []
        self._unsaved: Trajectories | None = None

    def take(self, episodes: Trajectories) -> None:
        """Adds a round of recorded episodes, and drops those that are too many."""
        if self._offline.final_observations is None:
            episodes = dataclasses.replace(episodes, final_observations=None)
        first = self._offline.episodes + self.recorded
        numbers = np.concatenate([self._numbers, np.arange(first, first + episodes.episodes)])
        joined = Trajectories.join([self.trajectories, episodes])
        count = joined.episodes
        newest = np.arange(max(0, count - (self._most or count)), count)
        kept = _best_last(joined.returns, self._most) if self._keep == "best" else newest
        self.trajectories, self._numbers = joined.select(kept), numbers[kept]
        self.recorded += episodes.episodes
        self._unsaved = episodes

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes the last round's episodes into a fine-tuning's folder.

        Returns:
            What `restore` takes, in JSON's types.
        """
        if self._unsaved is not None:
            count = self._unsaved.episodes
            first = self._offline.episodes + self.recorded - count
            path = folder / EPISODES / f"{first - self._offline.episodes:08d}.safetensors"
            self._files.append(
                {"file": path.name, "first": first, "episodes": count, "sha256": _write(path, self._unsaved)}
            )
            self._unsaved = None
        self._files = [each for each in self._files if self._holds(each)]
        return {"numbers": self._numbers.tolist(), "recorded": self.recorded, "files": self._files}

    def drop_files(self, folder: Path) -> None:
        """Removes the files of episodes that are not kept any more, once what `save` returned is written."""
        kept = {each["file"] for each in self._files}
        for path in (folder / EPISODES).glob("*.safetensors"):
            if path.name not in kept:
                path.unlink()

    def restore(self, folder: Path, saved: dict[str, Any]) -> None:
        """Goes back to what was saved, with the same offline data.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        numbers = np.array(saved["numbers"], dtype=np.int64)
        parts, known = [self._offline], [np.arange(self._offline.episodes)]
        for each in saved["files"]:
            parts.append(self._read(folder / EPISODES / str(each["file"]), each["sha256"]))
            known.append(np.arange(each["first"], each["first"] + parts[-1].episodes))
        places = {number: place for place, number in enumerate(np.concatenate(known).tolist())}
        self._numbers = numbers
        self.trajectories = Trajectories.join(parts).select(np.array([places[number] for number in numbers.tolist()]))
        self.recorded, self._files = int(saved["recorded"]), list(saved["files"])

    def _holds(self, file: dict[str, Any]) -> bool:
        first, count = file["first"], file["episodes"]
        return bool(((self._numbers >= first) & (self._numbers < first + count)).any())

    def _read(self, path: Path, sha256: str) -> Trajectories:
        tensors = checkpoint.read_tensors(path, sha256)
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        packed: dict[str, Packed] = {}
        for name in _PACKED:
            found = {key.removeprefix(f"{name}/"): part for key, part in arrays.items() if key.startswith(f"{name}/")}
            if found:
                packed[name] = found[NUMBERS] if set(found) == {NUMBERS} else found
        try:
            return Trajectories(
                packed["observations"],
                arrays["actions"],
                arrays["rewards"],
                arrays["offsets"],
                arrays["terminated"],
                arrays["truncated"],
                packed.get("final_observations"),
                self._offline.observation_space,
                self._offline.action_space,
            )
        except (KeyError, AarenError) as error:
            raise CheckpointError(f"{path} does not hold episodes of this fine-tuning: {error}") from error


def _best_last(returns: npt.NDArray[Any], most: int | None) -> npt.NDArray[np.int64]:
    """Numbers of the episodes with the highest returns, at most so many, the best last."""
    return np.argsort(returns, kind="stable")[-(most or len(returns)) :]


def _write(path: Path, episodes: Trajectories) -> str:
    """Writes episodes whole or not at all; the file's digest."""
    arrays = {name: getattr(episodes, name) for name in _PLAIN}
    for name in _PACKED:
        if (values := getattr(episodes, name)) is not None:
            arrays |= {f"{name}/{key}": part for key, part in arrays_of(values).items()}
    content = save({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()})
    path.parent.mkdir(exist_ok=True)
    folders.replace_file(path, content)
    return checkpoint.digest(content)
