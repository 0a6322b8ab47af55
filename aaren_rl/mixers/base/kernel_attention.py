"""Base of attention with a product of features in place of the softmax: a matrix sums up all tokens."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.base.contract import Mixer

CHUNK = 64
"""Tokens between which all products are written out. The state goes from chunk to chunk: cost is linear in length."""


class KernelState(NamedTuple):
    """Sums over the tokens of an episode, in float32, or in float64 for float64 inputs.

    Attributes:
        m: logarithm of the largest weight of a token, (batch, heads); -inf before the first token.
        sums: sum over tokens of weight / exp(m) * features of the key * (value, 1), (batch, heads, features,
            head width + 1). The last column is z of the papers, all others are S.
    """

    m: Tensor
    sums: Tensor


class Terms(NamedTuple):
    """Features, values and weights of tokens.

    Attributes:
        queries: features of the queries, (batch, heads, time, features).
        keys: features of the keys, (batch, heads, time, features).
        values: values, each followed by a 1, (batch, heads, time, head width + 1).
        log_weight: logarithm of the weight with which a token enters the sums, (batch, heads, time).
        log_decay: logarithm of the factor by which a token multiplies all earlier weights, (batch, heads, time).
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    log_weight: Tensor
    log_decay: Tensor


class KernelAttention(Mixer):
    """Attention with the kernel ``phi(q) . phi(k)`` in place of ``exp(q . k)``.

    ``o_t = sum_{i<=t} w_ti (phi(q_t) . phi(k_i)) v_i / sum_{i<=t} w_ti (phi(q_t) . phi(k_i))``. Token i enters with a
    weight, and every later token j multiplies it by a decay: ``log w_ti = log_weight_i + sum_{i<j<=t} log_decay_j``.
    All weights are relative to the largest so far, exp(m), as in `aaren_rl.ops.prefix_attention`: none overflows, and
    no later token matters. Memory: constant, a `KernelState`.

    A subclass implements `weigh`: features, weights and decays.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        expansion: features per number of a query or key.

    Raises:
        InvalidInput: the width is not a multiple of the heads.
    """

    memory = "constant"
    smallest: ClassVar[float] = 1e-20
    """Smallest denominator. Sums of positive features keep all their digits down to here."""

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        super().__init__(width, heads)
        self.features = expansion * self.head_width
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def weigh(self, x: Tensor, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features of queries, features of keys, log-weights and log-decays, as in `Terms`.

        Args:
            x: tokens, (batch, time, width). All arguments are at least float32.
            queries: (batch, heads, time, head width).
            keys: (batch, heads, time, head width).
        """
        raise NotImplementedError

    def initial_state(self, batch_size: int) -> KernelState:
        """The state without tokens: m = -inf and sums of 0."""
        like = self.output.weight
        sums = torch.zeros(
            (batch_size, self.heads, self.features, self.head_width + 1),
            dtype=torch.promote_types(like.dtype, torch.float32),
            device=like.device,
        )
        return KernelState(torch.full_like(sums[..., 0, 0], -torch.inf), sums)

    def forward(
        self, x: Tensor, state: KernelState | None = None, reset: Tensor | None = None, valid: Tensor | None = None
    ) -> tuple[Tensor, KernelState]:
        """See `Mixer.forward`; the state is a `KernelState`."""
        if valid is not None:
            x = x.masked_fill(~valid.unsqueeze(-1), 0.0)
        terms = self._terms(x)
        if valid is not None:
            # A padded token leaves the sums as they are.
            padding = ~valid.unsqueeze(1)
            terms = terms._replace(
                log_weight=terms.log_weight.masked_fill(padding, -torch.inf),
                log_decay=terms.log_decay.masked_fill(padding, 0.0),
            )
        episode = torch.zeros(x.shape[:2], dtype=torch.long, device=x.device) if reset is None else reset.cumsum(1)
        # Episode of the state.
        reached = torch.zeros_like(episode[:, :1])
        reads = []
        with torch.autocast(x.device.type, enabled=False):
            for start in range(0, x.shape[1], CHUNK):
                number = episode[:, start : start + CHUNK]
                chunk = Terms(*(part[:, :, start : start + CHUNK] for part in terms))
                read, state = _mix_chunk(chunk, number, state, number == reached)
                reached = number[:, -1:]
                reads.append(read)
        assert state is not None
        return self._divide(torch.cat(reads, 2), x), state

    def step(self, x_t: Tensor, state: KernelState) -> tuple[Tensor, KernelState]:
        """See `Mixer.step`; updates the sums and reads them once."""
        terms = self._terms(x_t.unsqueeze(1))
        with torch.autocast(x_t.device.type, enabled=False):
            before = state.m + terms.log_decay.squeeze(2)
            log_weight = terms.log_weight.squeeze(2)
            # Only the smallest denominator depends on m, so it needs no gradient.
            m = torch.maximum(before, log_weight).detach()
            kept, weight = torch.exp(before - m), torch.exp(log_weight - m)
            added = terms.keys.transpose(2, 3) * (weight[..., None, None] * terms.values)
            sums = torch.addcmul(added, kept[..., None, None], state.sums)
            read = terms.queries @ sums
        return self._divide(read, x_t.unsqueeze(1)).squeeze(1), KernelState(m, sums)

    def _terms(self, x: Tensor) -> Terms:
        """Terms of tokens (batch, time, width), in float32 at least."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        queries, keys, values = (self._split_heads(part(x)).to(dtype) for part in (self.query, self.key, self.value))
        # Sums over thousands of tokens stay in full precision.
        with torch.autocast(x.device.type, enabled=False):
            queries, keys, log_weight, log_decay = self.weigh(x.to(dtype), queries, keys)
        return Terms(queries, keys, F.pad(values, (0, 1), value=1.0), log_weight, log_decay)

    def _divide(self, read: Tensor, x: Tensor) -> Tensor:
        """Outputs from numerators and denominators, (batch, heads, time, head width + 1), in the dtype of x."""
        mixed = read[..., :-1] / read[..., -1:].clamp(min=self.smallest)
        return self.output(self._join_heads(mixed).to(x.dtype))  # type: ignore[no-any-return]


def _mix_chunk(
    terms: Terms, episode: Tensor, state: KernelState | None, continues: Tensor
) -> tuple[Tensor, KernelState]:
    """Mixes a chunk of tokens, with all products between them written out.

    Args:
        terms: terms of the tokens.
        episode: episode number of each token, (batch, time).
        state: state before the chunk; None for the initial state.
        continues: (batch, time) bool, True for tokens in the episode of the state.

    Returns:
        Numerators and denominators (batch, heads, time, head width + 1), and the state after the chunk.
    """
    time = episode.shape[1]
    earlier = torch.ones(time, time, dtype=torch.bool, device=episode.device).tril()
    seen = earlier & (episode.unsqueeze(2) == episode.unsqueeze(1))
    decay = terms.log_decay.cumsum(-1)
    # Log-weight of token i (last dimension) at token t: decays of the tokens after i up to t.
    table = decay.unsqueeze(3) + (terms.log_weight - decay).unsqueeze(2)
    table = table.masked_fill(~seen.unsqueeze(1), -torch.inf)
    m = table.detach().amax(-1)
    if state is not None:
        before = (state.m.unsqueeze(2) + decay).masked_fill(~continues.unsqueeze(1), -torch.inf)
        m = torch.maximum(m, before.detach())
    # Before the first token, all exponentials are exp(-inf).
    finite = m.masked_fill(m == -torch.inf, 0.0)
    weights = torch.exp(table - finite.unsqueeze(3))
    read = (weights * (terms.queries @ terms.keys.transpose(2, 3))) @ terms.values
    sums = (terms.keys * weights[:, :, -1].unsqueeze(3)).transpose(2, 3) @ terms.values
    if state is not None:
        kept = torch.exp(before - finite)
        read = read + kept.unsqueeze(3) * (terms.queries @ state.sums)
        sums = sums + kept[:, :, -1, None, None] * state.sums
    return read, KernelState(m[:, :, -1], sums)
