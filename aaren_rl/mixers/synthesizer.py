"""Attention whose weights are made without comparing tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.registry import register
from aaren_rl.mixers.base.sliding_window import Windowed


class Synthesizer(Windowed):
    """Synthetic attention (Tay et al. 2020, "Synthesizer: Rethinking Self-Attention for Transformer Models", arXiv
    2005.00743), causal.

    ``o_t = sum_a softmax_a(B_t)_a W_v x_{t-a}`` over the ages a < span that the episode has, where no logit B compares
    two tokens. In the source a logit belongs to a position of the sequence; here to an age, tokens ago, because what
    an agent meets after the positions it was trained on would find them untrained. Memory: window, values of
    `span - 1` tokens.

    A subclass gives the logits.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        span: tokens of the window, the current one included.
    """

    def __init__(self, width: int, heads: int, span: int = 20) -> None:
        super().__init__(width, heads, span, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def logits(self, x: Tensor) -> Tensor:
        """Of tokens (batch, time, width), one for each place of the window, the newest last.

        Returns:
            (batch, heads, time, span), or what can be expanded to it.
        """
        raise NotImplementedError

    def remember(self, x: Tensor) -> Tensor:
        """See `Windowed.remember`: the value."""
        return self.value(x)  # type: ignore[no-any-return]

    def mix(self, x: Tensor, past: Tensor, seen: Tensor) -> Tensor:
        """See `Windowed.mix`."""
        logits = self.along_past(self.logits(x))
        weights = logits.masked_fill(~seen.unsqueeze(1), -torch.inf).softmax(-1)
        return self.output(self._join_heads(weights @ self._split_heads(past)))  # type: ignore[no-any-return]


@register("synthesizer-dense")
class DenseSynthesizer(Synthesizer):
    """The dense synthesizer (Tay et al. 2020, arXiv 2005.00743, section 3): a token alone gives its logits.

    ``B_t = W_2 relu(W_1 x_t)`` (biases left out), a logit for each head and age; the heads share W_1. All else as
    `Synthesizer`.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        span: tokens of the window, the current one included.
    """

    capability = Capability(
        source="Tay et al. 2020, section 3, dense",
        differs="a logit per age, not per position; the past only",
        parallel="T (n + 128) d",
        step="n d",
        sees="the last {n}",
    )

    def __init__(self, width: int, heads: int, span: int = 20) -> None:
        super().__init__(width, heads, span)
        self.hidden = nn.Linear(width, width)
        self.logit = nn.Linear(width, heads * span)

    def logits(self, x: Tensor) -> Tensor:
        """See `Synthesizer.logits`."""
        logits: Tensor = self.logit(F.relu(self.hidden(x)))
        return logits.view(*x.shape[:2], self.heads, self.span).transpose(1, 2)


@register("synthesizer-random")
class RandomSynthesizer(Synthesizer):
    """The random synthesizer (Tay et al. 2020, arXiv 2005.00743, section 3): logits are parameters, begun at random.

    ``B = R``, the same for every token, a trained number for each head and age. All else as `Synthesizer`.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        span: tokens of the window, the current one included.
    """

    capability = Capability(
        source="Tay et al. 2020, section 3, random",
        differs="a logit per age, not per pair of positions; the past only",
        parallel="T (n + 128) d",
        step="n d",
        sees="the last {n}",
    )

    def __init__(self, width: int, heads: int, span: int = 20) -> None:
        super().__init__(width, heads, span)
        self.logit = nn.Parameter(torch.randn(heads, span))

    def logits(self, x: Tensor) -> Tensor:
        """See `Synthesizer.logits`."""
        return self.logit.unsqueeze(1).expand(-1, x.shape[1], -1)


@register("synthesizer-factorised")
class FactorisedSynthesizer(Synthesizer):
    """The factorised dense synthesizer (Tay et al. 2020, arXiv 2005.00743, section 3): logits are products of two.

    Of a hidden layer ``relu(W_1 x_t)`` one linear layer makes a factors A and another b factors B for each head; A with
    every factor repeated b times, times B tiled a times, are the logits of the ages. The factors are as equal in number
    as can be: a is the root of the span, rounded up, and b the least with ``a b >= span``; where that is more, as for
    a span that is prime, the logits beyond the span are left out. All else as `Synthesizer`.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        span: tokens of the window, the current one included.
    """

    capability = Capability(
        source="Tay et al. 2020, section 3, factorised dense",
        differs="a logit per age, not per position; the past only; any span",
        parallel="T (n + 128) d",
        step="n d",
        sees="the last {n}",
    )

    def __init__(self, width: int, heads: int, span: int = 20) -> None:
        super().__init__(width, heads, span)
        first = math.isqrt(span - 1) + 1
        self.factors = first, -(-span // first)
        self.hidden = nn.Linear(width, width)
        self.factor = nn.Linear(width, heads * sum(self.factors))

    def logits(self, x: Tensor) -> Tensor:
        """See `Synthesizer.logits`."""
        factors: Tensor = self.factor(F.relu(self.hidden(x)))
        a, b = torch.split(
            factors.view(*x.shape[:2], self.heads, sum(self.factors)).transpose(1, 2), list(self.factors), -1
        )
        # From the newest on, so that it is the oldest that are left out.
        return (a.unsqueeze(-1) * b.unsqueeze(-2)).flatten(-2)[..., : self.span].flip(-1)
