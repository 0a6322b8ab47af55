"""The recurrence h_t = a_t h_{t-1} + b_t, elementwise, in parallel over time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def linear_recurrence(a: Tensor, b: Tensor) -> Tensor:
    """All h_t of the recurrence, from h = 0 on.

    Up to rounding it equals the loop::

        h = 0
        for t in range(time):
            h = a[:, t] * h + b[:, t]

    The pairs (a, b) combine associatively: (a, b) then (a', b') is (a a', a' b + b'). A tree over them needs work in
    proportion to the time, and depth to its logarithm (Blelloch 1990, "Prefix sums and their applications"). With
    factors of modulus 1 at most no product overflows, and a product that underflows is rightly 0. Sums of logarithms
    would lose digits as they grow, and a factor of 0, which is a reset, has no logarithm.

    Args:
        a: factors, real from 0 to 1 or complex of modulus 1 at most, (batch, time, width), time 1 or more.
        b: summands, (batch, time, width), in the dtype of `a`.

    Returns:
        h of every token, (batch, time, width).
    """
    return _LinearRecurrence.apply(a, b)  # type: ignore[no-any-return, no-untyped-call]


class _LinearRecurrence(torch.autograd.Function):
    """Keeps the factors and the results only; its gradient is the same recurrence from the end."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        """See `linear_recurrence`."""
        return _prefixes(a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Keeps what `backward` needs."""
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_h: Tensor) -> tuple[Tensor, Tensor]:
        """db_t = dh_t + conj(a_{t+1}) db_{t+1} and da_t = db_t conj(h_{t-1})."""
        a, h = ctx.saved_tensors
        following = F.pad(a[:, 1:].conj(), (0, 0, 0, 1))
        d_b = _prefixes(following.flip(1), d_h.flip(1)).flip(1)
        return d_b * F.pad(h[:, :-1].conj(), (0, 0, 1, 0)), d_b


def _prefixes(a: Tensor, b: Tensor) -> Tensor:
    """All h_t: joins tokens in pairs, calls itself on the pairs, and reaches the other tokens in one step.

    Five tokens::

        pairs of tokens      (0 1) (2 3) 4       half as many, each an (a, b)
        h after the pairs       h1    h3         the same recurrence over the pairs
        one step from them   h0    h2    h4      h_t = a_t h_{t-1} + b_t
    """
    time = a.shape[1]
    if time == 1:
        # An autograd function may not return its argument.
        return b.clone()
    paired = time - time % 2
    first_a, second_a = a[:, 0:paired:2], a[:, 1::2]  # (batch, time // 2, width)
    first_b, second_b = b[:, 0:paired:2], b[:, 1::2]
    at_second = _prefixes(first_a * second_a, second_a * first_b + second_b)
    before = F.pad(at_second, (0, 0, 1, 0))[:, : time - paired // 2]
    at_first = torch.addcmul(b[:, ::2], a[:, ::2], before)
    both = torch.stack([at_first[:, : paired // 2], at_second], 2).flatten(1, 2)  # (batch, paired, width)
    return both if paired == time else torch.cat([both, at_first[:, -1:]], 1)
