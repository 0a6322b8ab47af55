"""Spaces made of parts, in the one order in which their numbers stand everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from aaren_rl.data.spaces.image import ImageSpace
from aaren_rl.data.spaces.space import NUMBERS, TYPES, Packed, Part, Space, numbers_array, space_from_json
from aaren_rl.errors import InvalidInput


class NestedSpace(Space):
    """Parts with names, in the one order in which their numbers stand."""

    @property
    def named_parts(self) -> tuple[tuple[str, Space], ...]:
        """Names and spaces of the parts."""
        raise NotImplementedError

    def values_of(self, values: Any) -> list[Any]:
        """Values of the parts, in the same order.

        Raises:
            InvalidInput: the values have other parts.
        """
        raise NotImplementedError

    def _gathered(self, parts: list[Any]) -> Any:
        """A value of the parts' values; the inverse of `values_of`."""
        raise NotImplementedError

    @cached_property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """See `Space.shape`."""
        return (sum(part.size for _, part in self.named_parts),)

    @cached_property
    def _parts(self) -> tuple[Part, ...]:
        found, start = [], 0
        for name, space in self.named_parts:
            for part in space.parts():
                inner = "" if not isinstance(space, NestedSpace) else f"/{part.path}"
                stop = start + part.space.size
                found.append(Part(f"{name}{inner}", part.space, slice(start, stop)))
                start = stop
        paths = [part.path for part in found]
        if twice := sorted({path for path in paths if paths.count(path) > 1}):
            raise InvalidInput(f"two parts have the path {twice[0]!r}; give one of them another key")
        return tuple(found)

    def parts(self) -> tuple[Part, ...]:
        """See `Space.parts`."""
        return self._parts

    def images(self) -> dict[str, ImageSpace]:
        """See `Space.images`."""
        return {part.path: part.space for part in self._parts if isinstance(part.space, ImageSpace)}

    def pack(self, values: Any, batch: int = 0) -> Packed:
        """See `Space.pack`."""
        leaves = self._leaves(values, batch)
        numbers, images, front = [], {}, None
        for part, array in zip(self._parts, leaves, strict=True):
            shape = array.shape[:batch]
            front = shape if front is None else front
            if shape != front:
                raise InvalidInput(f"part {part.path!r} has {shape} values; expected {front}, as the parts before it")
            if isinstance(part.space, ImageSpace):
                images[part.path] = array
            else:
                numbers.append(array.reshape(*array.shape[:batch], part.space.size))
        if not images:
            return np.concatenate(numbers, axis=-1)
        return ({NUMBERS: np.concatenate(numbers, axis=-1)} if numbers else {}) | images

    def _leaves(self, values: Any, batch: int) -> list[npt.NDArray[Any]]:
        found: list[npt.NDArray[Any]] = []
        for (name, space), value in zip(self.named_parts, self.values_of(values), strict=True):
            try:
                if isinstance(space, NestedSpace):
                    found += space._leaves(value, batch)
                elif isinstance(space, ImageSpace):
                    found.append(space.checked(value, batch))
                else:
                    found.append(space.pack(value, batch))  # type: ignore[arg-type]
            except InvalidInput as error:
                raise InvalidInput(f"part {name!r}: {error}") from error
        return found

    def unpack(self, packed: Packed, batch: int = 0) -> Any:
        """See `Space.unpack`."""
        leaves = iter([self._leaf_of(part, packed, batch) for part in self._parts])

        def gather(space: Space) -> Any:
            if not isinstance(space, NestedSpace):
                return next(leaves)
            return space._gathered([gather(part) for _, part in space.named_parts])

        return gather(self)

    def _leaf_of(self, part: Part, packed: Packed, batch: int) -> Any:
        if isinstance(part.space, ImageSpace):
            assert isinstance(packed, dict), "images stand in a dict"
            return packed[part.path]
        numbers = numbers_array(packed)[..., part.columns]
        return part.space.unpack(numbers.reshape((*numbers.shape[:batch], *part.space.shape)), batch)


@dataclass(frozen=True)
class DictSpace(NestedSpace):
    """Spaces by key, as `gymnasium.spaces.Dict`.

    Gymnasium keeps the order in which keys were given and JSON files are often sorted, so only the sorted order is the
    same everywhere.

    Attributes:
        by_key: keys and spaces, sorted by key.

    Raises:
        InvalidInput: there are none, a key is empty, or an image has the key `NUMBERS`.
    """

    by_key: tuple[tuple[str, Space], ...]

    def __post_init__(self) -> None:
        if not self.by_key:
            raise InvalidInput("a Dict without parts; expected at least one")
        object.__setattr__(self, "by_key", tuple(sorted(self.by_key, key=lambda part: part[0])))
        if "" in dict(self.by_key):
            raise InvalidInput("a Dict with an empty key; give the part a name")
        if isinstance(dict(self.by_key).get(NUMBERS), ImageSpace):
            raise InvalidInput(f"an image under the key {NUMBERS!r}, which is taken; give it another key")

    @property
    def named_parts(self) -> tuple[tuple[str, Space], ...]:
        """See `NestedSpace.named_parts`."""
        return self.by_key

    def values_of(self, values: Any) -> list[Any]:
        """See `NestedSpace.values_of`."""
        keys = [key for key, _ in self.by_key]
        named = {str(key): value for key, value in values.items()} if isinstance(values, Mapping) else {}
        given = sorted(named) if isinstance(values, Mapping) else type(values).__name__
        if given != keys:
            raise InvalidInput(f"values have the keys {given}; expected {keys}")
        return [named[key] for key in keys]

    def _gathered(self, parts: list[Any]) -> dict[str, Any]:
        return {key: part for (key, _), part in zip(self.by_key, parts, strict=True)}

    def to_json(self) -> dict[str, Any]:
        """See `Space.to_json`."""
        return {"type": "dict", "parts": {key: part.to_json() for key, part in self.by_key}}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> DictSpace:
        """See `Space.from_json`."""
        return cls(tuple((key, space_from_json(part)) for key, part in saved["parts"].items()))


@dataclass(frozen=True)
class TupleSpace(NestedSpace):
    """Spaces by place, as `gymnasium.spaces.Tuple`.

    Attributes:
        by_place: spaces in their order.

    Raises:
        InvalidInput: there are none.
    """

    by_place: tuple[Space, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_place", tuple(self.by_place))
        if not self.by_place:
            raise InvalidInput("a Tuple without parts; expected at least one")

    @property
    def named_parts(self) -> tuple[tuple[str, Space], ...]:
        """See `NestedSpace.named_parts`."""
        return tuple((str(number), part) for number, part in enumerate(self.by_place))

    def values_of(self, values: Any) -> list[Any]:
        """See `NestedSpace.values_of`."""
        if not isinstance(values, tuple | list) or len(values) != len(self.by_place):
            size = len(values) if isinstance(values, tuple | list) else type(values).__name__
            raise InvalidInput(f"values have {size} parts; expected {len(self.by_place)}")
        return list(values)

    def _gathered(self, parts: list[Any]) -> tuple[Any, ...]:
        return tuple(parts)

    def to_json(self) -> dict[str, Any]:
        """See `Space.to_json`."""
        return {"type": "tuple", "parts": [part.to_json() for part in self.by_place]}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> TupleSpace:
        """See `Space.from_json`."""
        return cls(tuple(map(space_from_json, saved["parts"])))


TYPES["dict"] = DictSpace
TYPES["tuple"] = TupleSpace
