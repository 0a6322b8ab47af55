"""Mixers by name."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

from aaren_rl.errors import InvalidInput, unknown_name
from aaren_rl.mixers.base import Mixer

_MIXERS: dict[str, type[Mixer]] = {}


def register(name: str) -> Callable[[type[Mixer]], type[Mixer]]:
    """Class decorator that offers a mixer under a name.

    Raises:
        InvalidInput: the name is taken.
    """

    def add(mixer: type[Mixer]) -> type[Mixer]:
        if name in _MIXERS:
            raise InvalidInput(f"a mixer named {name!r} is registered already ({_MIXERS[name].__name__})")
        _MIXERS[name] = mixer
        return mixer

    return add


def names() -> list[str]:
    """The registered names, sorted."""
    return sorted(_MIXERS)


def get(name: str) -> type[Mixer]:
    """The mixer class of a name.

    Raises:
        InvalidInput: no mixer has this name; the message lists near matches.
    """
    if name not in _MIXERS:
        raise unknown_name("mixer", name, _MIXERS)
    return _MIXERS[name]


def build(written: str, width: int, heads: int, **options: Any) -> Mixer:
    """A mixer from its written form.

    Args:
        written: a name, or a name and the tokens of its window, as "local:60".
        width: size of a token.
        heads: number of heads; must divide the width.
        options: of this mixer alone.

    Raises:
        InvalidInput: no mixer has this name, it has no window or not this one, or the width does not fit the heads.
    """
    name, colon, span = written.partition(":")
    kind = get(name)
    if colon:
        if "span" not in signature(kind).parameters:
            raise InvalidInput(f"mixer {written!r}: {name} has no window of tokens; pass {name!r}")
        if not span.isdecimal() or int(span) < 1:
            raise InvalidInput(f"mixer {written!r}: {span!r} is no number of tokens; expected at least 1, as {name}:20")
        options["span"] = int(span)
    return kind(width, heads, **options)
