"""No mixing: each token sees itself alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from aaren_rl.mixers.base.contract import Capability, Mixer
from aaren_rl.mixers.base.registry import register
from aaren_rl.mixers.base.stepper import Stepper
from aaren_rl.ops.numpy_layers import Array


class NoStepper(Stepper):
    """Adds nothing; its row of state is empty.

    Args:
        start: the empty row, (0,).
        tokens: tokens in a step.
        outputs: number of tokens that leave the step, the last ones.
    """

    def __init__(self, start: Tensor, tokens: int, outputs: int) -> None:
        super().__init__(start)
        self.tokens, self.outputs = tokens, outputs

    def forward(self, x: Tensor, onto: Tensor, state: Tensor, live: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `Stepper.forward`."""
        return onto, state

    def to_numpy(self, norm: nn.LayerNorm) -> NumpyNoStepper:
        """See `Stepper.to_numpy`."""
        return NumpyNoStepper(self.tokens, self.outputs)


class NumpyNoStepper:
    """Computes what `NoStepper` computes; see `NumpyStepper` for the contract.

    Args:
        tokens: tokens in a step.
        outputs: number of tokens that leave the step, the last ones.
    """

    def __init__(self, tokens: int, outputs: int) -> None:
        self.tokens, self.outputs = tokens, outputs

    def __call__(self, normed: Array, before: Array, after: Array, live: Array | None) -> Array:
        """See `NumpyStepper.__call__`."""
        return np.zeros((len(normed) // self.tokens * self.outputs, normed.shape[1]), np.float32)


@register("none")
class NoMixing(Mixer):
    """Adds nothing to any token (ours): a baseline that shows what memory is worth.

    The residual stream stays as it is, so the model is a perceptron with residual blocks. It sees the current step if
    tokens are fused, the current observation if they are interleaved. Memory: constant, of size 0. No parameters.

    Args:
        width: size of a token.
        heads: checked, otherwise without effect.
    """

    memory = "constant"
    capability = Capability(source="ours", parallel="0", step="0", sees="itself")
    nothing: Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        # Without a parameter, this buffer gives a state its device and dtype.
        self.register_buffer("nothing", torch.zeros(0), persistent=False)

    def initial_state(self, batch_size: int) -> Tensor:
        """A tensor without elements, (batch, 0)."""
        return self.nothing.new_zeros(batch_size, 0)

    def forward(
        self, x: Tensor, state: Tensor | None = None, reset: Tensor | None = None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Mixer.forward`; returns zeros and a state (batch, 0)."""
        return torch.zeros_like(x), self.initial_state(x.shape[0])

    def stepper(self, norm: nn.LayerNorm, tokens: int, outputs: int) -> NoStepper:
        """See `Mixer.stepper`."""
        return NoStepper(self.nothing.double(), tokens, outputs)
