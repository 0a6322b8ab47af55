"""Ways of acting: how an agent comes from what it saw to its next action."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

from aaren_rl.errors import InvalidInput

Mode: TypeAlias = Literal["stream", "reset", "window", "closed-window"]


@dataclass(frozen=True)
class Acting:
    """How an agent comes from what it saw to its next action.

    Attributes:
        mode: "stream" steps a state that holds the whole episode. "reset" empties the mixers' state every so many steps
            of an episode. "window" keeps no state and runs the last steps through the model again, as public Decision
            Transformers do. "closed-window" does so without the action and the reward of the step before the window, as
            Hugging Face's Decision Transformers act.
        steps: between two resets, or of the window.
    """

    mode: Mode = "stream"
    steps: int = 0

    @classmethod
    def parse(cls, text: str) -> Acting:
        """Reads the written form: "stream", "reset:20", "window:20" or "closed-window:20".

        Raises:
            InvalidInput: it is none of these.
        """
        if text == "stream":
            return cls()
        if found := re.fullmatch(r"(reset|window|closed-window):([1-9]\d{0,8})", text):
            return cls(cast(Mode, found[1]), int(found[2]))
        raise InvalidInput(
            f"acting is {text!r}; expected stream, reset:STEPS, window:STEPS or closed-window:STEPS, as window:20"
        )

    @property
    def is_window(self) -> bool:
        """True for a window, closed or not."""
        return self.mode in ("window", "closed-window")

    def __str__(self) -> str:
        return self.mode if self.mode == "stream" else f"{self.mode}:{self.steps}"
