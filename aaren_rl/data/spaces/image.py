"""Images: what counts as one, and where its channels stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from aaren_rl.data.spaces.space import TYPES, Packed, Part, Space, array_of, whole_numbers
from aaren_rl.errors import InvalidInput

Channels = Literal["first", "last", "none"]

IMAGE = "image"
"""Path of an image that is a whole observation."""

SMALLEST_SIDE, SMALLEST_FLOAT_SIDE = 5, 16
"""Sides from which on arrays of uint8, and of floats, are images and not mere numbers."""

MOST_CHANNELS = 64

SYMBOLS = 32
"""Greatest byte of images that are grids of symbols, as MiniGrid has them, and no pictures."""


@dataclass(frozen=True)
class ImageSpace(Space):
    """An image of one size, as a `gymnasium.spaces.Box` of uint8, or of floats between two bounds.

    Attributes:
        shape: (height, width), (height, width, channels) or (channels, height, width).
        channels: where the channels stand.
        low: darkest value.
        high: brightest value; `SYMBOLS` for bytes that are symbols.
        dtype: of the values, "uint8" or a float.

    Raises:
        InvalidInput: the shape does not fit, or the bounds are not finite.
    """

    shape: tuple[int, ...]
    channels: Channels
    low: float = 0.0
    high: float = 255.0
    dtype: str = "uint8"

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(map(int, self.shape)))
        dimensions = 2 if self.channels == "none" else 3
        if len(self.shape) != dimensions or min(self.shape) < 1 or self.channels not in ("first", "last", "none"):
            raise InvalidInput(
                f"an image of shape {self.shape} with channels {self.channels!r}; expected (height, width) without, or "
                'three sizes with channels "first" or "last"'
            )
        if not (np.isfinite([self.low, self.high]).all() and self.low < self.high):
            raise InvalidInput(f"an image from {self.low} to {self.high}; expected finite values, the first the lower")
        if self.dtype != "uint8" and np.dtype(self.dtype).kind != "f":
            raise InvalidInput(f"an image of dtype {self.dtype}; expected uint8 or a float")

    @property
    def size(self) -> int:
        """See `Space.size`: an image stands apart from the numbers."""
        return 0

    @property
    def channels_first(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        if self.channels == "first":
            return self.shape  # type: ignore[return-value]
        return (self.shape[2] if self.channels == "last" else 1, *self.shape[:2])  # type: ignore[return-value]

    def parts(self) -> tuple[Part, ...]:
        """See `Space.parts`."""
        return (Part(IMAGE, self, slice(0, 0)),)

    def images(self) -> dict[str, ImageSpace]:
        """See `Space.images`."""
        return {IMAGE: self}

    def pack(self, values: Any, batch: int = 0) -> Packed:
        """See `Space.pack`."""
        return {IMAGE: self.checked(values, batch)}

    def checked(self, values: Any, batch: int = 0) -> npt.NDArray[Any]:
        """The images as an array (*batch, *shape) of uint8, or of float32.

        Raises:
            InvalidInput: they have another size, are no numbers, or bytes are expected and others given.
        """
        array = array_of(values, self.shape, batch, "fiub" if self.dtype != "uint8" else "iub")
        if self.dtype != "uint8":
            return np.asarray(array, dtype=np.float32)
        if array.dtype != np.uint8 and array.size and (array.min() < 0 or array.max() > 255):
            raise InvalidInput(f"images from {array.min()} to {array.max()}; expected uint8, 0 to 255")
        return np.asarray(array, dtype=np.uint8)

    def unpack(self, packed: Packed, batch: int = 0) -> npt.NDArray[Any]:
        """See `Space.unpack`."""
        return packed[IMAGE] if isinstance(packed, dict) else packed

    def to_json(self) -> dict[str, Any]:
        """See `Space.to_json`."""
        fields = ("channels", "low", "high", "dtype")
        return {"type": "image", "shape": list(self.shape), **{name: getattr(self, name) for name in fields}}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> ImageSpace:
        """See `Space.from_json`."""
        bounds = float(saved["low"]), float(saved["high"])
        return cls(whole_numbers(saved["shape"]), saved["channels"], *bounds, str(saved["dtype"]))


def image_of(shape: tuple[int, ...], dtype: str, low: float, high: float) -> ImageSpace | None:
    """The image that a Box of a shape is; None for one that is mere numbers.

    Arrays of uint8 with two or three dimensions are images from a side of `SMALLEST_SIDE` on; up to `SYMBOLS` they are
    grids of symbols. Floats are from
    `SMALLEST_FLOAT_SIDE` on, with three dimensions, bounds, and at most four channels.

    Args:
        shape: of a value.
        dtype: of a value.
        low: least value of all.
        high: greatest value of all.
    """
    channels = _channels(shape)
    if channels is None:
        return None
    sides = {"first": shape[1:], "last": shape[:2], "none": shape}[channels]
    if dtype == "uint8":
        brightest = float(SYMBOLS) if high <= SYMBOLS else 255.0
        return ImageSpace(shape, channels, 0.0, brightest) if min(sides) >= SMALLEST_SIDE else None
    few = channels != "none" and shape[0 if channels == "first" else 2] <= 4
    bounded = bool(np.isfinite([low, high]).all()) and low < high
    if np.dtype(dtype).kind == "f" and few and bounded and min(sides) >= SMALLEST_FLOAT_SIDE:
        return ImageSpace(shape, channels, float(low), float(high), dtype)
    return None


def shows_images(array: npt.NDArray[Any]) -> bool:
    """True for stacked arrays of bytes that are images, (steps, *image shape)."""
    return array.dtype == np.uint8 and array.ndim >= 3 and image_of(array.shape[1:], "uint8", 0, 255) is not None


def _channels(shape: tuple[int, ...]) -> Channels | None:
    """Where the channels of an image of this shape stand: at the shorter end, the last one if both are alike."""
    if len(shape) == 2:
        return "none"
    if len(shape) != 3:
        return None
    place: Channels = "first" if shape[0] < min(shape[1:]) else "last"
    return place if shape[0 if place == "first" else 2] <= MOST_CHANNELS else None


TYPES["image"] = ImageSpace
