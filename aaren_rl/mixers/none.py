"""No mixing at all: a model that sees the current token alone."""

from __future__ import annotations

import torch
from torch import Tensor

from aaren_rl.mixers.base.contract import Capability, Mixer
from aaren_rl.mixers.base.registry import register


@register("none")
class NoMixing(Mixer):
    """Adds nothing to any token (ours): the baseline that tells what memory is worth.

    The residual stream goes on unchanged, so a model of it is a perceptron with residual blocks: with fused tokens of
    the current step alone, with interleaved ones of the observation alone. Memory: constant, of size 0; no parameters.

    Args:
        width: size of a token.
        heads: checked as everywhere, otherwise without effect.
    """

    memory = "constant"
    capability = Capability(source="ours", parallel="0", step="0", sees="itself")
    nothing: Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        # Without parameters, this tells the device and the type of a state.
        self.register_buffer("nothing", torch.zeros(0), persistent=False)

    def initial_state(self, batch_size: int) -> Tensor:
        """A tensor without elements, (batch, 0)."""
        return self.nothing.new_zeros(batch_size, 0)

    def forward(
        self, x: Tensor, state: Tensor | None = None, reset: Tensor | None = None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Mixer.forward`; zeros, and a state (batch, 0)."""
        return torch.zeros_like(x), self.initial_state(x.shape[0])
