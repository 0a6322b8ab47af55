"""The table of mixers: memory, source, differences from it, and costs."""

from __future__ import annotations

from inspect import signature

import torch

from aaren_rl import mixers

WIDTH, STEPS = 128, 1_000
"""Tokens of this size, and so many of them, for the bytes of a state."""


def legend() -> str:
    """What the letters of the table stand for."""
    return (
        "The number behind a name is that of the tokens seen, and any other may be given. Sequences "
        "may be of any length for all of them. T: tokens of a sequence, t: tokens so far, d: width of a token, "
        "h: width of one head, n: the number behind the name. Costs leave out the projections of single tokens. "
        f"State: bytes that one block of width {WIDTH} with one head carries after {STEPS:,} tokens."
    )


def table() -> str:
    """All mixers as a Markdown table, made from what their classes declare."""
    lines = [
        "| mixer | memory | tokens seen | source | against it | cost of a sequence | cost of a step | state |",
        "|---|---|---|---|---|---|---|---:|",
    ]
    for name in mixers.names():
        kind = mixers.get(name)
        about = kind.capability
        window = signature(kind).parameters.get("span")
        written, span = (f"`{name}`", 0) if window is None else (f"`{name}:{window.default}`", window.default)
        cells = [written, kind.memory, about.sees.format(n=span), about.source, about.differs or "exact"]
        lines.append(f"| {' | '.join([*cells, about.parallel, about.step, f'{_state_bytes(name):,}'])} |")
    return "\n".join(lines)


def _state_bytes(name: str) -> int:
    mixer = mixers.build(name, WIDTH, 1).eval()
    with torch.inference_mode():
        return mixers.state_bytes(mixer(torch.zeros(1, STEPS, WIDTH))[1])
