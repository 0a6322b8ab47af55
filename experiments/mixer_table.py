"""The table of mixers: options, memory, source, what differs from it, and costs."""

from __future__ import annotations

import torch

from aaren_rl import mixers
from aaren_rl.mixers.base.spec import CONV

WIDTH, STEPS = 128, 1_000
"""Width and number of the tokens after which a state is measured."""


def legend() -> str:
    """Meaning of the letters and figures in the table."""
    return (
        "A number behind a name is the span of the window; `local:60` is short for `local(span=60)`. "
        "Options are written in parentheses, as `aaren(recency=true)`; the table shows their defaults. Every mixer has "
        "the option `conv`, taps of a convolution in front of it, which is 0 where it is not shown. Sequences may "
        "have any length. T: tokens of a sequence, t: tokens so far, d: width of a token, h: width of a head, n: span. "
        "Costs leave out projections of single tokens. "
        f"State: bytes that one block of width {WIDTH} with one head carries after {STEPS:,} tokens."
    )


def table() -> str:
    """All mixers as a Markdown table, from what their classes declare."""
    lines = [
        "| mixer | options | memory | tokens seen | source | what differs | sequence costs | step costs | state |",
        "|---|---|---|---|---|---|---|---|---:|",
    ]
    for name in mixers.names():
        mixer, options = mixers.get(name), mixers.option_defaults(name)
        about, span = mixer.capability, options.get("span")
        shown = [mixers.write_option(*option) for option in options.items() if option != (CONV, 0)]
        cells = [
            f"`{name if span is None else mixers.MixerSpec(name, {'span': span})}`",
            ", ".join(f"`{option}`" for option in shown) or "-",
            mixer.memory,
            about.sees.format(n=span),
            about.source,
            about.differs or "exact",
            about.parallel,
            about.step,
            f"{_state_bytes(name):,}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _state_bytes(name: str) -> int:
    mixer = mixers.build(name, WIDTH, 1).eval()
    with torch.inference_mode():
        return mixers.state_bytes(mixer(torch.zeros(1, STEPS, WIDTH))[1])
