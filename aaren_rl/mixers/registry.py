"""Mixers by name."""

from __future__ import annotations

from collections.abc import Callable

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
