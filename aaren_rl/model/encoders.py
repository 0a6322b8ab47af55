"""Values of a space as vectors of features: the one place that turns a space into numbers for a linear layer.

Every part of a step's input becomes features here, and one linear layer (`aaren_rl.model.inputs`) makes them a token.
A new type of space is a class in `aaren_rl.data.spaces`, an encoder here, and a head in `aaren_rl.model.heads`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aaren_rl.data.bounds import LARGEST_BOUND, SCALED_BOUND, varies
from aaren_rl.data.packed import first_of, numbers_of
from aaren_rl.data.segment import Observations
from aaren_rl.data.spaces import (
    NUMBERS,
    BinarySpace,
    Box,
    DiscreteSpace,
    ImageSpace,
    NestedSpace,
    Part,
    Space,
    TextSpace,
)
from aaren_rl.data.spaces.text import UNKNOWN
from aaren_rl.errors import InvalidInput
from aaren_rl.model.images import ImageEncoder, ImageEncoding
from aaren_rl.model.scaling import Scaling


class Encoder(nn.Module):
    """Turns values of a space into features within -`SCALED_BOUND` and `SCALED_BOUND`.

    Features are those of the numbers, `columns` of them, and after them those of images.

    Args:
        space: of the values.
        columns: features of a value's numbers.
        images: features of its images.
    """

    def __init__(self, space: Space, columns: int, images: int = 0) -> None:
        super().__init__()
        self.space, self.columns, self.size = space, columns, columns + images

    def forward(self, values: Observations) -> Tensor:
        """Features (..., size) of values (..., *shape)."""
        raise NotImplementedError

    def raw(self, values: Any) -> Any:
        """What becomes the numbers' features by `affine` when acting, (batch, columns), of tensors or arrays."""
        raise NotImplementedError

    def image_features(self, values: Observations) -> Tensor | None:
        """Features of the images when acting, (batch, size - columns); None where there are no images."""
        return None

    def affine(self) -> tuple[Tensor, Tensor]:
        """Centre and factor, (columns,) float64 each: features are ``(raw - centre) * factor``, clipped to the bound.

        By default the raw numbers are the features.
        """
        return torch.zeros(self.columns, dtype=torch.float64), torch.ones(self.columns, dtype=torch.float64)

    def nothing(self) -> Tensor:
        """Numbers whose features are 0, (numbers of a value,) float64: they stand for a value that is not there."""
        raise NotImplementedError

    def examples(self, rows: int, generator: torch.Generator) -> Observations:
        """Made-up values (rows, *shape) such as the data might hold, to try a step on."""
        raise NotImplementedError


class _BoxEncoder(Encoder):
    """A Box, whose features are its numbers, one after another."""

    def __init__(self, space: Box) -> None:
        super().__init__(space, space.size)

    def nothing(self) -> Tensor:
        """See `Encoder.nothing`."""
        return self.affine()[0]

    def _flat(self, scaled: Tensor, unit: Tensor) -> Tensor:
        """Features (..., size) of scaled values (..., *shape); 0 where the unit is 0."""
        scaled = torch.where(unit > 0, scaled, 0.0)
        dimensions = len(self.space.shape)
        return scaled if dimensions == 1 else scaled.reshape(*scaled.shape[: scaled.ndim - dimensions], self.size)

    def raw(self, values: Any) -> Any:
        """See `Encoder.raw`."""
        return values.reshape(values.shape[0], self.size) if len(self.space.shape) != 1 else values


