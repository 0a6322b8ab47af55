"""Base of mixers whose state is a matrix per head, to which every token adds an outer product."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aaren_rl.mixers.base.contract import Mixer
from aaren_rl.mixers.base.folded_stepper import FoldedStepper, Recurrence
from aaren_rl.mixers.base.matrix_recurrence import Shape
from aaren_rl.mixers.base.stepper import Stepper

CHUNK = 64
"""Tokens between which all products are written out. The state goes from chunk to chunk: cost is linear in length."""


class Terms(NamedTuple):
    """What tokens read and write, in float32 or float64.

    Attributes:
        queries: features with which a token reads, (batch, heads, time, features).
        keys: features with which it writes, (batch, heads, time, features).
        values: what it writes, (batch, heads, time, columns).
        log_weight: logarithm of the weight with which it writes, (batch, heads, time).
        log_decay: logarithm of the factor by which it multiplies all earlier weights, (batch, heads, time).
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    log_weight: Tensor
    log_decay: Tensor


class Places(NamedTuple):
    """How the tokens of a chunk relate.

    Attributes:
        seen: True where the second token is in the episode of the first and not after it, (batch, time, time).
        continues: True for tokens in the episode of the state before the chunk, (batch, time).
        valid: False for padding, (batch, time).
    """

    seen: Tensor
    continues: Tensor
    valid: Tensor


