"""The table of mixers: memory, source, differences from it, and costs."""

from __future__ import annotations

from inspect import signature

import torch

from aaren_rl import mixers

WIDTH, STEPS = 128, 1_000
"""Size and number of the tokens behind the bytes of a state."""


def legend() -> str:
    """Meaning of the letters and figures in the table."""
    return (
        "The number behind a name is the number of tokens seen; any other may be given. All mixers take sequences "
        "of any length. T: tokens of a sequence, t: tokens so far, d: width of a token, "
        "h: width of one head, n: the number behind the name. Costs leave out the projections of single tokens. "
        f"State: bytes that one block of width {WIDTH} with one head carries after {STEPS:,} tokens."
    )


def table() -> str:
    """Markdown table of all mixers, from the declarations of their classes."""
    lines = [
        "| mixer | memory | tokens seen | source | against it | cost of a sequence | cost of a step | state |",
        "|---|---|---|---|---|---|---|---:|",
    ]
    for name in mixers.names():
        mixer = mixers.get(name)
        about = mixer.capability
        window = signature(mixer).parameters.get("span")
        written, span = (f"`{name}`", 0) if window is None else (f"`{name}:{window.default}`", window.default)
        cells = [written, mixer.memory, about.sees.format(n=span), about.source, about.differs or "exact"]
        lines.append(f"| {' | '.join([*cells, about.parallel, about.step, f'{_state_bytes(name):,}'])} |")
    return "\n".join(lines)


def _state_bytes(name: str) -> int:
    mixer = mixers.build(name, WIDTH, 1).eval()
    with torch.inference_mode():
        return mixers.state_bytes(mixer(torch.zeros(1, STEPS, WIDTH))[1])
