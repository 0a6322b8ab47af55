"""Convolutional encoders of images."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.data.spaces import ImageSpace
from aaren_rl.data.spaces.image import SYMBOLS
from aaren_rl.errors import InvalidInput

ImageEncoding = Literal["auto", "nature", "impala", "grid"]

NATURE_SIDE, LARGE_GRID = 36, 14
"""Shortest side that the Nature encoder takes, and the one from which on a grid is halved."""

GRID_VALUES, GRID_WIDTH = 256, 32
"""Values of a symbol, and size of its embedding."""


class ImageEncoder(nn.Module):
    """Features of images, by one of three networks.

    - "nature": three convolutions and a layer of 512 (Mnih et al. 2015, "Human-level control through deep
      reinforcement learning", Nature 518).
    - "impala": three residual stages and a layer of 256 (Espeholt et al. 2018, arXiv 1802.01561, figure 3, right).
    - "grid": symbols as MiniGrid has them: an embedding for each value of each channel, summed (Chevalier-Boisvert et
      al. 2019, "BabyAI", arXiv 1810.08272, and its later code), two convolutions and a layer of 256.

    "auto" takes "grid" for symbols (bytes up to `aaren_rl.data.spaces.image.SYMBOLS`), "nature" for pictures with sides
    from `NATURE_SIDE` on, and "impala" for smaller ones.

    Args:
        space: of the images.
        encoding: which network.

    Raises:
        InvalidInput: the encoding is unknown, or the images are too small for it, or no symbols.
    """

    first_symbol: Tensor

    def __init__(self, space: ImageSpace, encoding: ImageEncoding = "auto") -> None:
        super().__init__()
        if encoding not in get_args(ImageEncoding):
            raise InvalidInput(f"image_encoder is {encoding!r}; expected one of {', '.join(get_args(ImageEncoding))}")
        self.space, (channels, height, width) = space, space.channels_first
        side = min(height, width)
        if encoding == "auto":
            grid = space.dtype == "uint8" and space.high <= SYMBOLS
            encoding = "grid" if grid else "nature" if side >= NATURE_SIDE else "impala"
        if (encoding == "nature" and side < NATURE_SIDE) or (encoding == "grid" and space.dtype != "uint8"):
            raise InvalidInput(
                f"images of {height} x {width} of {space.dtype} for image_encoder {encoding!r}; expected sides from "
                f'{NATURE_SIDE} on for "nature" and uint8 for "grid"; "impala" takes any'
            )
        self.encoding = encoding
        if encoding == "grid":
            self.symbols = nn.Embedding(channels * GRID_VALUES, GRID_WIDTH)
            first = torch.arange(channels) * GRID_VALUES
            self.register_buffer("first_symbol", first, persistent=False)
        self.convolutions = _CONVOLUTIONS[encoding](channels, side)
        # Sizes by a try on nothing, which costs nothing.
        with torch.device("meta"):
            made = _CONVOLUTIONS[encoding](channels, side)(
                torch.zeros(1, GRID_WIDTH if encoding == "grid" else channels, height, width)
            )
        self.size = 512 if encoding == "nature" else 256
        self.linear = nn.Linear(made[0].numel(), self.size)

    def forward(self, images: Tensor) -> Tensor:
        """Features (..., size) of images (..., *shape)."""
        shape = self.space.shape
        front = images.shape[: images.ndim - len(shape)]
        flat = images.reshape(-1, *shape)
        if self.space.channels == "none":
            flat = flat.unsqueeze(1)
        elif self.space.channels == "last":
            flat = flat.permute(0, 3, 1, 2)
        hidden = self.convolutions(self._embedded(flat))  # (images, channels, height, width)
        return F.relu(self.linear(hidden.flatten(1))).reshape(*front, self.size)

    def _embedded(self, images: Tensor) -> Tensor:
        """What the convolutions read, of images (images, channels, height, width)."""
        if self.encoding == "grid":
            places = images.long() + self.first_symbol.view(-1, 1, 1)
            embedded: Tensor = self.symbols(places)  # (images, channels, height, width, features)
            return embedded.sum(1).permute(0, 3, 1, 2)
        return (images.to(self.linear.weight.dtype) - self.space.low) / (self.space.high - self.space.low)


class _Residual(nn.Module):
    """Two convolutions whose result is added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.second(F.relu(self.first(F.relu(x))))
        return x + change


def _nature(channels: int, side: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU()
    )


def _impala(channels: int, side: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size in (16, 32, 32):
        layers += [nn.Conv2d(channels, size, 3, padding=1), nn.MaxPool2d(3, 2, padding=1)]
        layers += [_Residual(size), _Residual(size)]
        channels = size
    return nn.Sequential(*layers, nn.ReLU())


def _grid(channels: int, side: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(GRID_WIDTH, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU())


_CONVOLUTIONS = {"nature": _nature, "impala": _impala, "grid": _grid}
