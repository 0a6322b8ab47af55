"""Places for names in a crowded picture."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

DIRECTIONS, DISTANCES = 24, (0.0, 6.0, 14.0, 24.0, 36.0, 50.0, 66.0, 84.0, 104.0, 128.0)
"""Candidate places of a name: directions around its circle, and distances from its edge in pixels."""

POINTS = 20
"""Points of the line from a name to its circle at which covering is counted."""

GAP = 2.0
"""Pixels around a name that stay free."""

MARGIN = 5.0
"""Pixels around a circle in which the name of another circle could be mistaken for its name."""


def place(centres: Floats, radii: Floats, sizes: Floats, covered: Floats, area: Floats) -> Floats:
    """Places names beside their circles, one after another, at the place of least cost (ours).

    A name costs what it covers: the picture's edge, earlier names and their lines, other circles, other drawings. Its
    line costs the earlier names and other circles that it crosses. Distance costs a little.

    Args:
        centres: centres of the circles in pixels, (names, 2).
        radii: radii of the circles, (names,).
        sizes: width and height of the names, (names, 2).
        covered: boxes of other drawings as left, bottom, right, top, (boxes, 4).
        area: box of the picture, (4,).

    Returns:
        Centres of the names, (names, 2).
    """
    angles = np.arange(DIRECTIONS) * (2 * np.pi / DIRECTIONS)
    around = np.tile(np.stack([np.cos(angles), np.sin(angles)], 1), (len(DISTANCES), 1))
    distances = np.repeat(DISTANCES, DIRECTIONS)
    # A point on the square around a circle, and the point of the name that lies on it: names stay outside the square.
    outward, hold = around / np.abs(around).max(1, keepdims=True), (1.5 * around).clip(-1, 1)
    reach = radii[:, None] + MARGIN
    circles = np.concatenate([centres - reach, centres + reach], 1)
    placed, lines, found = np.empty((0, 4)), np.empty((0, 2)), np.empty_like(centres)
    near = np.linalg.norm(centres[:, None] - centres, axis=2) < 2 * sizes.mean()
    # Names of the most crowded circles go first, while there is room.
    for name in np.argsort(-near.sum(1), kind="stable"):
        half = sizes[name] / 2 + GAP
        middles = centres[name] + outward * (radii[name] + distances)[:, None] + hold * half
        boxes = np.concatenate([middles - half, middles + half], 1)
        paths = centres[name] + np.linspace(0.0, 1.0, POINTS)[:, None, None] * (middles - centres[name])
        others = np.delete(circles, name, 0)
        cost = (
            100 * (4 * half.prod() - _overlap(boxes, area[None]).sum(1))
            + 50 * _overlap(boxes, placed).sum(1)
            + 10 * _overlap(boxes, others).sum(1)
            + _overlap(boxes, covered).sum(1)
            + 20 * _inside(lines, boxes).sum(0)
            + 100 * _inside(paths, placed).sum((0, 2))
            + 20 * _inside(paths, others).sum((0, 2))
            + 4 * distances
        )
        best = cost.argmin()
        found[name] = middles[best]
        placed, lines = np.concatenate([placed, boxes[best, None]]), np.concatenate([lines, paths[:, best]])
    return found


def _overlap(ones: Floats, others: Floats) -> Floats:
    """Shared area of every pair of boxes, (ones, others)."""
    low = np.maximum(ones[:, None, :2], others[:, :2])
    high = np.minimum(ones[:, None, 2:], others[:, 2:])
    shared: Floats = (high - low).clip(min=0).prod(-1)
    return shared


def _inside(points: Floats, boxes: Floats) -> npt.NDArray[np.bool_]:
    """True for each point, (..., 2), that lies in a box, (..., boxes)."""
    past_low = points[..., None, :] > boxes[:, :2]
    before_high = points[..., None, :] < boxes[:, 2:]
    return np.asarray((past_low & before_high).all(-1))
