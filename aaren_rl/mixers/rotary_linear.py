"""Linear attention whose memory turns and fades with every token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.folded_stepper import Library, affine, join, split
from aaren_rl.mixers.base.gates import GatedNorm, forget_bias, gated_norm, spread
from aaren_rl.mixers.base.matrix_memory import CHUNK, MatrixMemory, Places, Terms
from aaren_rl.mixers.base.matrix_recurrence import MatrixRecurrence, Token
from aaren_rl.mixers.base.registry import register
from aaren_rl.ops.rotation import phases, rotate

LONGEST_PERIOD, SHORTEST_PERIOD = 256.0, 2.0
"""Tokens of a full turn at first, of the slowest and of the fastest pair of features."""


@register("rotary-linear")
class RotaryLinear(MatrixMemory):
    """Linear attention with rotary embeddings and a forget gate. The composition is ours.

    ``S_t = f_t R S_{t-1} + k_t v_t^T`` and ``o_t = S_t^T q_t`` in each head. R turns every pair of features by an
    angle. So token i counts at token t by ``q_t . R^(t - i) k_i``, the product of rotated queries and keys of Su et al.
    2021 ("RoFormer", arXiv 2104.09864, section 3.2). The head keeps ``f_t = sigmoid(w . x_t + b)`` of its memory. Then
    ``y_t = W (silu(G x_t) * norm(o_t))``, as in RetNet (Sun et al. 2023, arXiv 2307.08621, section 2.2).

    From RetNet it differs in that

    - angles are learned, with periods log-spaced from 2 to 256 tokens over the pairs of a head;
    - decays depend on the token, as in Mamba-2; b is such that heads keep 1/e for 32 to 1,024 tokens at first;
    - queries and keys have a learned offset, 1 in the first of each pair at first. It makes weights depend on the age
      alone, which no product with a token can;
    - the norm is a root mean square.

    The memory turns before a token is added, so it is always in the frame of the current token and nothing counts
    tokens. Within a chunk, angles are relative to its start and keep their digits. Memory: constant, S, h x h
    numbers for a head of width h, if h is even.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
    """

    capability = Capability(
        source="ours; Su et al. 2021, section 3.2; Sun et al. 2023, section 2.2",
        differs="learned angles, a forget gate of the token, offsets of queries and keys",
        parallel="T (h + 64) d; chunks of 64 tokens in sequence",
        step="h d",
    )
    forget_bias: Tensor

    def __init__(self, width: int, heads: int) -> None:
        pairs = math.ceil(width / max(heads, 1) / 2)
        super().__init__(width, heads, heads, 2 * pairs, width // max(heads, 1))
        self.query = nn.Linear(width, heads * 2 * pairs)
        self.key = nn.Linear(width, heads * 2 * pairs)
        self.value = nn.Linear(width, width)
        self.forget = nn.Linear(width, heads)
        self.register_buffer("forget_bias", forget_bias(heads))
        self.norm = GatedNorm(width, heads, self.head_width)
        # Offsets of linear layers would start at 0, where neither has a gradient from the other.
        offset = torch.tensor([1.0, 0.0]).repeat(heads, 1, pairs)
        self.query_offset, self.key_offset = nn.Parameter(offset.clone()), nn.Parameter(offset.clone())
        periods = spread(LONGEST_PERIOD, SHORTEST_PERIOD, pairs)
        self.log_frequency = nn.Parameter((2 * math.pi / periods).log().repeat(heads, 1))

    @property
    def frequencies(self) -> Tensor:
        """Angle by which a pair of features turns per token, in radians, (heads, pairs)."""
        # A faster turn looks like a slower one.
        return self.log_frequency.clamp(max=math.log(2 * math.pi)).exp()

    def terms(self, x: Tensor) -> tuple[Terms, Tensor]:
        """See `MatrixMemory.terms`."""
        queries, keys, values = (self._split_heads(part(x)) for part in (self.query, self.key, self.value))
        log_decay = F.logsigmoid(self.forget(x).to(values.dtype) + self.forget_bias).transpose(1, 2)
        queries, keys = queries + self.query_offset, keys + self.key_offset
        return Terms(queries, keys, values, torch.zeros_like(log_decay), log_decay), x

    def mix_chunk(self, terms: Terms, places: Places, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `MatrixMemory.mix_chunk`."""
        # Tokens since the chunk began, this one included; padding turns nothing.
        place = places.valid.cumsum(-1)
        phase = phases(self.frequencies, CHUNK)[place].transpose(1, 2)  # (batch, heads, time, pairs)
        queries, keys = (rotate(part, phase.conj()) for part in (terms.queries, terms.keys))
        read, memory = super().mix_chunk(terms._replace(queries=queries, keys=keys), places, state)
        return read, rotate(memory.mT, phase[:, :, -1:]).mT

    def mix_token(self, terms: Terms, state: Tensor) -> tuple[Tensor, Tensor]:
        """See `MatrixMemory.mix_token`."""
        turned = rotate(state.mT, phases(self.frequencies, 1)[1].unsqueeze(1)).mT
        return super().mix_token(terms, turned)

    def read_out(self, read: Tensor, beside: Tensor) -> Tensor:
        """See `MatrixMemory.read_out`."""
        return super().read_out(self.norm(read, beside), beside)

    def recurrence(self) -> MatrixRecurrence:
        """See `MatrixMemory.recurrence`."""
        queries = affine(self.query, self.query_offset.flatten())
        keys = affine(self.key, self.key_offset.flatten())
        project = join(queries, keys, affine(self.value), affine(self.forget, self.forget_bias), affine(self.norm.gate))
        angles = self.frequencies.double().flatten()
        constants = {"turn": torch.stack([angles.cos(), -angles.sin()], -1).flatten()}
        beside = torch.tensor([1.0, 0.0]).repeat(len(angles)).to(project[1])
        return _Recurrence(self.shape, project, self.norm.folded_into(self.output), constants, beside)


class _Recurrence(MatrixRecurrence):
    """Turns queries and keys back in place of turning the memory, which is far larger.

    The state has the unit complex number by which each pair of a token is turned back. It is brought back to unit
    length at every token, so it counts nothing and drifts nowhere.
    """

    def token(self, library: Library, constants: Mapping[str, Any], rows: Any, beside: Any) -> tuple[Token, Any]:
        """See `MatrixRecurrence.token`."""
        keys, values = self.heads * self.features, self.heads * self.columns
        query_and_key, value, forget, gate = split(rows, [2 * keys, values, self.heads, values])
        phase = library.unit(library.times(beside, constants["turn"]))  # (batch, heads * features)
        both = library.times(self.pair_per_head(query_and_key), self.per_head(phase)[:, None])
        decay = library.sigmoid(forget)[..., None, None]
        return Token(both[:, 0], both[:, 1], self.per_head(value), decay, self.per_head(gate)), phase

    def read_out(self, library: Library, read: Any, beside: Any) -> Any:
        """See `MatrixRecurrence.read_out`."""
        return super().read_out(library, gated_norm(library, read, beside), beside)
