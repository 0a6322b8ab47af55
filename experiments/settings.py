"""Settings in TOML: reading, laying tables over each other, and turning them into dataclasses."""

from __future__ import annotations

import dataclasses
import sys
import typing
from pathlib import Path
from typing import Any, TypeVar

from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from aaren_rl.errors import InvalidInput, unknown_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")


def read(path: Path) -> dict[str, Any]:
    """Table of a TOML file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not TOML, or nested too deeply.
    """
    return loads(path.read_text("utf-8"))


def loads(text: str) -> dict[str, Any]:
    """Table of a text in TOML.

    Raises:
        ValueError: it is not TOML, or nested too deeply.
    """
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def merge(below: dict[str, Any], above: dict[str, Any], where: str) -> dict[str, Any]:
    """Lays one table over another, and does the same with the tables in them.

    Args:
        below: the table to change.
        above: the entries that replace those below.
        where: origin that errors name.

    Raises:
        InvalidInput: a table would replace a value, or a value a table.
    """
    merged = dict(below)
    for name, value in above.items():
        if name in below and isinstance(below[name], dict) != isinstance(value, dict):
            raise InvalidInput(f"{where}: {name} is {below[name]!r} and {value!r}; expected two tables or two values")
        merged[name] = merge(below[name], value, where) if name in below and isinstance(value, dict) else value
    return merged


def to_table(settings: Any) -> dict[str, Any]:
    """TOML table of a dataclass. Nested dataclasses are tables; settings that are None are left out."""
    table: dict[str, Any] = {}
    for setting in dataclasses.fields(settings):
        value = getattr(settings, setting.name)
        if dataclasses.is_dataclass(value):
            table[setting.name] = to_table(value)
        elif value is not None:
            table[setting.name] = str(value) if isinstance(value, Path) else _as_toml(value)
    return table


def _as_toml(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def from_table(form: type[T], table: dict[str, Any], where: str) -> T:
    """Dataclass of a TOML table.

    Args:
        form: the dataclass.
        table: settings by name; settings that are left out keep their defaults.
        where: origin that errors name.

    Raises:
        InvalidInput: a setting is unknown or has another type, or the dataclass refuses it.
    """
    hints = typing.get_type_hints(form)
    known = [setting.name for setting in dataclasses.fields(typing.cast(Any, form))]
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name not in known:
            raise InvalidInput(f"{where}: {unknown_name('setting', name, known)}")
        if dataclasses.is_dataclass(hints[name]) and isinstance(value, dict):
            values[name] = from_table(typing.cast("type[Any]", hints[name]), value, where)
            continue
        values[name] = Path(value) if hints[name] == Path | None and isinstance(value, str) else value
        if typing.get_origin(hints[name]) is tuple and isinstance(value, list):
            values[name] = tuple(value)
        try:
            check_type(values[name], hints[name], collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
        except TypeCheckError as error:
            raise InvalidInput(f"{where}: {name} is {value!r}; {error}") from error
    try:
        return form(**values)
    except TypeError as error:
        raise InvalidInput(f"{where}: {error}") from error
