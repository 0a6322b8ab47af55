"""Time of a step and of an update by mixer, beside Aaren's."""

from __future__ import annotations

import numpy as np

import setting
from aaren_rl import mixers
from aaren_rl.data.sampler import Sampler
from aaren_rl.experiments import measuring
from aaren_rl.experiments.measuring import Report, compare, timed
from stepping import CALLS, Acting
from training import our_update

CONSTANT = [name for name in mixers.names() if mixers.get(name).memory == "constant"]
"""Mixers of constant memory, Aaren among them."""

SEGMENTS = {"20 steps": (setting.CONTEXT, 64), "3,000 tokens": (3_000, 1)}
"""Steps of a segment and segments of a batch, by the name of the row; tokens are fused."""


def measure(report: Report) -> None:
    """Measures the rows of all mixers of constant memory."""
    for layout in ("interleaved", "fused"):
        taken = measuring.alternate({name: timed(Acting(layout=layout, mixer=name).step, CALLS) for name in CONSTANT})
        for name in CONSTANT:
            row = f"agent.act, {layout}, {name} vs aaren"
            report.add(compare(row, taken[name], taken[name], taken["aaren"], "mixer / aaren", "us"))
    for segment, (steps, batch_size) in SEGMENTS.items():
        data = setting.make_trajectories(8 * batch_size * steps, steps)
        sampler = Sampler(data, np.arange(data.episodes), batch_size, "episode")
        taken = measuring.alternate({name: timed(our_update(sampler, layout="fused", mixer=name)) for name in CONSTANT})
        for name in CONSTANT:
            row = f"update, {segment}, {name} vs aaren"
            report.add(compare(row, taken[name], taken[name], taken["aaren"], "mixer / aaren", "ms"))
