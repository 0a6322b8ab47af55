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
        closed: True for a window without the action and the reward of the step before it, as Hugging Face's Decision
            Transformers act.
    """

    mode: Literal["stream", "reset", "window"] = "stream"
    steps: int = 0
    closed: bool = False

    @classmethod
    def parse(cls, text: str) -> Acting:
        """Reads the written form: "stream", "reset:20", "window:20" or "closed-window:20".

        Raises:
            InvalidInput: it is none of these.
        """
        if text == "stream":
            return cls()
        if found := re.fullmatch(r"(reset|window|closed-window):([1-9]\d{0,8})", text):
            mode: Literal["reset", "window"] = "reset" if found[1] == "reset" else "window"
            return cls(mode, int(found[2]), closed=found[1] == "closed-window")
        raise InvalidInput(
            f"acting is {text!r}; expected stream, reset:STEPS, window:STEPS or closed-window:STEPS, as window:20"
        )

    def __str__(self) -> str:
        name = "closed-window" if self.closed else self.mode
        return name if self.mode == "stream" else f"{name}:{self.steps}"
