"""Attention whose weights do not compare tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.registry import register
from aaren_rl.mixers.base.sliding_window import SlidingWindow


class Synthesizer(SlidingWindow):
    """Synthetic attention (Tay et al. 2020, "Synthesizer: Rethinking Self-Attention for Transformer Models", arXiv
    2005.00743), causal.

    ``o_t = sum_a softmax_a(B_t)_a W_v x_{t-a}`` over the ages a < span that the episode has; no logit B compares two
    tokens. The source has one logit per position; here it is one per distance into the past: an agent trained on 20
    steps acts for 1,000, and most positions would never have been trained. Memory: window, values of `span - 1` tokens.

    A subclass implements `logits`.

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
        """Logits of tokens (batch, time, width), one for each position of the window, the newest last.

        Returns:
            (batch, heads, time, span), or a shape that broadcasts to it.
        """
        raise NotImplementedError

    def remember(self, x: Tensor) -> Tensor:
        """See `SlidingWindow.remember`; an entry is a value."""
        return self.value(x)  # type: ignore[no-any-return]

    def mix(self, x: Tensor, past: Tensor, seen: Tensor) -> Tensor:
        """See `SlidingWindow.mix`."""
        logits = self.along_past(self.logits(x))
        weights = logits.masked_fill(~seen.unsqueeze(1), -torch.inf).softmax(-1)
        return self.output(self._join_heads(weights @ self._split_heads(past)))  # type: ignore[no-any-return]


@register("synthesizer-dense")
class DenseSynthesizer(Synthesizer):
    """The dense synthesizer (Tay et al. 2020, arXiv 2005.00743, section 3): logits are a function of one token.

    A `Synthesizer` with ``B_t = W_2 relu(W_1 x_t)`` (biases left out), a logit for each head and age. Heads share W_1.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        span: tokens of the window, the current one included.
    """

    capability = Capability(
        source="Tay et al. 2020, section 3, dense",
        differs="a logit per age, not per position; past tokens only",
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
    """The random synthesizer (Tay et al. 2020, arXiv 2005.00743, section 3): logits are parameters, random at first.

    A `Synthesizer` with ``B = R``, a trained number for each head and age, the same for every token.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        span: tokens of the window, the current one included.
    """

    capability = Capability(
        source="Tay et al. 2020, section 3, random",
        differs="a logit per age, not per pair of positions; past tokens only",
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
    """The factorised dense synthesizer (Tay et al. 2020, arXiv 2005.00743, section 3): logits are products of factors.

    A `Synthesizer` whose hidden layer ``relu(W_1 x_t)`` gives each head a factors A and b factors B. The logit of age
    ``i b + j`` is ``A_i B_j``: A with every factor repeated b times, times B tiled a times. Here a is the root of the
    span, rounded up, and b the least number with ``a b >= span``. Logits beyond the span are dropped.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        span: tokens of the window, the current one included.
    """

    capability = Capability(
        source="Tay et al. 2020, section 3, factorised dense",
        differs="a logit per age, not per position; past tokens only; any span",
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
        # By age, so that the oldest are dropped; then reversed, the newest last.
        return (a.unsqueeze(-1) * b.unsqueeze(-2)).flatten(-2)[..., : self.span].flip(-1)
