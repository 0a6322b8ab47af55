"""Mixers by name."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

from aaren_rl.errors import InvalidInput, unknown_name
from aaren_rl.mixers.base.contract import Mixer

_MIXERS: dict[str, type[Mixer]] = {}


def register(name: str) -> Callable[[type[Mixer]], type[Mixer]]:
    """Class decorator that offers a mixer under a name.

    Raises:
        InvalidInput: the name is taken, or the class does not declare its memory and its capability.
    """

    def add(mixer: type[Mixer]) -> type[Mixer]:
        if name in _MIXERS:
            raise InvalidInput(f"a mixer named {name!r} is registered already ({_MIXERS[name].__name__})")
        for declared in ("memory", "capability"):
            if not hasattr(mixer, declared):
                raise InvalidInput(f"{mixer.__name__} does not declare {declared!r}; see aaren_rl.mixers.Mixer")
        _MIXERS[name] = mixer
        return mixer

    return add


def names() -> list[str]:
    """The registered names, sorted."""
    return sorted(_MIXERS)


def get(written: str) -> type[Mixer]:
    """The mixer class of a written form.

    Args:
        written: a name, or a name and the tokens of its window, as "local:60".

    Raises:
        InvalidInput: no mixer has this name (the message lists near matches), it has no window, or not one of so many
            tokens.
    """
    return _parse(written)[0]


def build(written: str, width: int, heads: int, **options: Any) -> Mixer:
    """A mixer from its written form.

    Args:
        written: as for `get`.
        width: size of a token.
        heads: number of heads; must divide the width.
        options: of this mixer alone.

    Raises:
        InvalidInput: as `get`, or the width does not fit the heads.
    """
    kind, window = _parse(written)
    return kind(width, heads, **window, **options)


def _parse(written: str) -> tuple[type[Mixer], dict[str, int]]:
    name, colon, span = written.partition(":")
    if name not in _MIXERS:
        raise unknown_name("mixer", name, _MIXERS)
    kind = _MIXERS[name]
    if not colon:
        return kind, {}
    if "span" not in signature(kind).parameters:
        raise InvalidInput(f"mixer {written!r}: {name} has no window of tokens; pass {name!r}")
    if not (span.isdecimal() and int(span)):
        raise InvalidInput(f"mixer {written!r}: {span!r} is no number of tokens; expected 1 or more, as {name}:20")
    return kind, {"span": int(span)}
