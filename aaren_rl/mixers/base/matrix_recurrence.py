"""Mixers with a matrix memory, one token at a time, for torch and NumPy alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from aaren_rl.mixers.base.folded_stepper import Affine, Library, Recurrence
from aaren_rl.mixers.base.stepper import EMPTY

Shape: TypeAlias = tuple[int, int, int]
"""Heads, features and columns of a memory."""


class Token(NamedTuple):
    """What a token reads and writes; see `matrix_memory.Terms`.

    Attributes:
        query: (batch, heads, features).
        key: (batch, heads, features).
        value: (batch, heads, columns), times the weight of the token.
        decay: factor of all earlier weights, (batch, heads, 1, 1 or columns); None for no decay.
        beside: what reading out needs besides.
    """

    query: Any
    key: Any
    value: Any
    decay: Any = None
    beside: Any = None


class MatrixRecurrence(Recurrence):
    """``S_t = d_t S_{t-1} + k_t v_t^T`` in each head, of which a token reads ``S_t^T q_t``.

    Every token reads all of S twice and writes it. With one head of width 128 S has 16,384 numbers, 131 kB in float64,
    where the state of Aaren has 1 kB.

    A subclass implements `token`, and may override `correct` and `read_out`. A row of state is S of each head, then
    what a subclass adds.

    Args:
        shape: heads, features and columns.
        project: see `Recurrence`.
        output: see `Recurrence`.
        constants: see `Recurrence`.
        beside: further numbers of a row of state before the first token, (any,).
    """

    def __init__(
        self,
        shape: Shape,
        project: Affine,
        output: Affine,
        constants: Mapping[str, Tensor] | None = None,
        beside: Tensor | None = None,
    ) -> None:
        self.heads, self.features, self.columns = shape
        self.size = self.heads * self.features * self.columns
        start = project[1].new_zeros(self.size)
        super().__init__(project, output, start if beside is None else torch.cat([start, beside]), constants or {})

    def token(self, library: Library, constants: Mapping[str, Any], rows: Any, beside: Any) -> tuple[Token, Any]:
        """Terms of a token, and the further numbers of state after it.

        Args:
            library: of all arrays.
            constants: see `Recurrence.mix`.
            rows: see `Recurrence.mix`.
            beside: further numbers of the rows of state, (batch, any).
        """
        raise NotImplementedError

    def correct(self, token: Token, memory: Any) -> Any:
        """What the token writes in place of its value, given the memory before it."""
        return token.value

    def read_out(self, library: Library, read: Any, beside: Any) -> Any:
        """What the output projects, (batch, any), from what the heads read, (batch, heads, columns)."""
        return read.reshape(-1, self.heads * read.shape[-1])

    def mix(
        self, library: Library, constants: Mapping[str, Any], rows: Any, state: Any, out: Any = None
    ) -> tuple[Any, Any]:
        """See `Recurrence.mix`."""
        token, beside = self.token(library, constants, rows, state[:, self.size :])
        shape = (-1, self.heads, self.features, self.columns)
        memory = state[:, : self.size].reshape(shape)
        written = self.correct(token, memory)
        if out is None:
            memory = outer(token.key, written) + (memory if token.decay is None else token.decay * memory)
            flat = memory.reshape(-1, self.size)
            state = flat if state.shape[1] == self.size else library.concatenate([flat, beside])
        else:
            faded, room = memory, out[:, : self.size].reshape(shape)
            if token.decay is not None:
                faded = np.multiply(memory, token.decay, out=room)
            memory = np.add(faded, outer(token.key, written), out=room)
            out[:, self.size :] = beside
            state = out
        return self.read_out(library, answer(token.query, memory), token.beside), state

    def per_head(self, x: Any) -> Any:
        """(batch, heads * size) to (batch, heads, size)."""
        return x.reshape(-1, self.heads, x.shape[1] // self.heads)

    def pair_per_head(self, x: Any) -> Any:
        """(batch, 2 * heads * size), queries and then keys, to (batch, 2, heads, size)."""
        return x.reshape(-1, 2, self.heads, x.shape[1] // (2 * self.heads))


class RelativeRecurrence(MatrixRecurrence):
    """A `MatrixRecurrence` whose weights are relative to the largest so far, exp(m), as in `KernelAttention`.

    A row of state is S of each head, then m of each head, -1e30 for no token. A subclass implements `absolute` and
    `divide`.

    Args:
        shape: heads, features and columns.
        project: see `Recurrence`.
        output: see `Recurrence`.
    """

    def __init__(self, shape: Shape, project: Affine, output: Affine) -> None:
        super().__init__(shape, project, output, beside=torch.full_like(project[1][: shape[0]], EMPTY))

    def absolute(self, library: Library, rows: Any) -> tuple[Token, Any, Any]:
        """Terms of a token, without weight and decay, and the logarithms of these, (batch, heads); 0.0 for no decay."""
        raise NotImplementedError

    def divide(self, library: Library, read: Any, m: Any) -> Any:
        """See `KernelAttention.divide`; (batch, heads, columns) and (batch, heads, 1)."""
        raise NotImplementedError

    def token(self, library: Library, constants: Mapping[str, Any], rows: Any, beside: Any) -> tuple[Token, Any]:
        """See `MatrixRecurrence.token`."""
        token, log_weight, log_decay = self.absolute(library, rows)
        before = beside + log_decay
        m = library.maximum(before, log_weight)
        value = library.exp(log_weight - m)[..., None] * token.value
        decay = library.exp(before - m)[..., None, None]
        return token._replace(value=value, decay=decay, beside=(m[..., None], token.beside)), m

    def read_out(self, library: Library, read: Any, beside: Any) -> Any:
        """See `MatrixRecurrence.read_out`."""
        return super().read_out(library, self.divide(library, read, beside[0]), None)


def outer(key: Any, value: Any) -> Any:
    """Products of all features and columns, (batch, heads, features, columns)."""
    return key[..., :, None] * value[..., None, :]


def answer(query: Any, memory: Any) -> Any:
    """What the memory answers to a query, (batch, heads, columns)."""
    return (query[..., None, :] @ memory)[..., 0, :]
