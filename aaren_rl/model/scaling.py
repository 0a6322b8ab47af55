"""How raw values of an environment are scaled before a network sees them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aaren_rl.data.bounds import SMALLEST
from aaren_rl.data.spaces import Space
from aaren_rl.data.trajectories import Floats, Trajectories
from aaren_rl.errors import InvalidInput


@dataclass(frozen=True)
class Scaling:
    """Statistics of the data that map raw values to what the network sees; kept with the weights.

    Actions need none: their space's bounds are mapped to -1 and 1. All scaled values are clipped to
    `aaren_rl.data.bounds.SCALED_BOUND`.

    Attributes:
        observation_mean: of the shape of an observation's numbers.
        observation_std: likewise. 0 for a component that is constant in the data: it is held at its
            mean, and what an environment shows there changes nothing.
        return_scale: returns-to-go are divided by this.
        reward_scale: rewards are divided by this.
        return_range: least and greatest return-to-go; None for the return scale both ways.

    Raises:
        InvalidInput: shapes differ, a value is not finite in float32, a deviation is negative, a scale not positive, or
            the range upside down.
    """

    observation_mean: np.ndarray
    observation_std: np.ndarray
    return_scale: float = 1000.0
    reward_scale: float = 1.0
    return_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.observation_mean.shape != self.observation_std.shape:
            raise InvalidInput(
                f"observation_mean has shape {self.observation_mean.shape} and observation_std "
                f"{self.observation_std.shape}; expected the observation's shape for both"
            )
        with np.errstate(over="ignore"):
            numbers = [np.asarray(part).astype(np.float32) for part in (self.observation_mean, self.observation_std)]
        if not all(np.isfinite(part).all() for part in numbers):
            raise InvalidInput("observation_mean or observation_std has values that float32 does not hold as finite")
        if not (self.observation_std >= 0).all():
            raise InvalidInput(
                "observation_std has negative values; expected positive ones, and 0 where a component is constant"
            )
        if self.return_range is not None:
            least, greatest = self.return_range
            if not (np.isfinite(self.return_range).all() and least <= greatest):
                raise InvalidInput(f"return_range is {self.return_range}; expected two finite numbers, the least first")
        for name in ("return_scale", "reward_scale"):
            if not SMALLEST <= getattr(self, name) <= float(np.finfo(np.float32).max):
                raise InvalidInput(f"{name} is {getattr(self, name)}; expected a positive number that float32 holds")

    @classmethod
    def of(cls, trajectories: Trajectories, return_scale: float | None = None) -> Scaling:
        """The scaling that fits a dataset.

        Args:
            trajectories: the data.
            return_scale: as the attribute; None for the largest return in absolute value.
        """
        mean, std = trajectories.observation_statistics()
        scale = largest(trajectories.returns) if return_scale is None else return_scale
        to_go = trajectories.returns_to_go
        return cls(mean, std, scale, largest(trajectories.rewards), (float(to_go.min()), float(to_go.max())))

    @classmethod
    def identity(cls, observation_space: Space) -> Scaling:
        """The scaling that changes nothing but what is beyond the bound of scaled values."""
        shape = observation_space.shape if observation_space.size else (0,)
        return cls(np.zeros(shape, np.float32), np.ones(shape, np.float32), 1.0)


def largest(values: Floats) -> float:
    """The largest size of a value; 1 if there is none to speak of."""
    # Without an array of their sizes.
    size = max(float(values.max()), -float(values.min()))
    return size if size >= SMALLEST else 1.0
