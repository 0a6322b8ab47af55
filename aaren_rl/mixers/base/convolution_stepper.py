"""A short convolution folded for acting, in torch and in NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from aaren_rl.mixers.base.stepper import NumpyStepper, Stepper
from aaren_rl.ops.numpy_layers import Array, to_array

if TYPE_CHECKING:
    from aaren_rl.mixers.base.contract import Mixer


class ConvolutionStepper(Stepper):
    """Convolves the tokens of one step and hands them to the stepper of the mixer behind.

    A row of state holds the last tokens, the oldest first, and then the mixer's row.

    Args:
        weight: taps of the convolution, (taps, width), the current token's first.
        mixer: mixer behind the convolution.
        norm: layer norm in front of the convolution.
        tokens: tokens in a step.
        outputs: number of tokens that leave the step, the last ones.
    """

    taps: Tensor

    def __init__(self, weight: Tensor, mixer: Mixer, norm: nn.LayerNorm, tokens: int, outputs: int) -> None:
        inner = mixer.stepper(_bound(weight, norm), tokens, outputs)
        earlier = torch.zeros((len(weight) - 1) * weight.shape[1], dtype=torch.float64, device=weight.device)
        super().__init__(torch.cat([earlier, inner.start]))
        self.inner, self.tokens = inner, tokens
        taps = weight.flip(0).clone()
        taps[-1] += 1
        self.register_buffer("taps", taps)

    def forward(self, x: Tensor, onto: Tensor, state: Tensor, live: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `Stepper.forward`."""
        taps, width = self.taps.shape
        past, inner = torch.split(state, [(taps - 1) * width, len(self.inner.start)], -1)
        convolved = []
        for t, token in enumerate(x.view(-1, self.tokens, width).unbind(1)):
            entries = torch.cat([past.to(x.dtype), token], -1)  # (batch, taps * width)
            convolved.append((entries.view(-1, taps, width) * self.taps).sum(1))
            later = entries[:, width:].double()
            past = later if live is None else torch.where(live[:, t : t + 1] > 0, later, past)
        onto, inner = self.inner(torch.stack(convolved, 1).flatten(0, 1), onto, inner, live)
        return onto, torch.cat([past, inner], -1)

    def to_numpy(self, norm: nn.LayerNorm) -> NumpyStepper | None:
        """See `Stepper.to_numpy`."""
        unscaled = nn.LayerNorm(len(norm.weight), eps=norm.eps, device=norm.weight.device, dtype=norm.weight.dtype)
        inner = self.inner.to_numpy(unscaled)
        return None if inner is None else NumpyConvolutionStepper(self, norm, inner)


class NumpyConvolutionStepper:
    """Computes what `ConvolutionStepper` computes; see `NumpyStepper` for the contract.

    Args:
        stepper: stepper to compute.
        norm: layer norm in front of the convolution.
        inner: stepper of the mixer behind.
    """

    def __init__(self, stepper: ConvolutionStepper, norm: nn.LayerNorm, inner: NumpyStepper) -> None:
        self.tokens, self.inner = stepper.tokens, inner
        self.taps, self.width = stepper.taps.shape
        # The row of state is in double precision: sums in it cost no more than casts.
        self.weight = to_array(stepper.taps).astype(np.float64).reshape(1, -1)
        self.scale, self.shift = to_array(norm.weight), to_array(norm.bias)

    def __call__(self, normed: Array, before: Array, after: Array, live: Array | None) -> Array:
        """See `NumpyStepper.__call__`."""
        size = (self.taps - 1) * self.width
        x = (normed * self.scale + self.shift).reshape(-1, self.tokens * self.width)
        entries = np.concatenate([before[:, :size], x], 1)  # (batch, (taps - 1 + tokens) * width)
        if live is None:
            convolved = [self._convolve(entries[:, self._window(t)]) for t in range(self.tokens)]
            after[:, :size] = entries[:, -size:]
        else:
            convolved, past = [], entries[:, :size]
            for t in range(self.tokens):
                window = np.concatenate([past, x[:, t * self.width : (t + 1) * self.width]], 1)
                convolved.append(self._convolve(window))
                past = np.where(live[:, t, None] > 0, window[:, self.width :], past)
            after[:, :size] = past
        tokens = convolved[0] if self.tokens == 1 else np.concatenate(convolved, 1).reshape(-1, self.width)
        return self.inner(tokens.astype(np.float32), before[:, size:], after[:, size:], live)

    def _window(self, token: int) -> slice:
        """Columns of the entries that a token reads."""
        return slice(token * self.width, (token + self.taps) * self.width)

    def _convolve(self, window: Array) -> Array:
        """A token of the entries that it reads, (batch, taps * width)."""
        return np.add.reduce((window * self.weight).reshape(-1, self.taps, self.width), 1)  # type: ignore[no-any-return]


def _bound(weight: Tensor, norm: nn.LayerNorm) -> nn.LayerNorm:
    """A layer norm without shift whose outputs bound the convolved tokens.

    A mixer may fold what it knows of the size of its tokens: a product u . x of a layer norm's output is at most
    sqrt(width) |u * scale| (Cauchy-Schwarz). For a sum over K taps, each of scale w_k g and shift w_k b, this holds for
    the scale sqrt(2 K (g^2 + b^2) sum_k w_k^2).
    """
    taps = weight.clone()
    taps[0] += 1
    bound = nn.LayerNorm(weight.shape[1], eps=norm.eps, device=weight.device, dtype=weight.dtype)
    size = 2 * len(taps) * (norm.weight**2 + norm.bias**2) * (taps**2).sum(0)
    with torch.no_grad():
        bound.weight.copy_(size.sqrt())
    return bound
