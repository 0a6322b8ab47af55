"""Ways of acting: how an agent comes from what it saw to its next action."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from aaren_rl.errors import InvalidInput


@dataclass(frozen=True)
class Acting:
    """How an agent comes from what it saw to its next action.

    Attributes:
        mode: "stream" steps a state that holds the whole episode. "reset" empties the mixers' state every so many steps
            of an episode. "window" keeps no state and runs the last steps through the model again, as public Decision
            Transformers do.
        steps: between two resets, or of the window.
    """

    mode: Literal["stream", "reset", "window"] = "stream"
    steps: int = 0

    @classmethod
    def parse(cls, text: str) -> Acting:
        """Reads the written form: "stream", "reset:20" or "window:20".

        Raises:
            InvalidInput: it is none of these.
        """
        if text == "stream":
            return cls()
        if found := re.fullmatch(r"(reset|window):([1-9]\d{0,8})", text):
            return cls("reset" if found[1] == "reset" else "window", int(found[2]))
        raise InvalidInput(f"acting is {text!r}; expected stream, reset:STEPS or window:STEPS, as window:20")

    def __str__(self) -> str:
        return self.mode if self.mode == "stream" else f"{self.mode}:{self.steps}"
