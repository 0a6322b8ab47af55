"""The state that a mixer carries from token to token: a tensor, or a tree of tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

State = Any
"""A tensor, or a (named) tuple of states. The first dimension of every tensor is the batch."""


def state_tensors(state: State) -> list[Tensor]:
    """Tensors of a state, in order."""
    return [state] if isinstance(state, Tensor) else [leaf for part in state for leaf in state_tensors(part)]


def state_bytes(state: State) -> int:
    """Size of a state in bytes."""
    return sum(part.numel() * part.element_size() for part in state_tensors(state))


def where_rows(rows: Tensor, chosen: State, other: State) -> State:
    """Takes the rows marked in `rows`, (batch,) bool, from `chosen` and the others from `other`."""
    if isinstance(other, Tensor):
        return torch.where(rows.reshape(-1, *[1] * (other.ndim - 1)), chosen, other)
    parts = [where_rows(rows, c, o) for c, o in zip(chosen, other, strict=True)]
    return _tuple_like(other, parts)


def rebuild_state(like: State, leaves: Iterator[Tensor]) -> State:
    """Builds a state of the same structure as `like` from its tensors, in the order of `state_tensors`."""
    if isinstance(like, Tensor):
        return next(leaves)
    return _tuple_like(like, [rebuild_state(part, leaves) for part in like])


def _tuple_like(like: State, parts: list[State]) -> State:
    return type(like)(*parts) if hasattr(like, "_fields") else type(like)(parts)
