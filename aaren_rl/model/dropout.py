"""Dropout whose random numbers are cheap on CPUs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 2**16


class Dropout(nn.Module):
    """Sets elements to zero with a probability, and scales the others up (Srivastava et al. 2014), while training.

    Torch draws a random number of its own for every element, which on CPUs is among the dearest parts of an update.
    Here each 64-bit number serves four elements there, so the probability is a multiple of 2^-16. On other devices, and
    compiled, this is torch's dropout.

    Args:
        probability: of an element to be set to zero.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """The tensor with elements dropped, or as it is in evaluation mode; added to `onto` where that is given."""
        plain = x.device.type != "cpu" or torch.compiler.is_compiling()
        if plain or not self.training or self.probability == 0 or x.numel() == 0:
            kept = F.dropout(x, self.probability, self.training)
            return kept if onto is None else onto + kept
        mask = self._mask(x)
        return x * mask if onto is None else torch.addcmul(onto, x, mask)

    def _mask(self, x: Tensor) -> Tensor:
        """0 for what is dropped, 1 / (1 - probability) elsewhere."""
        dropped = min(round(self.probability * LEVELS), LEVELS - 1)
        # Torch's own generator seeds one that is four times faster, so that its seed and its state still decide.
        generator = np.random.SFC64(int(torch.randint(2**62, ())))
        words = torch.from_numpy(generator.random_raw(-(-x.numel() // 4)))
        drawn = words.view(torch.int16)[: x.numel()].view(x.shape)
        # Arithmetic instead of a comparison: torch's operations on bool are several times slower on CPUs.
        keep = drawn.to(x.dtype if x.dtype == torch.float64 else torch.float32).add_(LEVELS // 2 + 1 - dropped)
        return keep.clamp_(0, 1).mul_(LEVELS / (LEVELS - dropped)).to(x.dtype)
