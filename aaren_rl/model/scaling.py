"""How raw values of an environment are scaled before a network sees them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aaren_rl.data.spaces import Space
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.errors import InvalidInput


@dataclass(frozen=True)
class Scaling:
    """Statistics of the data that map raw values to what the network sees; kept with the weights.

    Actions need none: their space's bounds are mapped to -1 and 1.

    Attributes:
        observation_mean: of the observation's shape.
        observation_std: of the observation's shape, positive.
        return_scale: returns-to-go are divided by this.
        reward_scale: rewards are divided by this.

    Raises:
        InvalidInput: shapes differ, or a deviation or scale is not positive.
    """

    observation_mean: np.ndarray
    observation_std: np.ndarray
    return_scale: float = 1000.0
    reward_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.observation_mean.shape != self.observation_std.shape:
            raise InvalidInput(
                f"observation_mean has shape {self.observation_mean.shape} and observation_std "
                f"{self.observation_std.shape}; expected the observation's shape for both"
            )
        if not (self.observation_std > 0).all():
            raise InvalidInput("observation_std has values that are not positive; expected positive ones only")
        for name in ("return_scale", "reward_scale"):
            if not getattr(self, name) > 0:
                raise InvalidInput(f"{name} is {getattr(self, name)}; expected a positive number")

    @classmethod
    def of(cls, trajectories: Trajectories, return_scale: float | None = None) -> Scaling:
        """The scaling that fits a dataset.

        Args:
            trajectories: the data.
            return_scale: as the attribute; None for the largest return in absolute value.
        """
        mean, std = trajectories.observation_statistics()
        largest_return = float(np.abs(trajectories.returns).max())
        largest_reward = float(np.abs(trajectories.rewards).max())
        scale = largest_return or 1.0 if return_scale is None else return_scale
        return cls(mean, std, scale, largest_reward or 1.0)

    @classmethod
    def identity(cls, observation_space: Space) -> Scaling:
        """The scaling that changes nothing."""
        return cls(np.zeros(observation_space.shape, np.float32), np.ones(observation_space.shape, np.float32), 1.0)
