"""What in data is accepted and yet odd, in words."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from aaren_rl.data.bounds import SCALED_BOUND, varies
from aaren_rl.data.spaces import Box, Space
from aaren_rl.data.storage import blocks
from aaren_rl.data.trajectories import Floats, Trajectories

MANY = 100
"""Episodes of a single step from which on they are reported; below it, one in fifty."""

FAR = 1e4
"""Size of a component from which on steps of 0.001 are lost in float32."""

SAMPLE = 10_000
"""Steps that quantiles are taken of, about."""


def describe_oddities(
    trajectories: Trajectories,
    return_scale: float | None = None,
    statistics: tuple[Floats, Floats] | None = None,
) -> list[str]:
    """What a person should know of data before training on them, one line each; most data have none.

    Args:
        trajectories: the data.
        return_scale: number that returns-to-go are divided by; None if they are scaled by the largest return.
        statistics: mean and deviation that observations are scaled by; None for those of the data.
    """
    mean, std = trajectories.observation_statistics() if statistics is None else statistics
    # Discrete numbers and words have no scale.
    std = np.where(_is_scaled(trajectories.observation_space, std.shape), std, np.nan)
    lines = [
        _single_steps(trajectories),
        _constant_observations(mean, std),
        _constant_actions(trajectories),
        _far_out(trajectories, mean, std),
        _dominated(trajectories, std),
        _equal_returns(trajectories),
        _dominated_returns(trajectories),
        None if return_scale is None else _large_returns(trajectories, return_scale),
    ]
    return [line for line in lines if line is not None]


def _is_scaled(space: Space | None, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Which numbers of a space belong to a Box, of their shape."""
    found = np.ones(shape, dtype=np.bool_)
    for part in () if space is None else space.parts():
        found.reshape(-1)[part.columns] = isinstance(part.space, Box)
    return found


def _single_steps(trajectories: Trajectories) -> str | None:
    single = np.flatnonzero(trajectories.lengths == 1)
    if not len(single) or len(single) < min(MANY, trajectories.episodes / 50):
        return None
    share = len(single) / trajectories.episodes
    return (
        f"{len(single)} of {trajectories.episodes} episodes ({share:.0%}) have a single step, the first is "
        f"episode {single[0]}: are ends marked at every step?"
    )


def _constant_observations(mean: Floats, std: Floats) -> str | None:
    constant = np.flatnonzero(std == 0)
    if not len(constant):
        return None
    line = (
        f"{len(constant)} of {std.size} observation components never vary ({_ranges(constant)}): they are held at "
        "their constants, and what an environment shows there is ignored"
    )
    far = constant[np.abs(mean.ravel()[constant]) > FAR]
    if not len(far):
        return line
    where = f"component {far[0]}, near {mean.ravel()[far[0]]:.6g}"
    return f"{line}; if {where}, does vary, float32 does not resolve it there: subtract an offset from the data"


def _constant_actions(trajectories: Trajectories) -> str | None:
    actions = trajectories.actions
    scaled = _is_scaled(trajectories.action_space, actions.shape[1:])
    still = np.flatnonzero(~varies(actions.min(0), actions.max(0)) & scaled)
    if not len(still):
        return None
    size = actions[0].size
    return f"{len(still)} of {size} action components never vary ({_ranges(still)}): the agent holds them there"


def _far_out(trajectories: Trajectories, mean: Floats, std: Floats) -> str | None:
    """Steps that are clipped in training."""
    count, first, component = 0, 0, 0
    limit = np.where(std > 0, SCALED_BOUND * std.astype(np.float64), np.inf)
    for start, block in blocks(trajectories.numbers):
        beyond = (np.abs(block - mean.astype(np.float64)) > limit).reshape(len(block), -1)
        rows = np.flatnonzero(beyond.any(1))
        if len(rows) and not count:
            first, component = start + int(rows[0]), int(np.flatnonzero(beyond[rows[0]])[0])
        count += len(rows)
    if not count:
        return None
    return (
        f"{count} steps have an observation more than {SCALED_BOUND:g} deviations from the mean, and are clipped "
        f"there; the first is step {first}, in episode {trajectories.episode_of(first)}, component {component}"
    )


def _dominated(trajectories: Trajectories, std: Floats) -> str | None:
    """Components of which a few values make up the deviation, so that all others look alike."""
    sample = trajectories.numbers[:: max(1, trajectories.steps // SAMPLE)]
    low, high = np.quantile(sample.astype(np.float64), [0.05, 0.95], axis=0)
    found = np.flatnonzero((high > low) & (std > SCALED_BOUND * (high - low)))
    if not len(found):
        return None
    component = int(found[0])
    column = trajectories.numbers.reshape(trajectories.steps, -1)[:, component]
    # The first of equal ones, as in one pass.
    steps = [start + int(np.abs(part).argmax()) for start, part in blocks(column)]
    step = max(steps, key=lambda step: abs(column[step]))
    return (
        f"{len(found)} observation components have a few values so large that the others look alike once scaled "
        f"({_ranges(found)}): component {component} is {column[step]:.3g} at step {step}, in episode "
        f"{trajectories.episode_of(step)}, and mostly from {low.ravel()[component]:.3g} to "
        f"{high.ravel()[component]:.3g}"
    )


def _equal_returns(trajectories: Trajectories) -> str | None:
    returns = trajectories.returns
    if len(returns) == 1 or varies(returns.min(), returns.max()):
        return None
    return f"all {len(returns)} episodes have the return {returns[0]:g}: a target return changes nothing"


def _dominated_returns(trajectories: Trajectories) -> str | None:
    """An episode whose return is so large that those of all others look alike."""
    sizes = np.abs(trajectories.returns.astype(np.float64))
    usual, most = float(np.quantile(sizes, 0.9)), int(sizes.argmax())
    if len(sizes) < 10 or sizes[most] <= SCALED_BOUND * usual:
        return None
    return (
        f"episode {most} has the return {trajectories.returns[most]:g}, nine in ten of the others at most {usual:.3g} "
        "in size: scaled by the largest they look alike, and a target from it is far from all others; leave it out, "
        "or pass --return-scale and --target"
    )


def _large_returns(trajectories: Trajectories, return_scale: float) -> str | None:
    count, first = 0, 0
    for start, block in blocks(trajectories.returns_to_go):
        beyond = np.flatnonzero(np.abs(block) > SCALED_BOUND * return_scale)
        if len(beyond) and not count:
            first = start + int(beyond[0])
        count += len(beyond)
    if not count:
        return None
    return (
        f"{count} steps have a return-to-go beyond {SCALED_BOUND:g} times the return scale of {return_scale:g}, "
        f"and are clipped there; the first is step {first}, in episode {trajectories.episode_of(first)}"
    )


def _ranges(numbers: npt.NDArray[np.intp]) -> str:
    """Sorted numbers in words: 3, 5 to 9."""
    pieces = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    words = [str(piece[0]) if len(piece) == 1 else f"{piece[0]} to {piece[-1]}" for piece in pieces]
    return ", ".join(words[:10]) + (", ..." if len(words) > 10 else "")
