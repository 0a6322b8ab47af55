"""Linear attention with the gated delta rule: a token corrects what the memory answers to its key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.folded_stepper import Library, affine, join, split
from aaren_rl.mixers.base.gates import GatedNorm, forget_bias, gated_norm
from aaren_rl.mixers.base.matrix_memory import MatrixMemory, Places, Terms, weigh
from aaren_rl.mixers.base.matrix_recurrence import MatrixRecurrence, Token, answer
from aaren_rl.mixers.base.registry import register

SHORTEST = 1e-6
"""Length below which queries and keys are not stretched to unit length."""


@register("gated-deltanet")
class GatedDeltaNet(MatrixMemory):
    """Gated DeltaNet (Yang et al. 2024, "Gated Delta Networks", arXiv 2412.06464, section 3.1).

    ``S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T``, ``o_t = S_t^T q_t``: the memory fades, and then what it
    answers to the key moves towards the value. Queries and keys have unit length. The output is ``W (silu(G x) *
    norm(o))`` with a root mean square norm of each head (section 3.4). A chunk solves one triangular system for the
    corrections ``u_t = b_t (v_t - a_t S_{t-1}^T k_t)``, the WY form (section 3.3)::

        u_t + b_t sum_{i<t} a_{i+1} ... a_t (k_i . k_t) u_i = b_t (v_t - a_1 ... a_t S_0^T k_t)

    The differences:

    - b is ``2 sigmoid(w . x)``, from 0 to 2 in place of 0 to 1, so that eigenvalues may be negative and states be
      tracked (Grazzi et al. 2024, arXiv 2411.12537, section 4);
    - a is ``sigmoid(w . x + bias)``, where the source takes Mamba-2's. The bias is such that heads keep 1/e for 32 to
      1,024 tokens at first;
    - queries, keys and values are linear in the token: the convolution is the option conv, and its silu is left out.

    Memory: constant, S, h x h numbers for a head of width h.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
    """

    capability = Capability(
        source="Yang et al. 2024 (arXiv 2412.06464), section 3",
        differs="negative eigenvalues; decay by a sigmoid; without the convolution, which is the option conv",
        parallel="T (h + 64) d; chunks of 64 tokens in sequence",
        step="h d",
    )
    forget_bias: Tensor

    def __init__(self, width: int, heads: int) -> None:
        head_width = width // max(heads, 1)
        super().__init__(width, heads, heads, head_width, head_width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.write = nn.Linear(width, heads)
        self.forget = nn.Linear(width, heads)
        self.register_buffer("forget_bias", forget_bias(heads))
        self.norm = GatedNorm(width, heads, head_width)

    def terms(self, x: Tensor) -> tuple[Terms, Tensor]:
        """See `MatrixMemory.terms`; the weight is b."""
        queries, keys, values = (self._split_heads(part(x)) for part in (self.query, self.key, self.value))
        queries, keys = (F.normalize(part, dim=-1, eps=SHORTEST) for part in (queries, keys))
        log_weight = F.logsigmoid(self.write(x).to(values.dtype)) + math.log(2.0)
        log_decay = F.logsigmoid(self.forget(x).to(values.dtype) + self.forget_bias)
        return Terms(queries, keys, values, log_weight.transpose(1, 2), log_decay.transpose(1, 2)), x

    def mix_chunk(self, terms: Terms, places: Places, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `MatrixMemory.mix_chunk`; the corrections of all tokens solve one triangular system."""
        left, kept = weigh(terms.log_decay, places)
        weight = terms.log_weight.exp().unsqueeze(3)
        wanted = terms.values
        if state is not None:
            wanted = wanted - kept * (terms.keys @ state)
        answers = weight * left * (terms.keys @ terms.keys.mT)  # (batch, heads, time, time); the diagonal is not read
        corrections = torch.linalg.solve_triangular(answers, weight * wanted, upper=False, unitriangular=True)
        read = (left * (terms.queries @ terms.keys.mT)) @ corrections
        memory = (terms.keys * left[:, :, -1].unsqueeze(3)).mT @ corrections
        if state is not None:
            read = read + kept * (terms.queries @ state)
            memory = memory + kept[:, :, -1:] * state
        return read, memory

    def mix_token(self, terms: Terms, state: Tensor) -> tuple[Tensor, Tensor]:
        """See `MatrixMemory.mix_token`."""
        faded = terms.log_decay.exp().unsqueeze(3) * state
        correction = terms.log_weight.exp().unsqueeze(3) * (terms.values - terms.keys @ faded)
        memory = faded + terms.keys.mT @ correction
        return terms.queries @ memory, memory

    def read_out(self, read: Tensor, beside: Tensor) -> Tensor:
        """See `MatrixMemory.read_out`."""
        return super().read_out(self.norm(read, beside), beside)

    def recurrence(self) -> MatrixRecurrence:
        """See `MatrixMemory.recurrence`."""
        gates = affine(self.write), affine(self.forget, self.forget_bias), affine(self.norm.gate)
        project = join(affine(self.query), affine(self.key), affine(self.value), *gates)
        return _Recurrence(self.shape, project, self.norm.folded_into(self.output))


class _Recurrence(MatrixRecurrence):
    def token(self, library: Library, constants: Mapping[str, Any], rows: Any, beside: Any) -> tuple[Token, Any]:
        """See `MatrixRecurrence.token`; what reading out needs besides is (b, gate)."""
        width = self.heads * self.features
        query_and_key, value, gates, gate = split(rows, [2 * width, width, 2 * self.heads, width])
        unit = _normalise(library, self.pair_per_head(query_and_key))
        shares = library.sigmoid(gates)[..., None]
        weight, decay = 2 * shares[:, : self.heads], shares[:, self.heads :, None]
        return Token(unit[:, 0], unit[:, 1], self.per_head(value), decay, (weight, self.per_head(gate))), beside

    def correct(self, token: Token, memory: Any) -> Any:
        """See `MatrixRecurrence.correct`."""
        return token.beside[0] * (token.value - token.decay[..., 0] * answer(token.key, memory))

    def read_out(self, library: Library, read: Any, beside: Any) -> Any:
        """See `MatrixRecurrence.read_out`."""
        return super().read_out(library, gated_norm(library, read, beside[1]), None)


def _normalise(library: Library, x: Any) -> Any:
    """Vectors of unit length, as `F.normalize` makes them."""
    return x / library.at_least(library.sqrt(library.total(x * x)), SHORTEST)
