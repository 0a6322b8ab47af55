"""Checks of arguments that memory tasks share."""

from __future__ import annotations

from aaren_rl.errors import InvalidInput


def require_whole(least: int = 1, **values: object) -> None:
    """Checks that arguments are whole numbers of at least `least`.

    Raises:
        InvalidInput: one is not; the message names it.
    """
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InvalidInput(f"{name} is {value!r}; expected a whole number, at least {least}")
