"""Command lines from dataclasses: options in headed groups, and the sentence below each field as help."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, cast

import tyro

T = TypeVar("T")

NAMES = {"imports": "import"}
"""Options whose names are keywords of Python, which no field can have."""


@dataclass(frozen=True)
class Group:
    """A headed group of options in --help.

    Attributes:
        title: heading, before the word "options".
        about: one sentence below it.
        options: fields of the dataclass or of nested ones, in the order of --help.
    """

    title: str
    about: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class _Option:
    path: tuple[str, ...]
    hint: Any
    default: Any
    help: str

    @property
    def name(self) -> str:
        return self.path[-1]


def parse(
    form: type[T],
    prog: str,
    groups: Sequence[Group],
    positional: Sequence[str] = (),
    arguments: Sequence[str] | None = None,
    default: T | None = None,
    switches: bool = True,
) -> T:
    """Parses a command line into a dataclass. Options of nested dataclasses have no prefix.

    Args:
        form: dataclass; its docstring is the head of --help.
        prog: name of the command.
        groups: groups that hold every other field once.
        positional: fields given by their place.
        arguments: words of the command line; None for those of the process.
        default: instance with the default values; None for the defaults of the dataclass.
        switches: if True, booleans are options without a value; otherwise they take True or False.

    Raises:
        ValueError: the groups do not hold every field once.
    """
    options = list(_options(form, default))
    listed = sorted([*positional, *(name for group in groups for name in group.options)])
    if listed != sorted(option.name for option in options):
        differing = set(listed) ^ {option.name for option in options}
        raise ValueError(f"{form.__name__} and its groups differ in {sorted(differing) or 'a name that stands twice'}")
    by_name = {option.name: option for option in options}
    # tyro makes a headed group of every nested dataclass.
    fields: list[Any] = [_field(by_name[name], positional=True) for name in positional]
    for number, group in enumerate(groups):
        members = [_field(by_name[name]) for name in group.options]
        section: Any = dataclasses.make_dataclass("Section", members, kw_only=True)
        section.__doc__ = group.about
        hint = Annotated[section, tyro.conf.arg(name=group.title)]
        needed = any(by_name[name].default is dataclasses.MISSING for name in group.options)
        fields.append((f"group_{number}", hint, *([] if needed else [dataclasses.field(default_factory=section)])))
    view: Any = dataclasses.make_dataclass("View", fields, kw_only=True)
    view.__doc__ = form.__doc__
    flags = tyro.conf.FlagCreatePairsOff if switches else tyro.conf.FlagConversionOff
    parsed: Any = tyro.cli(view, prog=prog, args=arguments, config=(tyro.conf.OmitArgPrefixes, flags))
    given = {name: getattr(parsed, name) for name in positional}
    for number, group in enumerate(groups):
        given |= {name: getattr(getattr(parsed, f"group_{number}"), name) for name in group.options}
    return _fold(form, {option.path: given[option.name] for option in options})


def _options(form: type[Any], default: Any, path: tuple[str, ...] = ()) -> Iterator[_Option]:
    """Options of a dataclass and of nested ones."""
    hints, sentences = typing.get_type_hints(form), _sentences(form)
    for setting in dataclasses.fields(form):
        here = (*path, setting.name)
        hint = hints[setting.name]
        value = setting.default if default is None else getattr(default, setting.name)
        if dataclasses.is_dataclass(hint):
            yield from _options(cast("type[Any]", hint), None if value is dataclasses.MISSING else value, here)
        else:
            yield _Option(here, hint, value, sentences.get(setting.name, ""))


def _sentences(form: type[Any]) -> dict[str, str]:
    """Strings below the fields of a dataclass, each on one line."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(form))).body
    found = {}
    for one, below in itertools.pairwise(cast(ast.ClassDef, tree).body):
        if isinstance(one, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[ast.unparse(one.target)] = " ".join(str(below.value.value).split())
    return found


def _field(option: _Option, positional: bool = False) -> tuple[Any, ...]:
    """An option as `dataclasses.make_dataclass` takes it."""
    # The sentence describes a default that is no value.
    hidden = option.default in (None, ()) or typing.get_origin(option.hint) is list
    about = tyro.conf.arg(
        name=NAMES.get(option.name),
        help=option.help,
        help_behavior_hint="" if hidden else None,
        metavar=option.name.upper() if positional else None,
    )
    hint: Any = cast(Any, Annotated)[option.hint, about]
    hint = cast(Any, tyro.conf.Positional)[hint] if positional else hint
    # Without a value to remove, None needs no place in the help.
    hint = cast(Any, tyro.conf.DisallowNone)[hint] if option.default is None else hint
    if option.default is dataclasses.MISSING:
        return option.name, hint
    return option.name, hint, dataclasses.field(default_factory=lambda: option.default)


def _fold(form: type[T], values: dict[tuple[str, ...], Any], path: tuple[str, ...] = ()) -> T:
    """Builds the dataclass from values by path."""
    hints = typing.get_type_hints(form)
    folded = {}
    for setting in dataclasses.fields(cast(Any, form)):
        here = (*path, setting.name)
        folded[setting.name] = values[here] if here in values else _fold(hints[setting.name], values, here)
    return form(**folded)
