"""Spaces in words that JSON can hold: made by readers, carried by datasets and agents, and what models are built from.

A type of space is a class here, an encoder in `aaren_rl.model.encoders`, and a head in `aaren_rl.model.heads`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from aaren_rl.data.spaces.box import Box
from aaren_rl.data.spaces.conversion import gymnasium_space, space_of, space_of_values
from aaren_rl.data.spaces.discrete import BinarySpace, DiscreteSpace
from aaren_rl.data.spaces.image import IMAGE, ImageSpace
from aaren_rl.data.spaces.nested import DictSpace, NestedSpace, TupleSpace
from aaren_rl.data.spaces.space import NUMBERS, Packed, Part, Space, space_from_json
from aaren_rl.data.spaces.text import TextSpace
from aaren_rl.errors import InvalidInput

__all__ = [
    "IMAGE",
    "NUMBERS",
    "BinarySpace",
    "Box",
    "DictSpace",
    "DiscreteSpace",
    "ImageSpace",
    "NestedSpace",
    "Packed",
    "Part",
    "Space",
    "TextSpace",
    "TupleSpace",
    "differences",
    "gymnasium_space",
    "map_parts",
    "space_from_json",
    "space_of",
    "space_of_values",
    "with_vocabularies",
]

_WORDS: dict[type[Space], str] = {
    Box: "a Box",
    DiscreteSpace: "discrete",
    BinarySpace: "binary",
    ImageSpace: "an image",
    TextSpace: "a text",
    DictSpace: "a Dict",
    TupleSpace: "a Tuple",
}


def map_parts(space: Space, function: Callable[[Part], Space]) -> Space:
    """A space with every part replaced by what a function makes of it; the nesting stays."""
    parts = iter(space.parts())

    def replaced(now: Space) -> Space:
        if isinstance(now, DictSpace):
            return DictSpace(tuple((key, replaced(part)) for key, part in now.by_key))
        if isinstance(now, TupleSpace):
            return TupleSpace(tuple(map(replaced, now.by_place)))
        return function(next(parts))

    return replaced(space)


def with_vocabularies(space: Space, values: Iterable[Any]) -> Space:
    """A space whose texts have the words of some data; the space itself where no text lacks its vocabulary.

    Args:
        space: of the values.
        values: batches of values, each with one dimension in front.

    Raises:
        InvalidInput: there are too many words.
    """
    texts: dict[str, set[str]] = {
        part.path: set() for part in space.parts() if isinstance(part.space, TextSpace) and not part.space.vocabulary
    }
    if not texts:
        return space
    for batch in values:
        try:
            leaves = list(_leaves(space, batch))
        except InvalidInput:
            # Values of other parts are named with their place when they are packed.
            continue
        for path, found in leaves:
            if path in texts:
                texts[path].update(_decoded(text) for text in found)

    def filled(part: Part) -> Space:
        return part.space.of_texts(texts[part.path]) if isinstance(part.space, TextSpace) else part.space

    return map_parts(space, lambda part: filled(part) if part.path in texts else part.space)


def _decoded(text: Any) -> str:
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text)


def _leaves(space: Space, values: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    """Paths and values of all parts."""
    if not isinstance(space, NestedSpace):
        yield path, values
        return
    for (name, part), value in zip(space.named_parts, space.values_of(values), strict=True):
        yield from _leaves(part, value, f"{path}/{name}" if path else name)


def _of_one_kind(one: Space, other: Space) -> bool:
    """True for images that differ at most in whether their bytes are symbols."""
    if not isinstance(one, ImageSpace) or not isinstance(other, ImageSpace) or one.dtype != "uint8":
        return one == other
    return dataclasses.replace(one, high=other.high) == other


def differences(expected: Space, given: Space, name: str) -> list[str]:
    """What differs in parts, shapes and meaning between two spaces, a phrase for each part.

    Bounds and dtypes of a Box may differ, and the words of a text.

    Args:
        expected: space that is needed.
        given: space that is there.
        name: of the values, as "observations".
    """
    if isinstance(expected, NestedSpace) and type(expected) is type(given):
        ours, theirs = dict(expected.named_parts), dict(given.named_parts)
        found = [f"{name} lack the part {key!r}" for key in ours if key not in theirs]
        found += [f"{name} have a part {key!r} too many" for key in theirs if key not in ours]
        shared = [key for key in ours if key in theirs]
        return found + [line for key in shared for line in differences(ours[key], theirs[key], f"{name}[{key!r}]")]
    if isinstance(expected, Box | ImageSpace) and type(expected) is type(given):
        if expected.shape != given.shape:
            return [f"{name} have shape {given.shape} in place of {expected.shape}"]
        # Whether bytes are symbols shows in the data alone.
        alike = isinstance(expected, Box) or _of_one_kind(expected, given)
        return [] if alike else [f"{name} are {given} in place of {expected}"]
    if expected == given or (isinstance(expected, TextSpace) and isinstance(given, TextSpace)):
        return []
    if type(expected) is type(given):
        return [f"{name} are {given} in place of {expected}"]
    return [f"{name} are {_WORDS[type(given)]} in place of {_WORDS[type(expected)]}"]
