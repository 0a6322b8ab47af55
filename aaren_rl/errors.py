"""Errors that a user can cause and mend: each names the given value, the expected one and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

LONGEST = 2_000
"""Characters of the longest message; values that files hold may be of any length."""


class AarenError(Exception):
    """Base of all errors that this package raises on purpose; command lines print it without a traceback."""

    def __str__(self) -> str:
        text = super().__str__()
        left_out = len(text) - LONGEST
        if left_out <= 0:
            return text
        # What is wrong stands at the start, what to do at the end.
        return f"{text[: LONGEST - 500]} [... {left_out} characters ...] {text[-500:]}"


class InvalidInput(AarenError, ValueError):
    """An argument, array or configuration does not fit."""


class DataError(AarenError):
    """A dataset is missing, damaged or inconsistent."""


class CheckpointError(AarenError):
    """An agent folder is missing, damaged, altered or does not fit."""


class EpisodeFailed(AarenError):
    """An environment raised an error, or returned a value that nobody can act on, in a roll-out.

    Attributes:
        environment: its name.
        row: of the vector environment; None if that does not say which of its rows failed.
        episode: number of the row's episode, from 1; None if the row is unknown or no episode had begun.
        episodes: number of episodes that the row has to play; None likewise.
        seed: of the row's first reset; None likewise.
        step: of the episode, 0 for its reset; None likewise.
    """

    def __init__(
        self,
        message: str,
        environment: str = "",
        row: int | None = None,
        episode: int | None = None,
        episodes: int | None = None,
        seed: int | None = None,
        step: int | None = None,
    ) -> None:
        super().__init__(message)
        self.environment, self.row = environment, row
        self.episode, self.episodes, self.seed, self.step = episode, episodes, seed, step


def unknown_name(noun: str, given: str, known: Iterable[str]) -> InvalidInput:
    """An error for a name that is not in a list, with its nearest matches.

    Args:
        noun: what the name is of, as "mixer".
        given: the unknown name.
        known: all known names.
    """
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    more = f" and {len(names) - 30} more" if len(names) > 30 else ""
    hint = (
        f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(map(repr, names[:30]))}{more}"
    )
    return InvalidInput(f"unknown {noun} {given!r}; {hint}")


def require_free_name(what: str, name: str, new: type, registered: Mapping[str, type]) -> None:
    """Refuses to register a class under the name of another; a class that is defined anew may replace itself.

    Args:
        what: what the classes are, with its article, as "a mixer".
        name: to register under.
        new: the class.
        registered: all registered classes.

    Raises:
        InvalidInput: the name is taken by another class.
    """
    taken = registered.get(name)
    if taken and (taken.__module__, taken.__qualname__) != (new.__module__, new.__qualname__):
        raise InvalidInput(f"{what} named {name!r} is registered already ({taken.__name__})")
