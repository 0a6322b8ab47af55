"""Base of attention with a product of features in place of the softmax: a matrix sums up all tokens."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.base.folded_stepper import Affine
from aaren_rl.mixers.base.matrix_memory import MatrixMemory, Places, Terms
from aaren_rl.mixers.base.matrix_recurrence import Shape


class KernelState(NamedTuple):
    """Sums over the tokens of an episode, in float32, or in float64 for float64 inputs.

    Attributes:
        m: logarithm of the largest weight of a token, (batch, heads); -inf before the first token.
        sums: sum over tokens of weight / exp(m) * features of the key * (value, 1), (batch, heads, features,
            head width + 1). The last column is z of the papers, all others are S.
    """

    m: Tensor
    sums: Tensor


class KernelAttention(MatrixMemory):
    """Attention with the kernel ``phi(q) . phi(k)`` in place of ``exp(q . k)``.

    ``o_t = sum_{i<=t} w_ti (phi(q_t) . phi(k_i)) v_i / sum_{i<=t} w_ti (phi(q_t) . phi(k_i))``. Token i enters with a
    weight, and every later token j multiplies it by a decay: ``log w_ti = log_weight_i + sum_{i<j<=t} log_decay_j``.
    All weights are relative to the largest so far, exp(m), as in `aaren_rl.ops.prefix_attention`: none overflows, and
    no later token matters. Memory: constant, a `KernelState`.

    A subclass implements `weigh`: features, weights and decays. It may override `divide`.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        expansion: features per number of a query or key.

    Raises:
        InvalidInput: the width is not a multiple of the heads.
    """

    smallest: ClassVar[float] = 1e-20
    """Smallest denominator. Sums of positive features keep all their digits down to here."""

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        head_width = width // max(heads, 1)
        super().__init__(width, heads, heads, expansion * head_width, head_width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def weigh(self, x: Tensor, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features of queries, features of keys, log-weights and log-decays, as in `Terms`.

        Args:
            x: tokens, (batch, time, width). All arguments are at least float32.
            queries: (batch, heads, time, head width).
            keys: (batch, heads, time, head width).
        """
        raise NotImplementedError

    def divide(self, read: Tensor, m: Tensor) -> Tensor:
        """Attention (batch, heads, time, head width) from numerators and, in the last column, denominators.

        Args:
            read: (batch, heads, time, head width + 1), relative to exp(m).
            m: logarithm of the largest weight of a token so far, (batch, heads, time), finite.
        """
        return read[..., :-1] / read[..., -1:].clamp(min=self.smallest)

    def terms(self, x: Tensor) -> tuple[Terms, Tensor]:
        """See `MatrixMemory.terms`; every value is followed by a 1."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        queries, keys, values = (self._split_heads(part(x)) for part in (self.query, self.key, self.value))
        # Sums over thousands of tokens stay in full precision.
        with torch.autocast(x.device.type, enabled=False):
            queries, keys, log_weight, log_decay = self.weigh(x.to(dtype), queries, keys)
        return Terms(queries, keys, F.pad(values, (0, 1), value=1.0), log_weight, log_decay), x

    def values_and_ones(self) -> Affine:
        """The values as a linear layer of the token, those of each head followed by a 1."""
        weight = self.value.weight.view(self.heads, self.head_width, -1)
        bias = self.value.bias.view(self.heads, self.head_width)
        return F.pad(weight, (0, 0, 0, 1)).flatten(0, 1), F.pad(bias, (0, 1), value=1.0).flatten()

    @property
    def shape(self) -> Shape:
        """Heads, features and columns of the sums."""
        return self.heads, self.features, self.head_width + 1

    def initial_state(self, batch_size: int) -> KernelState:
        """The state without tokens: m = -inf and sums of 0."""
        sums = F.pad(super().initial_state(batch_size), (0, 1))
        return KernelState(torch.full_like(sums[..., 0, 0], -torch.inf), sums)

    def mix_chunk(self, terms: Terms, places: Places, state: KernelState | None) -> tuple[Tensor, KernelState]:
        """See `MatrixMemory.mix_chunk`."""
        decay = terms.log_decay.cumsum(-1)
        # Log-weight of token i (last dimension) at token t: decays of the tokens after i up to t.
        table = decay.unsqueeze(3) + (terms.log_weight - decay).unsqueeze(2)
        table = table.masked_fill(~places.seen.unsqueeze(1), -torch.inf)
        # What is read does not depend on m, or only by the smallest denominator, so it needs no gradient.
        m = table.detach().amax(-1)
        if state is not None:
            before = (state.m.unsqueeze(2) + decay).masked_fill(~places.continues.unsqueeze(1), -torch.inf)
            m = torch.maximum(m, before.detach())
        # Before the first token, all exponentials are exp(-inf).
        finite = m.masked_fill(m == -torch.inf, 0.0)
        weights = torch.exp(table - finite.unsqueeze(3))
        read = (weights * (terms.queries @ terms.keys.mT)) @ terms.values
        sums = (terms.keys * weights[:, :, -1].unsqueeze(3)).mT @ terms.values
        if state is not None:
            kept = torch.exp(before - finite).unsqueeze(3)
            read = read + kept * (terms.queries @ state.sums)
            sums = sums + kept[:, :, -1:] * state.sums
        return self.divide(read, finite), KernelState(m[:, :, -1], sums)

    def mix_token(self, terms: Terms, state: KernelState) -> tuple[Tensor, KernelState]:
        """See `MatrixMemory.mix_token`."""
        before, log_weight = state.m + terms.log_decay.squeeze(2), terms.log_weight.squeeze(2)
        m = torch.maximum(before, log_weight).detach()
        kept, weight = torch.exp(before - m)[..., None, None], torch.exp(log_weight - m)[..., None, None]
        sums = torch.addcmul(terms.keys.mT @ (weight * terms.values), kept, state.sums)
        return self.divide(terms.queries @ sums, m.unsqueeze(2)), KernelState(m, sums)
