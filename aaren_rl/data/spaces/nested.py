"""Spaces made of parts, in the one order in which their numbers stand everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aaren_rl.data.spaces.box import Box
from aaren_rl.data.spaces.space import TYPES, Space, space_from_json
from aaren_rl.errors import InvalidInput


class NestedSpace(Space):
    """Parts with names, in the one order in which their numbers stand."""

    @property
    def named_parts(self) -> tuple[tuple[str, Space], ...]:
        """Names and spaces of the parts."""
        raise NotImplementedError

    def _values_of(self, values: Any) -> list[Any]:
        """Values of the parts, in the same order."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Of a flattened value."""
        return (sum(part.size for _, part in self.named_parts),)

    def bounds(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """See `Space.bounds`."""
        return self.flat().bounds()

    def flat(self) -> Box:
        """See `Space.flat`."""
        boxes = [part.flat() for _, part in self.named_parts]
        low, high = (tuple(value for box in boxes for value in getattr(box, name)) for name in ("low", "high"))
        dtype = str(np.result_type(*(box.dtype for box in boxes))) if boxes else "float32"
        return Box((len(low),), low, high, dtype)

    def flatten(self, values: Any, batch: int = 0) -> npt.NDArray[Any]:
        """See `Space.flatten`."""
        parts = []
        for (name, space), value in zip(self.named_parts, self._values_of(values), strict=True):
            try:
                parts.append(space.flatten(value, batch))
            except InvalidInput as error:
                raise InvalidInput(f"part {name!r}: {error}") from error
        if len({part.shape[:-1] for part in parts}) != 1:
            raise InvalidInput(f"parts of the shapes {[part.shape for part in parts]}; expected as many values of each")
        return np.concatenate(parts, axis=-1)


@dataclass(frozen=True)
class DictSpace(NestedSpace):
    """Spaces by key, as `gymnasium.spaces.Dict`.

    Gymnasium keeps the order in which keys were given and JSON files are often sorted, so only the sorted order is the
    same everywhere.

    Attributes:
        parts: keys and spaces, sorted by key.
    """

    parts: tuple[tuple[str, Space], ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise InvalidInput("a Dict without parts; expected at least one")
        object.__setattr__(self, "parts", tuple(sorted(self.parts, key=lambda part: part[0])))

    @property
    def named_parts(self) -> tuple[tuple[str, Space], ...]:
        """See `NestedSpace.named_parts`."""
        return self.parts

    def _values_of(self, values: Any) -> list[Any]:
        keys = [key for key, _ in self.parts]
        given = sorted(map(str, values)) if isinstance(values, Mapping) else type(values).__name__
        if given != keys:
            raise InvalidInput(f"values have the keys {given}; expected {keys}")
        return [values[key] for key in keys]

    def to_json(self) -> dict[str, Any]:
        """See `Space.to_json`."""
        return {"type": "dict", "parts": {key: part.to_json() for key, part in self.parts}}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> DictSpace:
        """See `Space.from_json`."""
        return cls(tuple((key, space_from_json(part)) for key, part in saved["parts"].items()))


@dataclass(frozen=True)
class TupleSpace(NestedSpace):
    """Spaces by place, as `gymnasium.spaces.Tuple`.

    Attributes:
        parts: spaces in their order.
    """

    parts: tuple[Space, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        if not self.parts:
            raise InvalidInput("a Tuple without parts; expected at least one")

    @property
    def named_parts(self) -> tuple[tuple[str, Space], ...]:
        """See `NestedSpace.named_parts`."""
        return tuple((str(number), part) for number, part in enumerate(self.parts))

    def _values_of(self, values: Any) -> list[Any]:
        if not isinstance(values, tuple | list) or len(values) != len(self.parts):
            size = len(values) if isinstance(values, tuple | list) else type(values).__name__
            raise InvalidInput(f"values have {size} parts; expected {len(self.parts)}")
        return list(values)

    def to_json(self) -> dict[str, Any]:
        """See `Space.to_json`."""
        return {"type": "tuple", "parts": [part.to_json() for part in self.parts]}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> TupleSpace:
        """See `Space.from_json`."""
        return cls(tuple(map(space_from_json, saved["parts"])))


TYPES["dict"] = DictSpace
TYPES["tuple"] = TupleSpace
