"""Mixers with a matrix memory, one token at a time, for torch and NumPy alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from aaren_rl.mixers.base.folded_stepper import Affine, Recurrence

Shape: TypeAlias = tuple[int, int, int]
"""Heads, features and columns of a memory."""

EMPTY = -1e30
"""Finite logarithm of the weight of no token; its exponential is 0 beside any other."""


class Token(NamedTuple):
    """What a token reads and writes; see `matrix_memory.Terms`.

    Attributes:
        query: (batch, heads, features).
        key: (batch, heads, features).
        value: (batch, heads, columns).
        decay: factor of all earlier weights, (batch, heads); its logarithm in a `RelativeRecurrence`. 1.0 for no decay.
        weight: of the token, as the decay.
        beside: what reading out needs besides.
    """

    query: Any
    key: Any
    value: Any
    decay: Any = 1.0
    weight: Any = 1.0
    beside: Any = None


class MatrixRecurrence(Recurrence):
    """``S_t = d_t S_{t-1} + w_t k_t v_t^T`` in each head, of which a token reads ``S_t^T q_t``.

    A subclass implements `token`, and may override `update` and `read_out`. A row of state is S of each head.

    Args:
        shape: heads, features and columns.
        project: see `Recurrence`.
        output: see `Recurrence`.
        constants: see `Recurrence`.
    """

    def __init__(
        self,
        shape: Shape,
        project: Affine,
        output: Affine,
        constants: Mapping[str, Tensor] | None = None,
    ) -> None:
        heads, features, columns = shape
        super().__init__(project, output, project[1].new_zeros(heads * features * columns), constants or {})
        self.heads, self.features, self.columns = shape

    def token(self, xp: Any, constants: Mapping[str, Any], rows: Any) -> Token:
        """Terms of tokens from what they contribute, (batch, columns)."""
        raise NotImplementedError

    def update(self, xp: Any, constants: Mapping[str, Any], token: Token, memory: Any) -> Any:
        """The memory after a token, (batch, heads, features, columns)."""
        return _spread(token.decay) * memory + outer(token.key, _last(token.weight) * token.value)

    def read_out(self, xp: Any, read: Any, beside: Any) -> Any:
        """What the output projects, (batch, any), from what the heads read, (batch, heads, columns)."""
        return read.reshape(-1, self.heads * read.shape[-1])

    def mix(self, xp: Any, constants: Mapping[str, Any], rows: Any, state: Any) -> tuple[Any, Any]:
        """See `Recurrence.mix`."""
        token = self.token(xp, constants, rows)
        memory = state.reshape(-1, self.heads, self.features, self.columns)
        memory = self.update(xp, constants, token, memory)
        return self.read_out(xp, answer(token.query, memory), token.beside), memory.reshape(state.shape)

    def per_head(self, x: Any) -> Any:
        """(batch, heads * size) to (batch, heads, size)."""
        return x.reshape(-1, self.heads, x.shape[1] // self.heads)


class RelativeRecurrence(MatrixRecurrence):
    """A `MatrixRecurrence` whose weights are relative to the largest so far, exp(m), as in `KernelAttention`.

    Weight and decay of a `Token` are logarithms. A row of state is S of each head, then m of each head, -1e30 for no
    token. A subclass implements `divide` too.
    """

    def __init__(
        self,
        shape: Shape,
        project: Affine,
        output: Affine,
        constants: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(shape, project, output, constants)
        self.start = torch.cat([self.start, torch.full_like(self.start[: self.heads], EMPTY)])

    def divide(self, xp: Any, read: Any, m: Any) -> Any:
        """See `KernelAttention.divide`; (batch, heads, columns) and (batch, heads, 1)."""
        raise NotImplementedError

    def mix(self, xp: Any, constants: Mapping[str, Any], rows: Any, state: Any) -> tuple[Any, Any]:
        """See `Recurrence.mix`."""
        token = self.token(xp, constants, rows)
        before = state[:, -self.heads :] + token.decay
        m = xp.maximum(before, token.weight)
        relative = token._replace(decay=xp.exp(before - m), weight=xp.exp(token.weight - m))
        memory = state[:, : -self.heads].reshape(-1, self.heads, self.features, self.columns)
        memory = self.update(xp, constants, relative, memory)
        mixed = self.divide(xp, answer(token.query, memory), m[..., None])
        after = xp.concatenate([memory.reshape(-1, state.shape[1] - self.heads), m], -1)
        return self.read_out(xp, mixed, token.beside), after


def outer(key: Any, value: Any) -> Any:
    """Products of all features and columns, (batch, heads, features, columns)."""
    return key[..., :, None] * value[..., None, :]


def answer(query: Any, memory: Any) -> Any:
    """What the memory answers to a query, (batch, heads, columns)."""
    return (query[..., None, :] @ memory)[..., 0, :]


def _last(x: Any) -> Any:
    """(batch, heads) to (batch, heads, 1); a number stays."""
    return x if isinstance(x, float) else x[..., None]


def _spread(x: Any) -> Any:
    """(batch, heads) to (batch, heads, 1, 1); a number stays."""
    return x if isinstance(x, float) else x[..., None, None]
