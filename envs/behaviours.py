"""Behaviours: the policies that make the bundled data."""

from __future__ import annotations

import copy
import zipfile
import zlib
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from aaren_rl.data.trajectories import Floats
from aaren_rl.errors import DataError, unknown_name

Seen: TypeAlias = Sequence[Any]
"""All observations of an episode so far, as the environment gives them."""


class Behaviour(Protocol):
    """Chooses an action in each of several episodes."""

    def __call__(self, episodes: Sequence[Seen], rng: np.random.Generator) -> Sequence[Any] | Floats:
        """An action for each episode, as the environment takes it, from the observations since the episode's start."""
        ...


class ExpertBehaviour:
    """A scripted expert, which may look back to the start of its episode.

    Args:
        act: function from the observations of an episode so far to the next action.
    """

    def __init__(self, act: Callable[[Seen], Floats]) -> None:
        self.act = act

    def __call__(self, episodes: Sequence[Seen], rng: np.random.Generator) -> Floats:
        """See `Behaviour`."""
        return np.stack([self.act(seen) for seen in episodes])


class RandomBehaviour:
    """Uniformly random actions, as in the "random" datasets.

    Args:
        low: least action, (*action shape).
        high: greatest action, (*action shape).
    """

    def __init__(self, low: npt.NDArray[Any], high: npt.NDArray[Any]) -> None:
        self.low, self.high = low, high

    def __call__(self, episodes: Sequence[Seen], rng: np.random.Generator) -> Floats:
        """See `Behaviour`."""
        return rng.uniform(self.low, self.high, (len(episodes), *self.low.shape)).astype(np.float32)


class SampledBehaviour:
    """Random actions of any space.

    Args:
        space: of the actions.
    """

    def __init__(self, space: gym.Space[Any]) -> None:
        self.space = space

    def __call__(self, episodes: Sequence[Seen], rng: np.random.Generator) -> list[Any]:
        """See `Behaviour`."""
        # A copy, since several threads roll one behaviour out.
        space = copy.deepcopy(self.space)
        space.seed(int(rng.integers(2**31)))
        return [space.sample() for _ in episodes]


class ActorBehaviour:
    """A soft actor-critic actor (Haarnoja et al. 2018) with two hidden layers, which samples as in its training.

    Args:
        layers: (kernel, bias) of the two hidden layers, the mean head and the log-std head; kernels are
            (inputs, outputs).
    """

    def __init__(self, layers: list[tuple[Floats, Floats]]) -> None:
        self.layers = layers

    @classmethod
    def load(cls, path: Path) -> ActorBehaviour:
        """Reads a snapshot: an npz file of `params/Dense_{0..3}/{kernel,bias}`.

        Raises:
            DataError: the file is missing, damaged or of another form.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                names = [(f"params/Dense_{i}/kernel", f"params/Dense_{i}/bias") for i in range(4)]
                layers = [(file[k].astype(np.float32), file[b].astype(np.float32)) for k, b in names]
        except (OSError, EOFError, KeyError, ValueError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(
                f"{path} is not a behaviour: {error}; expected an npz file with params/Dense_0/kernel and so on, "
                "as scripts/train_behaviour.py writes"
            ) from error
        return cls(layers)

    def save(self, path: Path) -> None:
        """Writes the snapshot in half precision, which halves the file and leaves the returns unchanged."""
        arrays: dict[str, Any] = {
            f"params/Dense_{i}/{name}": array.astype(np.float16)
            for i, layer in enumerate(self.layers)
            for name, array in zip(("kernel", "bias"), layer, strict=True)
        }
        np.savez_compressed(path, **arrays)

    def __call__(self, episodes: Sequence[Seen], rng: np.random.Generator) -> Floats:
        """See `Behaviour`."""
        hidden = np.stack([seen[-1] for seen in episodes]).astype(np.float32)
        for kernel, bias in self.layers[:2]:
            hidden = np.maximum(hidden @ kernel + bias, 0)
        mean, log_std = (hidden @ kernel + bias for kernel, bias in self.layers[2:])
        noise = rng.standard_normal(mean.shape, dtype=np.float32)
        return np.asarray(np.tanh(mean + np.exp(np.clip(log_std, -20, 2)) * noise), dtype=np.float32)


def bundled(task: str, snapshot: int) -> ActorBehaviour:
    """The bundled snapshot of a task after a number of environment steps of training.

    Raises:
        InvalidInput: no such snapshot is bundled.
    """
    folder = resources.files("aaren_rl.envs") / "snapshots" / task
    name = f"{snapshot:08d}.npz"
    known = sorted(f.name for f in folder.iterdir() if f.name.endswith(".npz")) if folder.is_dir() else []
    if name not in known:
        raise unknown_name(f"{task} behaviour", name, known or ["none"])
    with resources.as_file(folder / name) as path:
        return ActorBehaviour.load(path)
