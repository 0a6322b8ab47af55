"""Dropout with cheap random numbers on CPUs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 2**16
"""Values of the 16 random bits that decide on one element."""


class Dropout(nn.Module):
    """Sets elements to zero with a probability, and scales the others up (Srivastava et al. 2014), while training.

    Torch draws one random number for every element, which on CPUs is among the most expensive parts of an update. On a
    CPU one 64-bit number serves four elements here, so the probability is rounded to a multiple of 2^-16. On other
    devices, and when compiled, this is torch's dropout.

    Args:
        probability: probability that an element is set to zero, from 0 up to but not 1.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """Drops elements while training, and adds the result to another tensor.

        Args:
            x: any shape.
            onto: tensor to add to, of the shape of `x`; None for none.

        Returns:
            The shape of `x`; in evaluation mode nothing is dropped.
        """
        plain = x.device.type != "cpu" or torch.compiler.is_compiling()
        if plain or not self.training or self.probability == 0 or x.numel() == 0:
            kept = F.dropout(x, self.probability, self.training)
            return kept if onto is None else onto + kept
        mask = self._mask(x)
        return x * mask if onto is None else torch.addcmul(onto, x, mask)

    def _mask(self, x: Tensor) -> Tensor:
        """0 for dropped elements, 1 / (1 - probability) for the others; the shape and dtype of `x`."""
        dropped = min(round(self.probability * LEVELS), LEVELS - 1)
        # Torch's generator seeds one that is four times faster: its seed and state still determine the mask.
        generator = np.random.SFC64(int(torch.randint(2**62, ())))
        words = torch.from_numpy(generator.random_raw(-(-x.numel() // 4)))
        drawn = words.view(torch.int16)[: x.numel()].view(x.shape)
        # Arithmetic instead of a comparison: torch's operations on bool are several times slower on CPUs.
        keep = drawn.to(x.dtype if x.dtype == torch.float64 else torch.float32).add_(LEVELS // 2 + 1 - dropped)
        return keep.clamp_(0, 1).mul_(LEVELS / (LEVELS - dropped)).to(x.dtype)
