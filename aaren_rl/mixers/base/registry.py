"""Mixers by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aaren_rl.errors import InvalidInput, require_free_name
from aaren_rl.mixers.base.contract import Mixer
from aaren_rl.mixers.base.short_convolution import ShortConvolution
from aaren_rl.mixers.base.spec import CONV, MixerSpec, options_of, read_spec
from aaren_rl.spec import Value, split_specs

_MIXERS: dict[str, type[Mixer]] = {}


def register(name: str) -> Callable[[type[Mixer]], type[Mixer]]:
    """Class decorator that registers a mixer under a name; a class that is defined anew replaces itself.

    Raises:
        InvalidInput: the name is taken by another class; the class does not declare its memory and its capability; or
            an option has no default or no annotation.
    """

    def add(mixer: type[Mixer]) -> type[Mixer]:
        require_free_name("a mixer", name, mixer, _MIXERS)
        for declared in ("memory", "capability"):
            if not hasattr(mixer, declared):
                raise InvalidInput(f"{mixer.__name__} does not declare {declared!r}; see aaren_rl.mixers.Mixer")
        options_of(mixer)
        _MIXERS[name] = mixer
        return mixer

    return add


def names() -> list[str]:
    """Registered names, sorted."""
    return sorted(_MIXERS)


def parse_spec(text: str) -> MixerSpec:
    """Parses the written form of one mixer, as `local:60` or `aaren(recency=true)`.

    Raises:
        InvalidInput: bad syntax, an unknown name or option, or a value of a wrong type.
    """
    return read_spec(text, _MIXERS)


def parse_specs(text: str) -> tuple[MixerSpec, ...]:
    """Parses the written forms of several mixers, one for every comma outside parentheses.

    Raises:
        InvalidInput: as `parse_spec`.
    """
    return tuple(parse_spec(part) for part in split_specs(text))


def get(spec: MixerSpec | str) -> type[Mixer]:
    """Class of a mixer.

    Args:
        spec: a `MixerSpec` or its written form.

    Raises:
        InvalidInput: as `parse_spec`.
    """
    return _MIXERS[parse_spec(str(spec)).name]


def build(spec: MixerSpec | str, width: int, heads: int, **options: Any) -> Mixer:
    """Builds a mixer.

    Args:
        spec: a `MixerSpec` or its written form.
        width: size of a token.
        heads: number of heads; must divide the width.
        options: further options, by name.

    Returns:
        The mixer, behind a `ShortConvolution` where the option `conv` asks for one.

    Raises:
        InvalidInput: as `parse_spec`, the width does not fit the heads, or an option is out of range.
    """
    parsed = parse_spec(str(spec))
    mixer = _MIXERS[parsed.name]
    given = {**parsed.options, **options}
    taps = given.pop(CONV, mixer.conv)
    built = mixer(width, heads, **given)
    return ShortConvolution(built, taps) if taps else built


def option_defaults(spec: MixerSpec | str) -> dict[str, Value]:
    """Options of a mixer with their defaults.

    Args:
        spec: a `MixerSpec` or its written form.

    Raises:
        InvalidInput: as `parse_spec`.
    """
    return {name: option.default for name, option in options_of(get(spec)).items()}
