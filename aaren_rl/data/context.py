"""How training segments are cut from episodes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from aaren_rl.errors import InvalidInput


@dataclass(frozen=True)
class Context:
    """How training segments are cut from episodes.

    Attributes:
        mode: "window": consecutive steps of one episode (Chen et al. 2021). "episode": one whole episode in a row.
            "packed": as many whole episodes in a row as fit, with resets between them. "carry": the next steps of an
            endless sequence of episodes, from the state after the steps before; gradients stop at the segment's start
            (truncated backpropagation through time; Williams and Peng 1990).
        steps: length of a segment, for "window" and "carry".
        burn_in: steps before a window that fill the state and do not count in the loss (Kapturowski et al. 2019,
            "R2D2"; unlike there, gradients flow through them).
    """

    mode: Literal["window", "episode", "packed", "carry"]
    steps: int = 0
    burn_in: int = 0

    @classmethod
    def parse(cls, written: int | str) -> Context:
        """Reads the written form: 20, "10+20" (20 steps after a burn-in of 10), "episode", "packed" or "carry:20".

        Raises:
            InvalidInput: it is none of these.
        """
        text = str(written)
        if text in ("episode", "packed"):
            return cls("episode" if text == "episode" else "packed")
        if found := re.fullmatch(r"carry:([1-9]\d{0,8})", text):
            return cls("carry", int(found[1]))
        if found := re.fullmatch(r"(?:([1-9]\d{0,8})\+)?([1-9]\d{0,8})", text):
            return cls("window", int(found[2]), int(found[1] or 0))
        raise InvalidInput(
            f'context is {written!r}; expected steps of a window (20), with a burn-in before it ("10+20"), "episode", '
            '"packed", or "carry:STEPS"'
        )
