"""Mutations of bytes, and of the trees that JSON and TOML hold."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import tomli_w

Rng: TypeAlias = np.random.Generator


@dataclass(frozen=True)
class Mutation:
    """What was changed in a valid input.

    Attributes:
        about: the change in a few words.
        where: the part of the input that was changed.
        refuse: True if a reader must refuse the input, since a success would read what it should not.
    """

    about: str
    where: str = ""
    refuse: bool = False

    def __str__(self) -> str:
        return f"{self.about} at {self.where}" if self.where else self.about


def mutate_bytes(rng: Rng, content: bytes, other: bytes) -> tuple[bytes, str]:
    """Changes bytes.

    Args:
        rng: chooses the change.
        content: of a valid file.
        other: content of another valid file of the same format, for splices.

    Returns:
        The changed content, and the change in words.
    """
    size = len(content)
    start, end = sorted(int(place) for place in rng.integers(0, size + 1, 2))
    kind = rng.choice(["flips", "bytes", "cut", "zeros", "twice", "without", "splice", "empty"], p=_SHARES)
    changed = bytearray(content)
    if kind == "flips":
        for place in rng.integers(0, size, int(rng.choice([1, 2, 8, 64]))):
            changed[place] ^= 1 << int(rng.integers(8))
    elif kind == "bytes":
        for place in rng.integers(0, size, int(rng.choice([1, 4, 16]))):
            changed[place] = int(rng.choice([0, 255, 127, 128, int(rng.integers(256))]))
    elif kind == "cut":
        changed = changed[:end]
    elif kind == "zeros":
        end = min(end, start + int(rng.choice([4, 64, 4096])))
        changed[start:end] = bytes(end - start)
    elif kind == "twice":
        changed[end:end] = changed[start:end]
    elif kind == "without":
        del changed[start : min(end, start + int(rng.choice([1, 16, 1024])))]
    elif kind == "splice":
        changed = changed[:start] + other[min(start, len(other)) :]
    else:
        changed = bytearray()
    return bytes(changed), f"{kind} of bytes {start} to {end}"


_SHARES = [0.28, 0.14, 0.16, 0.1, 0.1, 0.1, 0.1, 0.02]

_DEEP = "deeply nested value stands here"
"""Replaced in the text, since encoders follow no deep nesting."""


def odd_values(rng: Rng, value: Any) -> Any:
    """Something that does not belong in the place of a value."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else 1
    choices: list[Any] = [
        None,
        True,
        0,
        -1,
        -number,
        number + 1,
        number * 10**6,
        10**9,
        2**63,
        10**30,
        0.5,
        1e308,
        -1e-320,
        math.nan,
        math.inf,
        -math.inf,
        "",
        "x" * 100_000,
        "\x1b[31mred\x1b]0;title\x07",
        "../../../../etc/passwd",
        "nul\x00byte",
        "stream",
        [],
        {},
        [None],
        [[[[1]]]],
        {"x": 1},
        _DEEP,
        str(value)[:200],
        [value],
        {"value": value},
    ]
    return choices[int(rng.integers(len(choices)))]


def mutate_tree(rng: Rng, tree: Any, other: Any) -> tuple[Any, str]:
    """Changes one place of a tree of dictionaries and lists.

    Args:
        rng: chooses the place and the change.
        tree: contents of a valid file.
        other: contents of another one, from which parts are taken.

    Returns:
        The changed tree, and the change in words.
    """
    changed = copy.deepcopy(tree)
    places = list(_places(changed))
    holder, key, path = places[int(rng.integers(len(places)))]
    kind = rng.choice(["value", "remove", "rename", "swap", "other", "longer"], p=[0.58, 0.14, 0.06, 0.08, 0.06, 0.08])
    if kind == "remove":
        del holder[key]
    elif kind == "rename" and isinstance(holder, dict):
        holder[str(rng.choice([f"{key}s", str(key).upper(), "", "\x1b[31m", "__class__"]))] = holder.pop(key)
    elif kind == "swap":
        elsewhere, name, _ = places[int(rng.integers(len(places)))]
        # A part must not come to hold itself.
        holder[key], elsewhere[name] = copy.deepcopy(elsewhere[name]), copy.deepcopy(holder[key])
    elif kind == "other":
        parts = list(_places(other))
        from_other, name, _ = parts[int(rng.integers(len(parts)))]
        holder[key] = copy.deepcopy(from_other[name])
    elif kind == "longer" and isinstance(holder, list):
        holder.extend(copy.deepcopy(holder) * int(rng.choice([1, 3, 1000])))
    else:
        kind = "value"
        holder[key] = odd_values(rng, holder[key])
    return changed, f"{kind} at {path}"


def _places(tree: Any, path: str = "") -> Any:
    """All places of a tree: the list or dictionary, the index or key in it, and the path in words."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        yield tree, key, f"{path}/{key}"
        yield from _places(value, f"{path}/{key}")


def to_json(rng: Rng, tree: Any) -> str:
    """A tree as JSON, with NaN and infinities as Python writes them."""
    text = json.dumps(tree, indent=2)
    return _with_depth(rng, text, "[", "]")


def to_toml(rng: Rng, tree: dict[str, Any]) -> str | None:
    """A tree as TOML; None if TOML cannot hold it."""
    try:
        return _with_depth(rng, tomli_w.dumps(tree), "[", "]")
    except (TypeError, ValueError, AttributeError, RecursionError):
        return None


def _with_depth(rng: Rng, text: str, opened: str, closed: str) -> str:
    depth = int(rng.choice([200, 3_000, 100_000]))
    return text.replace(json.dumps(_DEEP), opened * depth + closed * depth)


def mutate_text(
    rng: Rng, content: bytes, other: bytes, read: Callable[[str], Any], write: Callable[[Rng, Any], str | None]
) -> tuple[bytes, str]:
    """Changes a file of JSON or TOML: its tree three times out of four, else its bytes.

    Args:
        rng: chooses the change.
        content: of a valid file.
        other: of another one.
        read: text to tree.
        write: tree to text; None where the format cannot hold it.
    """
    if rng.random() < 0.75:
        tree, about = mutate_tree(rng, read(content.decode()), read(other.decode()))
        text = write(rng, tree)
        if text is not None:
            return text.encode("utf-8", "surrogatepass"), about
    return mutate_bytes(rng, content, other)
