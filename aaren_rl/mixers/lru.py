"""The linear recurrent unit: a complex diagonal recurrence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.base.contract import Capability, Mixer
from aaren_rl.mixers.base.folded_stepper import FoldedStepper, Library, Recurrence, split
from aaren_rl.mixers.base.registry import register
from aaren_rl.ops.linear_recurrence import linear_recurrence

SMALLEST_RADIUS, LARGEST_RADIUS = 0.9, 0.999
"""Ring of the eigenvalues at first: they keep 1/e for 10 to 1,000 tokens."""

LARGEST_LOG_SCALE = 20.0
"""Bound that keeps every scale finite; scales start below 1."""


@register("lru")
class LRU(Mixer):
    """The linear recurrent unit (Orvieto et al. 2023, "Resurrecting Recurrent Neural Networks for Long Sequences",
    arXiv 2303.06349, section 3).

    ``h_t = l * h_{t-1} + g * B x_t`` and ``y_t = Re(C h_t) + D * x_t`` with complex h, B, C and one eigenvalue per
    number of h, ``l = exp(-exp(nu) + i exp(theta))``, which is stable for all nu (section 3.3). Eigenvalues start
    uniform on a ring, radii 0.9 to 0.999 and any phase. The learned g starts as ``sqrt(1 - |l|^2)``, so that h is as
    large as its input (section 3.4). A scan computes all tokens. Memory: constant, h, 2 d numbers.

    The source's block has a gated linear unit after it; a block here has a perceptron. B and C start as all linear
    layers here, C with a bias. D starts as 1.

    Args:
        width: size of a token and number of eigenvalues.
        heads: checked, otherwise without effect: every number is a recurrence of its own.
    """

    memory = "constant"
    capability = Capability(source="Orvieto et al. 2023, section 3", parallel="T d, scan", step="d")

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.input = nn.Linear(width, 2 * width, bias=False)
        self.output = nn.Linear(2 * width, width)
        self.skip = nn.Parameter(torch.ones(width))
        # From above 0 to 1, since both logarithms must be finite.
        area, turn = 1 - torch.rand(2, width)
        squared = area * (LARGEST_RADIUS**2 - SMALLEST_RADIUS**2) + SMALLEST_RADIUS**2
        self.log_decay = nn.Parameter((-0.5 * squared.log()).log())
        self.log_phase = nn.Parameter((2 * math.pi * turn).log())
        self.log_scale = nn.Parameter(0.5 * (1 - squared).log())

    @property
    def eigenvalues(self) -> Tensor:
        """Complex factor of each number of h per token, (width,)."""
        # A faster turn looks like a slower one.
        phase = self.log_phase.clamp(max=math.log(2 * math.pi)).exp()
        return torch.polar(torch.exp(-self.log_decay.exp()), phase)

    @property
    def scale(self) -> Tensor:
        """Factor g of what a token adds to each number of h, (width,)."""
        return self.log_scale.clamp(max=LARGEST_LOG_SCALE).exp()

    def initial_state(self, batch_size: int) -> Tensor:
        """Zeros: real parts, then imaginary parts, (batch, 2 * width)."""
        return self.log_decay.new_zeros(batch_size, 2 * self.width)

    def forward(
        self, x: Tensor, state: Tensor | None = None, reset: Tensor | None = None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Mixer.forward`; the state is h, (batch, 2 * width)."""
        if valid is not None:
            x = x.masked_fill(~valid.unsqueeze(-1), 0.0)
        added = self._added(x)  # (batch, time, width)
        kept = self.eigenvalues.expand_as(added)
        if valid is not None:
            # Padding is the identity.
            kept = kept.masked_fill(~valid.unsqueeze(-1), 1.0)
            added = added.masked_fill(~valid.unsqueeze(-1), 0.0)
        if reset is not None:
            kept = kept.masked_fill(reset.unsqueeze(-1), 0.0)
        if state is not None:
            # The state enters as one more token, which keeps nothing.
            before = torch.complex(*state.chunk(2, -1)).unsqueeze(1)
            kept, added = F.pad(kept, (0, 0, 1, 0)), torch.cat([before.to(added), added], 1)
        h = linear_recurrence(kept, added)[:, 0 if state is None else 1 :]
        parts = torch.cat([h.real, h.imag], -1)  # (batch, time, 2 * width)
        return self._read(parts, x), parts[:, -1]

    def step(self, x_t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """See `Mixer.step`."""
        h = self.eigenvalues * torch.complex(*state.chunk(2, -1)) + self._added(x_t)
        parts = torch.cat([h.real, h.imag], -1)
        return self._read(parts, x_t), parts

    def stepper(self, norm: nn.LayerNorm, tokens: int, outputs: int) -> FoldedStepper:
        """See `Mixer.stepper`."""
        return FoldedStepper(_Recurrence(self), tokens, outputs)

    def _added(self, x: Tensor) -> Tensor:
        """What tokens add to h, complex, in float32 parts at least; like the tokens."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        return torch.complex(*self.input(x).to(dtype).chunk(2, -1)) * self.scale

    def _read(self, h: Tensor, x: Tensor) -> Tensor:
        """Outputs from real and imaginary parts (..., 2 * width) and tokens (..., width)."""
        return self.output(h.to(x.dtype)) + self.skip * x  # type: ignore[no-any-return]


class _Recurrence(Recurrence):
    def __init__(self, mixer: LRU) -> None:
        self.width = mixer.width
        scale = mixer.scale.repeat(2).unsqueeze(1)
        # What skips the recurrence goes through both products, as further columns.
        weight = torch.cat([scale * mixer.input.weight, mixer.skip.diag()])
        output = torch.cat([mixer.output.weight, torch.eye(mixer.width).to(weight)], 1)
        eigenvalues = mixer.eigenvalues
        super().__init__(
            (weight, weight.new_zeros(3 * mixer.width)),
            (output, mixer.output.bias),
            mixer.initial_state(1)[0],
            {"real": eigenvalues.real, "imaginary": eigenvalues.imag},
        )

    def mix(
        self, library: Library, constants: Mapping[str, Any], rows: Any, state: Any, out: Any = None
    ) -> tuple[Any, Any]:
        """See `Recurrence.mix`."""
        real, imaginary = split(state, [self.width] * 2)
        turned = (
            constants["real"] * real - constants["imaginary"] * imaginary,
            constants["real"] * imaginary + constants["imaginary"] * real,
        )
        state = library.concatenate(turned) + rows[:, : 2 * self.width]
        return library.concatenate([state, rows[:, 2 * self.width :]]), state
