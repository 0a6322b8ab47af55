"""The written form of a mixer or an objective: a name and options, as `local:60` or `aaren(recency=true)`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import Parameter, signature
from typing import Any, Generic, Literal, NamedTuple, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

from aaren_rl.errors import InvalidInput, unknown_name

Value: TypeAlias = bool | int | float | str

Part = TypeVar("Part")


@dataclass(frozen=True)
class Spec:
    """A part by name, with its options; `str` gives the canonical written form.

    Attributes:
        name: registered name of the part.
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
    """An option of a part.

    Attributes:
        annotation: bool, int, float, str or a Literal of these.
        default: value of an option that is left out.
    """

    annotation: Any
    default: Any


def options_of_constructor(part: type[Any], given: int) -> dict[str, Option]:
    """Options of a class: the parameters of its constructor beyond the first ones.

    Args:
        part: the class.
        given: number of parameters that are no options.

    Raises:
        InvalidInput: an option has no default, or an annotation that has no written form.
    """
    variadic = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    parameters = [each for each in signature(part).parameters.values() if each.kind not in variadic][given:]
    annotations = get_type_hints(part.__init__) if parameters else {}
    options = {each.name: Option(annotations.get(each.name), each.default) for each in parameters}
    for name, (annotation, default) in options.items():
        if annotation not in (bool, int, float, str) and get_origin(annotation) is not Literal:
            raise InvalidInput(
                f"option {name!r} of {part.__name__} is annotated {annotation}; expected bool, int, float, str or "
                "a Literal of these"
            )
        if default is Parameter.empty:
            raise InvalidInput(f"option {name!r} of {part.__name__} has no default; give it one")
    return options


def split_specs(text: str) -> list[str]:
    """Splits at every comma outside parentheses."""
    return [part.strip() for part in re.split(r",(?![^()]*\))", text)]


@dataclass(frozen=True)
class WrittenForm(Generic[Part]):
    """How parts of a sort are written and read.

    Attributes:
        noun: what a part is called in messages, as "mixer".
        grammar: what is expected where a form cannot be read.
        options_of: options of a class.
    """

    noun: str
    grammar: str
    options_of: Callable[[type[Part]], dict[str, Option]]

    def read(self, text: str, parts: Mapping[str, type[Part]]) -> Spec:
        """Reads a written form and checks it against the constructor of the part.

        Args:
            text: `name`, `name:60` (short for `name(span=60)`) or `name(option=value, ...)`. Values are true, false,
                numbers and words.
            parts: classes by name.

        Raises:
            InvalidInput: bad syntax, an unknown name or option, or a value of a wrong type.
        """
        pieces = re.fullmatch(r"([\w-]*)(?::(.*)|\((.*)\))?", text.strip(), re.DOTALL)
        if pieces is None:
            raise InvalidInput(f"{self.noun} {text!r} cannot be read; {self.grammar}")
        name, span, inside = pieces.groups()
        if name not in parts:
            unknown = unknown_name(self.noun, name, parts)
            raise InvalidInput(f"{unknown} (one of your own is known once its module is imported: --import MODULE)")
        known = self.options_of(parts[name])
        if span is not None:
            if "span" not in known:
                raise InvalidInput(f"{self.noun} {text!r}: {name} has no window of tokens; pass {name!r}")
            given = {"span": span}
        else:
            given = {} if inside is None else self._split_options(text, inside)
        for option in given:
            if option not in known:
                raise self._unknown_option(text, name, option, known)
        return Spec(name, {option: self._read_option(text, name, option, known, given[option]) for option in given})

    def _split_options(self, text: str, inside: str) -> dict[str, str]:
        """The options in the parentheses of a written form, unread."""
        given: dict[str, str] = {}
        for part in inside.split(","):
            option, equals, value = (piece.strip() for piece in part.partition("="))
            if not (option and equals and value):
                raise InvalidInput(f"{self.noun} {text!r} cannot be read; {self.grammar}")
            if option in given:
                raise InvalidInput(f"{self.noun} {text!r} sets option {option!r} twice; set it once")
            given[option] = value
        return given

    def _unknown_option(self, text: str, name: str, option: str, known: Mapping[str, Option]) -> InvalidInput:
        near = difflib.get_close_matches(option, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        defaults = ", ".join(write_option(other, known[other].default) for other in sorted(known))
        listed = f"options of {name} and defaults: {defaults}" if known else f"{name} has no options"
        return InvalidInput(f"{self.noun} {text!r}: unknown option {option!r}; {hint}{listed}")

    def _read_option(self, text: str, name: str, option: str, known: Mapping[str, Option], written: str) -> Value:
        value = _read(written, known[option].annotation)
        if option == "span" and not (isinstance(value, int) and value > 0):
            raise InvalidInput(
                f"{self.noun} {text!r}: {written!r} is no number of tokens; expected 1 or more, as "
                f"{name}:{known[option].default}"
            )
        if value is None:
            expected = _expected(known[option].annotation)
            raise InvalidInput(f"{self.noun} {text!r}: option {option!r} is {written!r}; expected {expected}")
        return value


def write_option(name: str, value: Value) -> str:
    """An option as it is written, `recency=true`."""
    return f"{name}={_write(value)}"


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
