"""The contract every mixer keeps: the same function over a whole sequence and one token at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from aaren_rl.errors import InvalidInput

UNTRAINED_SEED = 0
"""Of what a mixer draws and does not train: one for all models and blocks, since runs trained as one batch share it."""

Memory = Literal["constant", "window", "growing"]

State = Any
"""A tensor, or a (named) tuple of states; every tensor has the batch first."""


@dataclass(frozen=True)
class Capability:
    """What a mixer is and costs, for the table of all of them.

    Costs are orders of growth in multiplications beside the projections of single tokens, in T tokens of a sequence,
    t tokens seen so far, d numbers of a token, n tokens of a window, and what `differs` or the docstring names.

    Attributes:
        source: what it computes is from, as "Vaswani et al. 2017, section 3.2".
        parallel: cost of a whole sequence, and what of it is not parallel over time.
        step: cost of a token while acting.
        differs: what was changed to be causal and streamable, in a few words; empty where nothing was.
        sees: tokens that reach an output, with {n} for the tokens of its window.
    """

    source: str
    parallel: str
    step: str
    differs: str = ""
    sees: str = "the episode"


class Mixer(nn.Module):
    """Mixes information over time within a sequence of tokens, causally.

    Subclasses implement `forward`, `initial_state` and declare `memory`. The state is handed in and out, never kept
    on the module.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.

    Raises:
        InvalidInput: the width is not a multiple of the heads.
    """

    memory: ClassVar[Memory]
    """What a state holds: a summary, the last tokens or some of the past ones, or all. Only one that grows changes its
    size while acting."""
    capability: ClassVar[Capability]
    """What it is and costs."""
    recordable: ClassVar[bool] = True
    """Whether `forward` can be recorded as a CUDA graph and mapped over models, since it never looks at values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width < 1 or width % heads:
            raise InvalidInput(f"width {width} with {heads} heads; expected a width that is a multiple of the heads")
        self.width, self.heads, self.head_width = width, heads, width // heads

    def initial_state(self, batch_size: int) -> State:
        """The state before the first token of an episode."""
        raise NotImplementedError

    def forward(
        self, x: Tensor, state: State = None, reset: Tensor | None = None, valid: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mixes a sequence, continuing from a state.

        Args:
            x: tokens, (batch, time, width).
            state: the state after the tokens before these; None for none.
            reset: (batch, time) bool, True where a new episode starts before the token.
            valid: (batch, time) bool, False for padding; what is returned there has no meaning.

        Returns:
            Mixed tokens (batch, time, width) and the state after the last one.
        """
        raise NotImplementedError

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """Mixes the next token, (batch, width), into the state: `forward` on a sequence of one."""
        y, state = self.forward(x_t.unsqueeze(1), state)
        return y.squeeze(1), state

    def stepper(self, norm: nn.LayerNorm, tokens: int, outputs: int) -> Stepper:
        """This mixer for the tokens of one step at a time, as it stands now; for mixers whose state does not grow.

        Args:
            norm: the layer norm whose outputs it mixes.
            tokens: how many a step has.
            outputs: for how many of them, the last ones, the mixed token is wanted.
        """
        return PlainStepper(self, tokens, outputs)

    def reset_state(self, state: State, rows: Tensor) -> State:
        """The state with the rows marked in `rows`, (batch,) bool, back at the start of an episode."""
        return where_rows(rows, self.initial_state(rows.shape[0]), state)

    def _split_heads(self, x: Tensor) -> Tensor:
        """(batch, time, width) to (batch, heads, time, head width)."""
        return x.reshape(*x.shape[:-1], self.heads, self.head_width).transpose(1, 2)

    def _join_heads(self, x: Tensor) -> Tensor:
        """(batch, heads, time, head width) to (batch, time, width)."""
        return x.transpose(1, 2).flatten(2)


class Stepper(nn.Module):
    """A mixer that carries its state as one row of float64 numbers per sequence, so that a million tokens can sum up.

    Args:
        start: the row before the first token of an episode, (size,).
    """

    start: Tensor

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.register_buffer("start", start)

    def forward(self, x: Tensor, onto: Tensor, state: Tensor, live: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mixes the tokens of one step.

        Args:
            x: (batch * tokens, width).
            onto: what the mixed tokens are added to, (batch * outputs, width).
            state: (batch, size).
            live: (batch, tokens), 0 for tokens that are missing, else 1; None where none ever is.

        Returns:
            The last tokens with the mixed ones added, (batch * outputs, width), and the new state.
        """
        raise NotImplementedError


class PlainStepper(Stepper):
    """Any mixer's own `step`, one token after another, with its state flattened, in the precision it has there.

    Args:
        mixer: to act with.
        tokens: how many a step has.
        outputs: for how many of them, the last ones, the mixed token is wanted.
    """

    def __init__(self, mixer: Mixer, tokens: int, outputs: int) -> None:
        like = mixer.initial_state(1)
        # Finite, so that it can be written into a file of JSON.
        super().__init__(torch.cat([part.reshape(-1).double() for part in state_tensors(like)]).clamp(min=-1e30))
        self._like = like
        self.mixer, self.tokens, self.outputs = mixer, tokens, outputs

    def forward(self, x: Tensor, onto: Tensor, state: Tensor, live: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `Stepper.forward`."""
        batch = state.shape[0]  # Not len, which a trace would take for a constant.
        mixed = []
        for t, token in enumerate(x.view(batch, self.tokens, -1).unbind(1)):
            y, carried = self.mixer.step(token, self._unflattened(state))
            after = torch.cat([part.reshape(batch, -1).double() for part in state_tensors(carried)], -1)
            state = after if live is None else torch.where(live[:, t : t + 1] > 0, after, state)
            mixed.append(y)
        return onto + torch.stack(mixed[-self.outputs :], 1).flatten(0, 1), state

    def _unflattened(self, state: Tensor) -> State:
        leaves = state_tensors(self._like)
        parts = torch.split(state, [part.numel() for part in leaves], -1)
        batch = state.shape[0]
        shaped = (part.view(batch, *leaf.shape[1:]).to(leaf) for part, leaf in zip(parts, leaves, strict=True))
        return _rebuilt(self._like, shaped)


def state_tensors(state: State) -> list[Tensor]:
    """The tensors of a state, in order."""
    return [state] if isinstance(state, Tensor) else [leaf for part in state for leaf in state_tensors(part)]


def _rebuilt(like: State, leaves: Iterator[Tensor]) -> State:
    if isinstance(like, Tensor):
        return next(leaves)
    parts = [_rebuilt(part, leaves) for part in like]
    return type(like)(*parts) if hasattr(like, "_fields") else type(like)(parts)


def where_rows(rows: Tensor, chosen: State, other: State) -> State:
    """A state with the rows marked in `rows`, (batch,) bool, from one state and the others from another."""
    if isinstance(other, Tensor):
        return torch.where(rows.reshape(-1, *[1] * (other.ndim - 1)), chosen, other)
    parts = [where_rows(rows, c, o) for c, o in zip(chosen, other, strict=True)]
    return type(other)(*parts) if hasattr(other, "_fields") else type(other)(parts)


def state_bytes(state: State) -> int:
    """Bytes that the tensors of a state take."""
    return sum(part.numel() * part.element_size() for part in state_tensors(state))
