"""Gymnasium's classic control tasks, and popgym's partly hidden ones: controllers that read the physics' state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from aaren_rl.data.trajectories import Floats
from aaren_rl.envs.experts.expert import Env, game_of, seeded, within
from aaren_rl.errors import InvalidInput

LEFT, RIGHT = 0, 1

_GAINS = {"good": (0.1, 0.3, 1.0, 0.5), "poor": (0.0, 0.0, 0.0, 1.0)}
"""Weights of place, speed, angle and angular speed: the poor controller sees the angular speed alone."""

MIXTURES = {
    "good": {"good": 1.0},
    "poor": {"poor": 1.0},
    "random": {"random": 1.0},
    "mixed": {"random": 0.2, "poor": 0.45, "good": 0.35},
}
"""Shares of the episodes that each controller plays. Their mean returns are some 500, 195, 22 and 270."""


class CartPole:
    """Balances the pole by a linear feedback.

    Args:
        mixture: name in `MIXTURES`.

    Raises:
        InvalidInput: there is no such mixture.
    """

    def __init__(self, env: Env, rng: np.random.Generator, mixture: str = "good") -> None:
        if mixture not in MIXTURES:
            raise InvalidInput(f"mixture is {mixture!r}; expected {', '.join(MIXTURES)}")
        self.game, self.rng, self.space = game_of(env), rng, seeded(env.action_space, rng)
        self.shares = MIXTURES[mixture]

    def reset(self, observation: Any, info: Mapping[str, Any]) -> None:
        """See `Policy`."""
        self.plays = self.rng.choice(list(self.shares), p=list(self.shares.values()))

    def act(self, observation: Any, info: Mapping[str, Any], taken: Any) -> int:
        """See `Policy`."""
        if self.plays == "random":
            return int(self.space.sample())
        return RIGHT if np.dot(_GAINS[self.plays], _state(self.game)) > 0 else LEFT


class MountainCar:
    """Pushes the way that the car rolls, with discrete or continuous actions."""

    def __init__(self, env: Env, rng: np.random.Generator) -> None:
        self.game, self.discrete = game_of(env), env.action_space.shape == ()

    def reset(self, observation: Any, info: Mapping[str, Any]) -> None:
        """See `Policy`."""

    def act(self, observation: Any, info: Mapping[str, Any], taken: Any) -> Any:
        """See `Policy`."""
        forward = _state(self.game)[1] >= 0
        if self.discrete:
            return 2 if forward else 0
        return np.array([1.0 if forward else -1.0], dtype=np.float32)


class Pendulum:
    """Swings up by energy, and holds the pendulum upright by its angle and speed."""

    UPRIGHT = 0.6
    """Angle in radians within which it holds."""

    def __init__(self, env: Env, rng: np.random.Generator) -> None:
        self.game = game_of(env)

    def reset(self, observation: Any, info: Mapping[str, Any]) -> None:
        """See `Policy`."""

    def act(self, observation: Any, info: Mapping[str, Any], taken: Any) -> Floats:
        """See `Policy`."""
        angle, speed = _state(self.game)
        angle = (angle + np.pi) % (2 * np.pi) - np.pi
        if abs(angle) < self.UPRIGHT:
            torque = -(12.0 * angle + 3.0 * speed)
        else:
            # Energy of a rod of mass and length 1, less that of resting upright.
            energy = speed**2 / 6 + 5 * (np.cos(angle) - 1)
            torque = -2.0 * energy * (1.0 if speed >= 0 else -1.0)
        return within([torque], -2.0, 2.0)


class Acrobot:
    """Pushes the second link against the turning of the first, which swings the first up."""

    def __init__(self, env: Env, rng: np.random.Generator) -> None:
        self.game = game_of(env)

    def reset(self, observation: Any, info: Mapping[str, Any]) -> None:
        """See `Policy`."""

    def act(self, observation: Any, info: Mapping[str, Any], taken: Any) -> int:
        """See `Policy`."""
        return 0 if _state(self.game)[2] > 0 else 2


def _state(game: Any) -> Floats:
    """The whole state of the physics, whatever part of it the observation shows."""
    return np.asarray(game.state, dtype=np.float64)
