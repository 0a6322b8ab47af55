"""The written form of a mixer: a name and options, as `local:60` or `aaren(recency=true)`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import Parameter, signature
from typing import Any, Literal, NamedTuple, TypeAlias, get_args, get_origin, get_type_hints

from aaren_rl.errors import InvalidInput, unknown_name
from aaren_rl.mixers.base.contract import Mixer

Value: TypeAlias = bool | int | float | str

CONV = "conv"
"""Option of every mixer: taps of a short convolution in front of it, 0 for none."""

GRAMMAR = "expected NAME, NAME:TOKENS or NAME(OPTION=VALUE, ...), as aaren, local:60 or aaren(recency=true)"


@dataclass(frozen=True)
class MixerSpec:
    """A mixer by name, with its options; `str` gives the canonical written form.

    Attributes:
        name: registered name of the mixer.
        options: value of each option that differs from its default, or that is written out.
    """

    name: str
    options: Mapping[str, Value] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.name, tuple(sorted(self.options.items()))))

    def __str__(self) -> str:
        if list(self.options) == ["span"]:
            return f"{self.name}:{self.options['span']}"
        written = ", ".join(write_option(*option) for option in sorted(self.options.items()))
        return f"{self.name}({written})" if written else self.name


class Option(NamedTuple):
    """An option of a mixer.

    Attributes:
        annotation: bool, int, float, str or a Literal of these.
        default: value of an option that is left out.
    """

    annotation: Any
    default: Any


def options_of(mixer: type[Mixer]) -> dict[str, Option]:
    """Options of a mixer: the parameters of its constructor beyond width and heads, and `conv`, which all have.

    Raises:
        InvalidInput: an option has no default, or an annotation that has no written form.
    """
    variadic = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    parameters = [part for part in signature(mixer).parameters.values() if part.kind not in variadic][2:]
    annotations = get_type_hints(mixer.__init__) if parameters else {}
    options = {part.name: Option(annotations.get(part.name), part.default) for part in parameters}
    for name, (annotation, default) in options.items():
        if annotation not in (bool, int, float, str) and get_origin(annotation) is not Literal:
            raise InvalidInput(
                f"option {name!r} of {mixer.__name__} is annotated {annotation}; expected bool, int, float, str or "
                "a Literal of these"
            )
        if default is Parameter.empty:
            raise InvalidInput(f"option {name!r} of {mixer.__name__} has no default; give it one")
    if CONV in options:
        raise InvalidInput(f"{mixer.__name__} has an option {CONV!r}, which every mixer has already; name it otherwise")
    return options | {CONV: Option(int, mixer.conv)}


def split_specs(text: str) -> list[str]:
    """Splits at every comma outside parentheses."""
    return [part.strip() for part in re.split(r",(?![^()]*\))", text)]


def read_spec(text: str, mixers: Mapping[str, type[Mixer]]) -> MixerSpec:
    """Reads a written form and checks it against the constructor of the mixer.

    Args:
        text: `name`, `name:60` (short for `name(span=60)`) or `name(option=value, ...)`. Values are true, false,
            numbers and words.
        mixers: classes by name.

    Raises:
        InvalidInput: bad syntax, an unknown name or option, or a value of a wrong type.
    """
    parts = re.fullmatch(r"([\w-]*)(?::(.*)|\((.*)\))?", text.strip(), re.DOTALL)
    if parts is None:
        raise InvalidInput(f"mixer {text!r} cannot be read; {GRAMMAR}")
    name, span, inside = parts.groups()
    if name not in mixers:
        raise unknown_name("mixer", name, mixers)
    known = options_of(mixers[name])
    if span is not None:
        if "span" not in known:
            raise InvalidInput(f"mixer {text!r}: {name} has no window of tokens; pass {name!r}")
        given = {"span": span}
    else:
        given = {} if inside is None else _split_options(text, inside)
    for option in given:
        if option not in known:
            raise _unknown_option(text, name, option, known)
    return MixerSpec(name, {option: _read_option(text, name, option, known, given[option]) for option in given})


def write_option(name: str, value: Value) -> str:
    """An option as it is written, `recency=true`."""
    return f"{name}={_write(value)}"


def _split_options(text: str, inside: str) -> dict[str, str]:
    """The options in the parentheses of a written form, unread."""
    given: dict[str, str] = {}
    for part in inside.split(","):
        option, equals, value = (piece.strip() for piece in part.partition("="))
        if not (option and equals and value):
            raise InvalidInput(f"mixer {text!r} cannot be read; {GRAMMAR}")
        if option in given:
            raise InvalidInput(f"mixer {text!r} sets option {option!r} twice; set it once")
        given[option] = value
    return given


def _unknown_option(text: str, name: str, option: str, known: Mapping[str, Option]) -> InvalidInput:
    near = difflib.get_close_matches(option, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    defaults = ", ".join(write_option(other, known[other].default) for other in sorted(known))
    return InvalidInput(f"mixer {text!r}: unknown option {option!r}; {hint}options of {name} and defaults: {defaults}")


def _read_option(text: str, name: str, option: str, known: Mapping[str, Option], written: str) -> Value:
    value = _read(written, known[option].annotation)
    if option == "span" and not (isinstance(value, int) and value > 0):
        raise InvalidInput(
            f"mixer {text!r}: {written!r} is no number of tokens; expected 1 or more, as {name}:{known[option].default}"
        )
    if value is None:
        expected = _expected(known[option].annotation)
        raise InvalidInput(f"mixer {text!r}: option {option!r} is {written!r}; expected {expected}")
    return value


def _expected(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(map(_write, get_args(annotation)))}"
    words = {bool: "true or false", int: "a whole number, as 4", float: "a number, as 0.5", str: "a word, as fast"}
    return words[annotation]


def _read(written: str, annotation: Any) -> Value | None:
    """The value of a written form; None if it is none of the annotated type."""
    if get_origin(annotation) is Literal:
        return next((choice for choice in get_args(annotation) if _write(choice) == written), None)
    if annotation is bool:
        return {"true": True, "false": False}.get(written)
    if annotation is int:
        return int(written) if re.fullmatch(r"[+-]?[0-9]{1,100}", written) else None
    if annotation is float:
        number = re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", written, re.IGNORECASE)
        return float(written) if number else None
    return written if re.fullmatch(r"[\w.+-]+", written) else None


def _write(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
