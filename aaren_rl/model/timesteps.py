"""Embeddings of the number of a step in its episode."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from aaren_rl.model.config import ModelConfig


class TimestepEmbedding(nn.Module):
    """What the number of a step adds to its tokens, as `ModelConfig.timesteps` says.

    Args:
        config: the model's shape; its timesteps are not "none".
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.form, self.width = config.timesteps, config.width
        if config.timesteps == "learned":
            self.table = nn.Embedding(config.max_steps, config.width)
        elif config.timesteps == "first":
            self.first = nn.Parameter(torch.randn(config.width))

    def forward(self, timesteps: Tensor) -> Tensor:
        """Vectors (..., width) of integer timesteps (...)."""
        if self.form == "learned":
            return self.table(timesteps)  # type: ignore[no-any-return]
        if self.form == "first":
            return (timesteps == 0).unsqueeze(-1) * self.first
        return _sinusoids(timesteps, self.width)


def _sinusoids(positions: Tensor, width: int) -> Tensor:
    """Sines and cosines of the positions (Vaswani et al. 2017, section 3.5), (..., width)."""
    half = (width + 1) // 2
    rates = torch.exp(torch.arange(half, device=positions.device) * (-math.log(10_000.0) / half))
    angles = positions.unsqueeze(-1) * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[..., :width]
