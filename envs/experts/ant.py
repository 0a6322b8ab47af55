"""A trot that carries MuJoCo's ant in any direction without turning it.

The ant's four legs are alike, so a direction only says how far each leg swings and how far it stretches. Legs that are
across from each other step together. A foot on the ground moves from ahead to behind, against the way of the body; then
it is lifted and comes back. Torques follow from the angles by a proportional and derivative control. The numbers of the
gaits were found by a random search over the distance that is walked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aaren_rl.data.trajectories import Floats
from aaren_rl.envs.experts.expert import within

Numbers = npt.NDArray[np.float64]

_LEGS = np.deg2rad([45.0, 135.0, 225.0, 315.0])
"""Where each leg points, seen from the body; in the order of the joints."""

_BENDS = np.array([1.0, -1.0, -1.0, 1.0])
"""Sign of each ankle's angle."""

_PHASES = np.array([0.0, 0.5, 0.0, 0.5])

_ANKLES = (0.5, 1.25)
"""Least and greatest angle of an ankle, in radians; a small one stretches the leg."""

_MOTORS = np.array([6, 7, 0, 1, 2, 3, 4, 5])
"""The joint of each motor: the model lists the last leg's motors first."""

HALT = 0.5
"""Metres before the end of the way at which strides begin to shorten."""


@dataclass(frozen=True)
class Gait:
    """Numbers of a trot.

    Attributes:
        stiffness: torque for each radian between an angle and its target, in shares of the greatest torque.
        damping: torque against each radian a second.
        frequency: strides a second.
        swing: greatest angle of the hips, in radians.
        bend: mean angle of the ankles.
        stretch: how far the ankles move about the mean in a stride along the leg.
        lift: how far an ankle stretches while its foot is lifted.
        ground: share of a stride that a foot is on the ground.
    """

    stiffness: float
    damping: float
    frequency: float
    swing: float
    bend: float
    stretch: float
    lift: float
    ground: float


GAIT = Gait(1.9, 0.073, 2.1, 0.25, 1.04, 0.36, 0.23, 0.6)
"""For Gymnasium's ant, 20 actions a second: some 1.7 metres a second."""

SLOW_GAIT = Gait(3.3, 0.2, 1.31, 0.52, 1.16, 0.305, 0.46, 0.635)
"""For OGBench's ant, whose motors are weaker, 10 actions a second: some 1.3 metres a second."""


def trot(gait: Gait, places: Any, speeds: Any, time: float, way: Any) -> Floats:
    """Torques of the motors, (8,), from -1 to 1.

    Args:
        gait: numbers of the trot.
        places: of the free body and of the joints, (15,).
        speeds: likewise, (14,).
        time: seconds since the trot began.
        way: to walk, (2,); strides are shorter on the last `HALT` metres.
    """
    direction = np.arctan2(way[1], way[0]) - _heading(places[3:7])
    size = min(1.0, float(np.hypot(*way)) / HALT)
    along, across = size * np.cos(direction - _LEGS), size * np.sin(direction - _LEGS)
    phase = (time * gait.frequency + _PHASES) % 1.0
    lifted = np.maximum(phase - gait.ground, 0.0) / (1.0 - gait.ground)
    # From 1, ahead, to -1, behind, and back.
    reach = np.where(phase < gait.ground, 1.0 - 2.0 * phase / gait.ground, 2.0 * lifted - 1.0)
    ankles = gait.bend - gait.stretch * along * reach - gait.lift * np.sin(np.pi * lifted)
    targets = np.empty(8)
    targets[0::2] = gait.swing * across * reach
    targets[1::2] = np.clip(ankles, *_ANKLES) * _BENDS
    torques = gait.stiffness * (targets - places[7:15]) - gait.damping * np.asarray(speeds[6:14])
    return within(torques[_MOTORS])


def _heading(quaternion: Any) -> float:
    """Angle by which a body is turned about the vertical, in radians."""
    w, x, y, z = quaternion
    return float(np.arctan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z)))
