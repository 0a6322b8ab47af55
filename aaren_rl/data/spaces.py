"""Spaces in words that JSON can hold: made by readers, carried by datasets and agents, and what models are built from.

A type of space is a class here, an encoder in `aaren_rl.model.encoders`, and a head in `aaren_rl.model.heads`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from aaren_rl.errors import InvalidInput

if TYPE_CHECKING:
    import gymnasium as gym


class Space:
    """What a value of an observation or an action looks like; subclasses are frozen dataclasses, compared by value.

    Attributes:
        shape: of a value.
    """

    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Numbers in a value."""
        return math.prod(self.shape)

    def bounds(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """The least and the greatest value, each of the space's shape."""
        raise NotImplementedError

    def flat(self) -> Box:
        """The Box of vectors that `flatten` makes of values."""
        raise NotImplementedError

    def flatten(self, values: Any, batch: int = 0) -> npt.NDArray[Any]:
        """Values as vectors: a Box in C order, parts of a Dict in the order of their sorted keys, those of a Tuple as
        they stand.

        Args:
            values: an array for a Box, a mapping or a sequence of such for nested spaces.
            batch: number of dimensions in front of a value's own.

        Returns:
            (*batch dimensions, size).

        Raises:
            InvalidInput: the values do not have the space's parts or shape.
        """
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """The space in JSON's types, with the name of its class under "type"."""
        raise NotImplementedError

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Space:
        """Reads what `to_json` wrote; raises KeyError, TypeError or ValueError where it does not fit."""
        raise NotImplementedError


@dataclass(frozen=True)
class Box(Space):
    """Real numbers in an array of one shape, as `gymnasium.spaces.Box`.

    Attributes:
        shape: of a value.
        low: least values, one for each number in C order; -inf where there is none.
        high: greatest values, likewise.
        dtype: of a value, in NumPy's words.

    Raises:
        InvalidInput: the bounds do not fit the shape, or a low is above its high.
    """

    shape: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("shape", "low", "high"):
            # Lists would neither compare nor hash.
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if min(self.shape, default=0) < 0 or np.dtype(self.dtype).kind not in "fiub":
            raise InvalidInput(f"a Box of shape {self.shape} and dtype {self.dtype}; expected sizes from 0 and numbers")
        if not len(self.low) == len(self.high) == self.size:
            raise InvalidInput(
                f"a Box of shape {self.shape} has {len(self.low)} lows and {len(self.high)} highs; expected {self.size}"
            )
        for low, high in zip(self.low, self.high, strict=True):
            if not low <= high:
                raise InvalidInput(f"a Box has the bounds {low} and {high}; expected no low above its high")

    @classmethod
    def unbounded(cls, shape: tuple[int, ...], dtype: str = "float32") -> Box:
        """Values of a shape without bounds."""
        size = math.prod(shape)
        return cls(shape, (-math.inf,) * size, (math.inf,) * size, dtype)

    @classmethod
    def bounded(cls, low: npt.ArrayLike, high: npt.ArrayLike, dtype: str = "float32") -> Box:
        """Values between two arrays of their shape."""
        least, greatest = np.asarray(low, np.float64), np.asarray(high, np.float64)
        if least.shape != greatest.shape:
            raise InvalidInput(f"low has shape {least.shape} and high {greatest.shape}; expected one shape")
        return cls(least.shape, tuple(least.ravel().tolist()), tuple(greatest.ravel().tolist()), dtype)

    @property
    def is_bounded(self) -> bool:
        """True if every number has a least and a greatest value."""
        return all(map(math.isfinite, (*self.low, *self.high)))

    def bounds(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """See `Space.bounds`; rounded inwards where float32 lacks a bound, so that what lies within fits the space.

        Where no float32 number lies between two bounds, both become the nearest one.
        """
        least, greatest = (np.array(bound, np.float64).reshape(self.shape) for bound in (self.low, self.high))
        with np.errstate(over="ignore"):
            nearest, high = least.astype(np.float32), greatest.astype(np.float32)
            if self.dtype == "float32":
                # The space rounds its bounds as we do.
                return nearest, high
            low = np.where(nearest < least, np.nextafter(nearest, np.float32(np.inf)), nearest)
            high = np.where(high > greatest, np.nextafter(high, np.float32(-np.inf)), high)
        crossed = low > high
        return np.where(crossed, nearest, low), np.where(crossed, nearest, high)

    def flat(self) -> Box:
        """See `Space.flat`."""
        return self if len(self.shape) == 1 else Box((self.size,), self.low, self.high, self.dtype)

    def flatten(self, values: Any, batch: int = 0) -> npt.NDArray[Any]:
        """See `Space.flatten`."""
        array = np.asarray(values)
        if array.shape[batch:] != self.shape or array.ndim < batch:
            raise InvalidInput(f"values have shape {array.shape[batch:]}; expected {self.shape}")
        return array.reshape(*array.shape[:batch], self.size)

    def to_json(self) -> dict[str, Any]:
        """See `Space.to_json`; null stands for a missing bound."""

        def finite(bound: tuple[float, ...]) -> list[float | None]:
            return [value if math.isfinite(value) else None for value in bound]

        bounds = {"low": finite(self.low), "high": finite(self.high)}
        return {"type": "box", "shape": list(self.shape), "dtype": self.dtype, **bounds}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Box:
        """See `Space.from_json`."""
        low = tuple(-math.inf if value is None else float(value) for value in saved["low"])
        high = tuple(math.inf if value is None else float(value) for value in saved["high"])
        return cls(tuple(map(int, saved["shape"])), low, high, str(saved["dtype"]))


@dataclass(frozen=True)
class DiscreteSpace(Space):
    """Whole numbers from small ranges, as `gymnasium.spaces.Discrete` and `MultiDiscrete`; flat ones are one-hot.

    Attributes:
        shape: of a value; () for one number.
        counts: how many values each number can have, in C order.
        starts: least value of each.

    Raises:
        InvalidInput: the counts do not fit the shape, or one is below 1.
    """

    shape: tuple[int, ...]
    counts: tuple[int, ...]
    starts: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("shape", "counts", "starts"):
            object.__setattr__(self, name, tuple(map(int, getattr(self, name))))
        if not len(self.counts) == len(self.starts) == math.prod(self.shape) or min(self.counts, default=0) < 1:
            raise InvalidInput(
                f"a discrete space of shape {self.shape}, counts {self.counts} and starts {self.starts}; expected one "
                "count from 1 and one start for each number"
            )

    @property
    def size(self) -> int:
        """Numbers in a flat value."""
        return sum(self.counts)

    def flat(self) -> Box:
        """See `Space.flat`."""
        return Box((self.size,), (0.0,) * self.size, (1.0,) * self.size, "float32")

    def bounds(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """See `Space.bounds`."""
        return self.flat().bounds()

    def flatten(self, values: Any, batch: int = 0) -> npt.NDArray[Any]:
        """See `Space.flatten`."""
        array = np.asarray(values)
        if array.ndim < batch or array.shape[batch:] != self.shape or array.dtype.kind not in "iub":
            raise InvalidInput(
                f"values have shape {array.shape[batch:]} and dtype {array.dtype}; expected whole numbers of shape "
                f"{self.shape}"
            )
        places = array.reshape(*array.shape[:batch], len(self.counts)).astype(np.int64) - np.array(self.starts)
        if (places < 0).any() or (places >= np.array(self.counts)).any():
            raise InvalidInput(
                f"values from {array.min()} to {array.max()}; expected counts {self.counts} from {self.starts}"
            )
        hot = [np.eye(count, dtype=np.float32)[places[..., i]] for i, count in enumerate(self.counts)]
        return np.concatenate(hot, axis=-1)

    def to_json(self) -> dict[str, Any]:
        """See `Space.to_json`."""
        return {"type": "discrete", **{name: list(getattr(self, name)) for name in ("shape", "counts", "starts")}}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> DiscreteSpace:
        """See `Space.from_json`."""
        return cls(saved["shape"], saved["counts"], saved["starts"])


class _Nested(Space):
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
class DictSpace(_Nested):
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
        """See `_Nested.named_parts`."""
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
class TupleSpace(_Nested):
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
        """See `_Nested.named_parts`."""
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


_TYPES: dict[str, type[Space]] = {
    "box": Box,
    "discrete": DiscreteSpace,
    "dict": DictSpace,
    "tuple": TupleSpace,
}
"""Classes of spaces by their "type" in JSON."""


def space_from_json(saved: Mapping[str, Any]) -> Space:
    """Reads what `to_json` of a space wrote.

    Raises:
        InvalidInput: it is not a space that this version knows.
    """
    if not isinstance(saved, Mapping):
        raise InvalidInput(f"a space is saved as {saved!r}; expected an object with type, shape, dtype and bounds")
    space = _TYPES.get(str(saved.get("type")))
    if space is None:
        raise InvalidInput(f"a space of type {saved.get('type')!r}; this version knows {', '.join(map(repr, _TYPES))}")
    try:
        return space.from_json(saved)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"a space cannot be read from {dict(saved)}: {error!r}") from error


def space_of(space: gym.Space[Any]) -> Space:
    """The description of a Gymnasium space.

    Raises:
        InvalidInput: a part of it is no array of numbers.
    """
    import gymnasium as gym

    if isinstance(space, gym.spaces.Dict):
        return DictSpace(tuple((key, space_of(part)) for key, part in space.spaces.items()))
    if isinstance(space, gym.spaces.Tuple):
        return TupleSpace(tuple(map(space_of, space.spaces)))
    if isinstance(space, gym.spaces.Discrete):
        return DiscreteSpace((), (int(space.n),), (int(space.start),))
    if isinstance(space, gym.spaces.MultiDiscrete):
        return DiscreteSpace(space.nvec.shape, tuple(space.nvec.ravel()), tuple(space.start.ravel()))
    if isinstance(space, gym.spaces.MultiBinary):
        return Box.bounded(np.zeros(space.shape), np.ones(space.shape), "int8")
    if not isinstance(space, gym.spaces.Box):
        raise InvalidInput(
            f"the space is {space}; this version takes observations of numbers (Box, Discrete, MultiDiscrete, "
            "MultiBinary) and Dicts and Tuples of them, and actions in a Box"
        )
    return Box.bounded(space.low, space.high, str(space.dtype))


def differences(expected: Space, given: Space, name: str) -> list[str]:
    """What differs in parts and shapes between two spaces, a phrase for each part; bounds and dtypes may differ.

    Args:
        expected: space that is needed.
        given: space that is there.
        name: of the values, as "observations".
    """
    if isinstance(expected, _Nested) and type(expected) is type(given):
        ours, theirs = dict(expected.named_parts), dict(given.named_parts)
        found = [f"{name} lack the part {key!r}" for key in ours if key not in theirs]
        found += [f"{name} have a part {key!r} too many" for key in theirs if key not in ours]
        shared = [key for key in ours if key in theirs]
        return found + [line for key in shared for line in differences(ours[key], theirs[key], f"{name}[{key!r}]")]
    if isinstance(expected, Box) and isinstance(given, Box):
        same = expected.shape == given.shape
        return [] if same else [f"{name} have shape {given.shape} in place of {expected.shape}"]
    if expected == given:
        return []
    words = {Box: "a Box", DiscreteSpace: "discrete", DictSpace: "a Dict", TupleSpace: "a Tuple"}
    if type(expected) is type(given):
        return [f"{name} are {given} in place of {expected}"]
    return [f"{name} are {words[type(given)]} in place of {words[type(expected)]}"]