class StandardisedBox(_BoxEncoder):
    """A Box whose numbers are shifted to the mean 0 and scaled to the deviation 1 of the data.

    Args:
        space: of the values.
        mean: of the data, of the space's shape.
        std: of the data, likewise; 0 for a component that is constant, whose feature is 0 whatever its value.

    Raises:
        InvalidInput: the mean or the deviation has another shape.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, space: Box, mean: Any, std: Any) -> None:
        super().__init__(space)
        for name, value in (("mean", mean), ("std", std)):
            found = torch.as_tensor(value, dtype=torch.float32).clone()
            if tuple(found.shape) != space.shape:
                raise InvalidInput(f"the {name} of observations has shape {tuple(found.shape)}; expected {space.shape}")
            self.register_buffer(name, found)

    def forward(self, values: Observations) -> Tensor:
        """See `Encoder.forward`."""
        assert isinstance(values, Tensor), "a Box is one tensor"
        return self._flat(clip_scaled(_units(values, self.mean, self.std)), self.std)

    def affine(self) -> tuple[Tensor, Tensor]:
        """See `Encoder.affine`."""
        return _affine(self.mean, self.std)

    def examples(self, rows: int, generator: torch.Generator) -> Tensor:
        """See `Encoder.examples`."""
        return self.mean + self.std * torch.randn(rows, *self.space.shape, generator=generator)


class OneHot(Encoder):
    """Discrete numbers, each as a 1 among zeros; numbers outside their range give zeros alone.

    With the linear layer behind it this is an embedding of every value.

    Args:
        space: of the values.
    """

    values: Tensor
    numbers: Tensor

    def __init__(self, space: DiscreteSpace) -> None:
        super().__init__(space, sum(space.counts))
        # Of each feature: which number it is of, and the value that it stands for.
        self.number = np.repeat(np.arange(len(space.counts)), space.counts)
        ranges = [np.arange(start, start + count) for start, count in zip(space.starts, space.counts, strict=True)]
        self.value = np.concatenate(ranges).astype(np.float32)
        self.register_buffer("values", torch.from_numpy(self.value), persistent=False)
        self.register_buffer("numbers", torch.from_numpy(self.number), persistent=False)

    def forward(self, values: Observations) -> Tensor:
        """See `Encoder.forward`."""
        assert isinstance(values, Tensor), "discrete numbers are one tensor"
        dimensions = len(self.space.shape)
        flat = values.reshape(*values.shape[: values.ndim - dimensions], len(self.space.counts))  # type: ignore[attr-defined]
        return (flat[..., self.numbers] == self.values).to(self.values.dtype)

    def raw(self, values: Any) -> Any:
        """See `Encoder.raw`."""
        flat = values.reshape(-1, len(self.space.counts))  # type: ignore[attr-defined]  # (batch, numbers)
        if isinstance(values, Tensor):
            return (flat[:, self.numbers] == self.values).to(self.values.dtype)
        return (flat[:, self.number] == self.value).astype(np.float32)

    def nothing(self) -> Tensor:
        """See `Encoder.nothing`."""
        return torch.tensor(self.space.starts, dtype=torch.float64) - 1  # type: ignore[attr-defined]

    def examples(self, rows: int, generator: torch.Generator) -> Tensor:
        """See `Encoder.examples`."""
        counts, starts = (torch.tensor(part, dtype=torch.float32) for part in (self.space.counts, self.space.starts))  # type: ignore[attr-defined]
        drawn = (torch.rand(rows, len(counts), generator=generator) * counts).floor() + starts
        return drawn.reshape(rows, *self.space.shape)


class WordCounts(Encoder):
    """Texts as how often each word of the vocabulary is in them; unknown words count as one word.

    With the linear layer behind it this is the sum of the words' learned embeddings.

    Args:
        space: of the values.
    """

    def __init__(self, space: TextSpace) -> None:
        # One for words that are unknown.
        super().__init__(space, len(space.vocabulary) + 1)
        self.number = np.arange(UNKNOWN, UNKNOWN + self.columns, dtype=np.float32)

    def forward(self, values: Observations) -> Tensor:
        """See `Encoder.forward`."""
        assert isinstance(values, Tensor), "words are one tensor"
        counts = torch.zeros(*values.shape[:-1], self.columns + 1, dtype=values.dtype, device=values.device)
        return clip_scaled(counts.scatter_add(-1, values.long(), torch.ones_like(values))[..., 1:])

    def raw(self, values: Any) -> Any:
        """See `Encoder.raw`."""
        if isinstance(values, Tensor):
            return self(values)
        return (values[:, None, :] == self.number[:, None]).sum(-1).astype(np.float32)

    def nothing(self) -> Tensor:
        """See `Encoder.nothing`."""
        return torch.zeros(self.space.size, dtype=torch.float64)

    def examples(self, rows: int, generator: torch.Generator) -> Tensor:
        """See `Encoder.examples`."""
        return (torch.rand(rows, self.space.size, generator=generator) * (self.columns + 1)).floor()


class Parts(Encoder):
    """Values that have parts or images: the features of all parts, one part after another, images last.

    One linear layer over them is the sum of an embedding of each part.

    Args:
        space: of the values.
        parts: the parts that are encoded.
        encoders: of those that are numbers, in their order.
        images: of those that are images, in their order.
    """

    def __init__(
        self, space: Space, parts: Sequence[Part], encoders: Sequence[Encoder], images: Sequence[ImageEncoder]
    ) -> None:
        super().__init__(space, sum(one.columns for one in encoders), sum(one.size for one in images))
        self.encoders, self.image_encoders = nn.ModuleList(encoders), nn.ModuleList(images)
        self.pieces = [part for part in parts if not isinstance(part.space, ImageSpace)]
        self.paths = [part.path for part in parts if isinstance(part.space, ImageSpace)]

    def forward(self, values: Observations) -> Tensor:
        """See `Encoder.forward`."""
        found = [encoder(piece) for encoder, piece in self._pieces(values)]
        images = [encoder(values[path]) for encoder, path in zip(self.image_encoders, self.paths, strict=True)]  # type: ignore[index]
        return torch.cat([part.to(self._dtype(images)) for part in (*found, *images)], -1)

    def raw(self, values: Any) -> Any:
        """See `Encoder.raw`."""
        found = [encoder.raw(piece) for encoder, piece in self._pieces(values)]
        if not found:
            # Images alone have no NumPy form.
            first = first_of(values)
            return torch.zeros(first.shape[0], 0, device=first.device)
        return found[0] if len(found) == 1 else _join(found)

    def image_features(self, values: Observations) -> Tensor | None:
        """See `Encoder.image_features`."""
        if not self.paths:
            return None
        images = [encoder(values[path]) for encoder, path in zip(self.image_encoders, self.paths, strict=True)]  # type: ignore[index]
        return torch.cat(images, -1)

    def affine(self) -> tuple[Tensor, Tensor]:
        """See `Encoder.affine`."""
        if not len(self.encoders):
            return super().affine()
        centres, factors = zip(*(encoder.affine() for encoder in self.encoders), strict=True)  # type: ignore[operator]
        return torch.cat(centres), torch.cat(factors)

    def nothing(self) -> Tensor:
        """See `Encoder.nothing`."""
        return torch.cat([encoder.nothing() for encoder in self.encoders])  # type: ignore[operator]

    def examples(self, rows: int, generator: torch.Generator) -> Observations:
        """See `Encoder.examples`; what is left out is 0."""
        numbers = torch.zeros(rows, *self.space.shape) if self.space.size else None
        for part, encoder in zip(self.pieces, self.encoders, strict=True):
            made = encoder.examples(rows, generator)  # type: ignore[operator]
            numbers[:, part.columns] = made.reshape(rows, -1)  # type: ignore[index]
        images = {path: _noise(image, rows, generator) for path, image in self.space.images().items()}
        if not images:
            return numbers  # type: ignore[return-value]
        return ({} if numbers is None else {NUMBERS: numbers}) | images

    def _pieces(self, values: Any) -> list[tuple[Any, Any]]:
        """The encoders of numbers, each with its values (..., *shape of the part)."""
        numbers = numbers_of(values)
        found = []
        for part, encoder in zip(self.pieces, self.encoders, strict=True):
            piece = numbers[..., part.columns]
            found.append((encoder, piece.reshape(*numbers.shape[:-1], *part.space.shape)))
        return found

    def _dtype(self, images: list[Tensor]) -> torch.dtype:
        # Under autocast convolutions answer in a lower precision than numbers need.
        return torch.float32 if len(self.encoders) or not images else images[0].dtype


def _join(parts: list[Any]) -> Any:
    return torch.cat(parts, -1) if isinstance(parts[0], Tensor) else np.concatenate(parts, -1)


def _noise(image: ImageSpace, rows: int, generator: torch.Generator) -> Tensor:
    drawn = torch.rand(rows, *image.shape, generator=generator) * (image.high - image.low) + image.low
    return drawn.floor().to(torch.uint8) if image.dtype == "uint8" else drawn


class BoundedBox(_BoxEncoder):
    """A bounded Box whose bounds are mapped to -1 and 1; what lies beyond a bound counts as at it.

    A component whose bounds are equal is held there: its feature is 0 whatever its value.

    Args:
        space: of the values.

    Raises:
        InvalidInput: the space has no bounds, or their range in float32 is infinite.
    """

    low: Tensor
    high: Tensor
    middle: Tensor
    half_range: Tensor

    def __init__(self, space: Box) -> None:
        super().__init__(space)
        self.is_whole = space.is_whole
        low, high = space.bounds()
        if not space.is_bounded:
            raise InvalidInput(f"the action space {space} has no bounds; give it the range of the data's actions")
        middle, half_range = (low.astype(np.float64) + high) / 2, (high.astype(np.float64) - low) / 2
        if not (half_range <= LARGEST_BOUND).all():
            raise InvalidInput(
                f"bounds of the action space {space} have no finite range in float32; give it the range of the data's "
                "actions"
            )
        half_range = np.where(varies(low, high), half_range, 0.0)
        for name, value in (("low", low), ("high", high), ("middle", middle), ("half_range", half_range)):
            # The space is saved, so its bounds need not be.
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32).clone(), persistent=False)

    def forward(self, values: Observations) -> Tensor:
        """See `Encoder.forward`."""
        assert isinstance(values, Tensor), "a Box is one tensor"
        return self._flat((_units(values, self.low, self.half_range) - 1).clamp(-1, 1), self.half_range)

    def unscaled(self, scaled: Tensor) -> Tensor:
        """The values (..., *shape) of features (..., size)."""
        raw = scaled.reshape(*scaled.shape[:-1], *self.low.shape) * self.half_range + self.middle
        # What is executed is a whole number, so that is what the model has to remember.
        raw = raw.round() if self.is_whole else raw
        # Rounding may not carry a saturated action out of its bounds.
        return torch.minimum(torch.maximum(raw, self.low), self.high)

    def affine(self) -> tuple[Tensor, Tensor]:
        """See `Encoder.affine`."""
        return _affine(self.middle, self.half_range)

    def examples(self, rows: int, generator: torch.Generator) -> Tensor:
        """See `Encoder.examples`."""
        return self.middle + self.half_range * (2 * torch.rand(rows, *self.space.shape, generator=generator) - 1)


def clip_scaled(scaled: Tensor) -> Tensor:
    """Scaled values within -`SCALED_BOUND` and `SCALED_BOUND`."""
    return scaled.clamp(-SCALED_BOUND, SCALED_BOUND)


def _units(values: Tensor, origin: Tensor, unit: Tensor) -> Tensor:
    """How many units values are from an origin; infinite where float32 does not hold the distance, so clip it."""
    return (values - origin) / torch.where(unit > 0, unit, 1.0)


def _affine(centre: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """Centre and factor of `Encoder.affine`; a unit of 0 gives the factor 0."""
    wide = unit.flatten().double()
    return centre.flatten().double(), torch.where(wide > 0, 1 / wide, 0.0)


def observation_encoder(
    space: Space, scaling: Scaling, image_encoder: ImageEncoding = "auto", leave_out: Sequence[str] = ()
) -> Encoder:
    """The encoder of an observation space.

    Args:
        space: of the observations.
        scaling: of their numbers.
        image_encoder: as `ImageEncoder` takes it.
        leave_out: parts of the observations that are no input, by their paths or the first keys of those.

    Raises:
        InvalidInput: a part to leave out is none, or all are left out.
    """
    if isinstance(space, Box) and not leave_out:
        return StandardisedBox(space, scaling.observation_mean, scaling.observation_std)
    parts = _chosen(space, leave_out)
    encoders = [_encoder(part, scaling) for part in parts if not isinstance(part.space, ImageSpace)]
    images = [ImageEncoder(part.space, image_encoder) for part in parts if isinstance(part.space, ImageSpace)]
    if len(encoders) == 1 and len(parts) == len(space.parts()) == 1 and not isinstance(space, NestedSpace):
        return encoders[0]
    return Parts(space, parts, encoders, images)


def _chosen(space: Space, leave_out: Sequence[str]) -> list[Part]:
    """The parts of a space but those that are left out."""
    parts, paths = list(space.parts()), [part.path for part in space.parts()]
    for name in leave_out:
        if not any(path == name or path.startswith(f"{name}/") for path in paths):
            known = ", ".join(map(repr, paths)) if paths != [""] else "no parts"
            raise InvalidInput(f"leave_out names the part {name!r}; the observations have {known}")
    kept = [
        part for part in parts if not any(part.path == name or part.path.startswith(f"{name}/") for name in leave_out)
    ]
    if not kept:
        raise InvalidInput(f"leave_out names all parts of the observations, {', '.join(paths)}; keep one")
    return kept


def _encoder(part: Part, scaling: Scaling) -> Encoder:
    """The encoder of a part that is numbers: one line for each type of space."""
    space = part.space
    if isinstance(space, Box):
        of_part = (np.reshape(given, -1)[part.columns] for given in (scaling.observation_mean, scaling.observation_std))
        return StandardisedBox(space, *(given.reshape(space.shape) for given in of_part))
    if isinstance(space, BinarySpace):
        return BoundedBox(bits(space))
    if isinstance(space, DiscreteSpace):
        return OneHot(space)
    assert isinstance(space, TextSpace), "there are no others"
    return WordCounts(space)


def bits(space: BinarySpace) -> Box:
    """The Box from 0 to 1 that bits lie in."""
    return Box.bounded(np.zeros(space.shape), np.ones(space.shape))


def action_encoder(space: Space) -> Encoder:
    """The encoder of an action space, for the previous action as input: one line for each type of space.

    Raises:
        InvalidInput: actions of that type have no encoder.
    """
    parts = space.parts()
    if isinstance(space, NestedSpace):
        return Parts(space, parts, [action_encoder(part.space) for part in parts], [])
    if isinstance(space, Box):
        return BoundedBox(space)
    if isinstance(space, BinarySpace):
        return BoundedBox(bits(space))
    if isinstance(space, DiscreteSpace):
        return OneHot(space)
    raise InvalidInput(f"actions of {space}; expected Box, Discrete, MultiDiscrete, MultiBinary, or parts of such")
