"""Gymnasium's Box2D games: its own heuristics for the lander and the walker, and a driver for the racing car."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from aaren_rl.data.trajectories import Floats
from aaren_rl.envs.experts.expert import Env, game_of


class LunarLander:
    """Lands by the heuristic that Gymnasium ships, with discrete or continuous actions."""

    def __init__(self, env: Env, rng: np.random.Generator) -> None:
        self.env, self.module = env, _module("lunar_lander")

    def reset(self, observation: Any, info: Mapping[str, Any]) -> None:
        """See `Policy`."""

    def act(self, observation: Any, info: Mapping[str, Any], taken: Any) -> Any:
        """See `Policy`."""
        action = self.module.heuristic(self.env, observation)
        return action.astype(np.float32) if isinstance(action, np.ndarray) else int(action)


class BipedalWalker:
    """Walks by the heuristic that Gymnasium ships."""

    def __init__(self, env: Env, rng: np.random.Generator) -> None:
        pass

    def reset(self, observation: Any, info: Mapping[str, Any]) -> None:
        """See `Policy`."""
        self.heuristic = _module("bipedal_walker").BipedalWalkerHeuristics()
        # Its array belongs to the class, and so to all walkers.
        self.heuristic.a = np.zeros(4)

    def act(self, observation: Any, info: Mapping[str, Any], taken: Any) -> Floats:
        """See `Policy`."""
        return np.asarray(self.heuristic.step_heuristic(observation), dtype=np.float32)


class CarRacing:
    """Steers to a point of the track ahead of the car, and brakes before bends. It sees the track, not the image.

    Args:
        speed: greatest speed, in the simulation's metres a second.
    """

    def __init__(self, env: Env, rng: np.random.Generator, speed: float = 90.0) -> None:
        self.game, self.speed = game_of(env), speed
        self.continuous = self.game.continuous

    def reset(self, observation: Any, info: Mapping[str, Any]) -> None:
        """See `Policy`."""
        self.track = np.array([tile[2:4] for tile in self.game.track])

    def act(self, observation: Any, info: Mapping[str, Any], taken: Any) -> Any:
        """See `Policy`."""
        hull = self.game.car.hull
        place, velocity = np.array(hull.position), np.array(hull.linearVelocity)
        nearest = int(np.linalg.norm(self.track - place, axis=1).argmin())
        off = self._off_course(place, hull.angle, nearest + 5)
        bend = abs(self._off_course(place, hull.angle, nearest + 12))
        fast = float(np.linalg.norm(velocity))
        target = self.speed * float(np.clip(1.2 - bend, 0.4, 1.0))
        gas, brake = float(np.clip((target - fast) / 10, 0, 0.6)), float(np.clip((fast - target) / 20, 0, 0.5))
        steering = float(np.clip(-2.0 * off, -1, 1))
        if self.continuous:
            return np.array([steering, gas, brake], dtype=np.float32)
        return _nearest_discrete(steering, gas, brake)

    def _off_course(self, place: Any, angle: float, tile: int) -> float:
        """Angle from the car's nose to a tile, in radians; positive to the left."""
        ahead = self.track[tile % len(self.track)] - place
        turn = np.arctan2(-ahead[0], ahead[1]) - angle
        return float((turn + np.pi) % (2 * np.pi) - np.pi)


def _module(name: str) -> Any:
    """One of Gymnasium's modules, which need Box2D."""
    return importlib.import_module(f"gymnasium.envs.box2d.{name}")


def _nearest_discrete(steering: float, gas: float, brake: float) -> int:
    """The discrete game's actions are: nothing, right, left, gas, brake."""
    if abs(steering) > 0.2:
        return 1 if steering > 0 else 2
    return 3 if gas > 0.1 else 4 if brake > 0.05 else 0
