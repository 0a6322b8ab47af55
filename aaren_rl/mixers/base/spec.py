"""The written form of a mixer: a name and options, as `local:60` or `aaren(recency=true)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from aaren_rl.errors import InvalidInput
from aaren_rl.mixers.base.contract import Mixer
from aaren_rl.spec import Option, Spec, WrittenForm, options_of_constructor

MixerSpec: TypeAlias = Spec
"""A mixer by name, with its options."""

CONV = "conv"
"""Option of every mixer: taps of a short convolution in front of it, 0 for none."""


def options_of(mixer: type[Mixer]) -> dict[str, Option]:
    """Options of a mixer: the parameters of its constructor beyond width and heads, and `conv`, which all have.

    Raises:
        InvalidInput: an option has no default, or an annotation that has no written form.
    """
    options = options_of_constructor(mixer, 2)
    if CONV in options:
        raise InvalidInput(f"{mixer.__name__} has an option {CONV!r}, which every mixer has already; name it otherwise")
    return options | {CONV: Option(int, mixer.conv)}


def read_spec(text: str, mixers: Mapping[str, type[Mixer]]) -> MixerSpec:
    """Reads a written form; see `WrittenForm.read`."""
    return FORM.read(text, mixers)


FORM: WrittenForm[Mixer] = WrittenForm(
    "mixer",
    "expected NAME, NAME:TOKENS or NAME(OPTION=VALUE, ...), as aaren, local:60 or aaren(recency=true)",
    options_of,
)