class MatrixMemory(Mixer):
    """Each head carries a matrix, a fast weight memory that keys address: ``S_t = d_t S_{t-1} + w_t k_t v_t^T``.

    A token reads ``o_t = S_t^T q_t``. So token i counts at token t with ``log_weight_i`` and all ``log_decay`` of the
    tokens after i up to t. A chunk of tokens is computed as attention with these weights, and S goes from chunk to
    chunk. Memory: constant, S.

    A subclass implements `terms`. It may override `read_out`, and, for another recurrence, `mix_chunk` and `mix_token`.
    If it implements `recurrence`, it is folded for acting.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        memories: number of matrices. All else here calls them heads.
        features: numbers of a key.
        columns: numbers of a value.

    Raises:
        InvalidInput: the width is not a multiple of the heads.
    """

    memory = "constant"

    def __init__(self, width: int, heads: int, memories: int, features: int, columns: int) -> None:
        super().__init__(width, heads)
        self.memories, self.features, self.columns = memories, features, columns
        self.output = nn.Linear(memories * columns, width)

    def terms(self, x: Tensor) -> tuple[Terms, Tensor]:
        """Terms of tokens (batch, time, width), and what `read_out` needs besides: by default the tokens."""
        raise NotImplementedError

    def read_out(self, read: Tensor, beside: Tensor) -> Tensor:
        """Outputs from what the heads read.

        Args:
            read: (batch, heads, time, columns).
            beside: as returned by `terms`, (batch, time, any).

        Returns:
            (batch, time, width), in the dtype of `beside`.
        """
        return self.output(self._join_heads(read).to(beside.dtype))  # type: ignore[no-any-return]

    @property
    def shape(self) -> Shape:
        """Heads, features and columns of the memory."""
        return self.memories, self.features, self.columns

    def recurrence(self) -> Recurrence | None:
        """The mixer folded for one token; None if it has no such form."""
        return None

    def stepper(self, norm: nn.LayerNorm, tokens: int, outputs: int) -> Stepper:
        """See `Mixer.stepper`."""
        recurrence = self.recurrence()
        if recurrence is None:
            return super().stepper(norm, tokens, outputs)
        return FoldedStepper(recurrence, tokens, outputs)

    def _split_heads(self, x: Tensor) -> Tensor:
        """(batch, time, heads * size) to (batch, heads, time, size), in float32 at least."""
        parts = x.reshape(*x.shape[:-1], self.memories, -1).transpose(1, 2)
        return parts.to(torch.promote_types(x.dtype, torch.float32))

    def initial_state(self, batch_size: int) -> Any:
        """Zeros, (batch, heads, features, columns)."""
        like = self.output.weight
        dtype = torch.promote_types(like.dtype, torch.float32)
        return like.new_zeros(batch_size, self.memories, self.features, self.columns, dtype=dtype)

    def forward(
        self, x: Tensor, state: Any = None, reset: Tensor | None = None, valid: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """See `Mixer.forward`."""
        if valid is not None:
            x = x.masked_fill(~valid.unsqueeze(-1), 0.0)
        terms, beside = self.terms(x)
        if valid is not None:
            # A padded token leaves the memory as it is.
            padding = ~valid.unsqueeze(1)
            terms = terms._replace(
                log_weight=terms.log_weight.masked_fill(padding, -torch.inf),
                log_decay=terms.log_decay.masked_fill(padding, 0.0),
            )
        else:
            valid = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        episode = torch.zeros(x.shape[:2], dtype=torch.long, device=x.device) if reset is None else reset.cumsum(1)
        # Episode of the state.
        reached = torch.zeros_like(episode[:, :1])
        reads = []
        with torch.autocast(x.device.type, enabled=False):
            for start in range(0, x.shape[1], CHUNK):
                here = slice(start, start + CHUNK)
                number = episode[:, here]
                seen = (number.unsqueeze(2) == number.unsqueeze(1)).tril()
                places = Places(seen, number == reached, valid[:, here])
                read, state = self.mix_chunk(Terms(*(part[:, :, here] for part in terms)), places, state)
                reached = number[:, -1:]
                reads.append(read)
        return self.read_out(torch.cat(reads, 2), beside), state

    def mix_chunk(self, terms: Terms, places: Places, state: Any) -> tuple[Tensor, Any]:
        """Mixes the tokens of a chunk, with all products between them written out.

        Args:
            terms: of the tokens of a chunk.
            places: how they relate.
            state: state before the chunk; None for the initial state.

        Returns:
            What the heads read, (batch, heads, time, columns), and the state after the chunk.
        """
        weights, kept = weigh(terms.log_decay, places)
        weights = weights * terms.log_weight.exp().unsqueeze(2)
        read = (weights * (terms.queries @ terms.keys.mT)) @ terms.values
        memory = (terms.keys * weights[:, :, -1].unsqueeze(3)).mT @ terms.values
        if state is not None:
            read = read + kept * (terms.queries @ state)
            memory = memory + kept[:, :, -1:] * state
        return read, memory

    def step(self, x_t: Tensor, state: Any) -> tuple[Tensor, Any]:
        """See `Mixer.step`; writes to the memory and reads it once."""
        terms, beside = self.terms(x_t.unsqueeze(1))
        with torch.autocast(x_t.device.type, enabled=False):
            read, state = self.mix_token(terms, state)
        return self.read_out(read, beside).squeeze(1), state

    def mix_token(self, terms: Terms, state: Any) -> tuple[Tensor, Any]:
        """As `mix_chunk` for a chunk of one token of the same episode."""
        added = terms.keys.mT @ (terms.log_weight.exp().unsqueeze(3) * terms.values)
        memory = torch.addcmul(added, terms.log_decay.exp().unsqueeze(3), state)
        return terms.queries @ memory, memory


def weigh(log_decay: Tensor, places: Places) -> tuple[Tensor, Tensor]:
    """What decays leave of earlier tokens, and of the state before a chunk.

    Args:
        log_decay: as in `Terms`.
        places: of the tokens of the chunk.

    Returns:
        What token t leaves of token i, (batch, heads, time, time), and of the state, (batch, heads, time, 1).
    """
    decay = log_decay.cumsum(-1)
    # The decays of the tokens after i up to t.
    table = decay.unsqueeze(3) - decay.unsqueeze(2)
    left = torch.exp(table.masked_fill(~places.seen.unsqueeze(1), -torch.inf))
    return left, torch.exp(decay.masked_fill(~places.continues.unsqueeze(1), -torch.inf)).unsqueeze(3)
