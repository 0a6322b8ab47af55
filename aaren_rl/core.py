"""A recurrent core over any mixer, for online reinforcement learning and whatever else carries a state."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn

from aaren_rl.errors import InvalidInput
from aaren_rl.mixers.base.state import rebuild_state, state_tensors
from aaren_rl.model.config import ModelConfig
from aaren_rl.model.trunk import Trunk

CoreState: TypeAlias = tuple[Tensor, ...]
"""State of a core: tensors whose first dimension is the batch."""


class RecurrentCore(nn.Module):
    """Residual blocks of a mixer and a perceptron between vectors, with an explicit state: what an LSTM is elsewhere.

    `forward` computes whole sequences in parallel, wherever the mixer does; `step` computes the same one vector at a
    time. Episodes may start anywhere in a sequence. The module keeps no state itself.

    Args:
        input_size: numbers of an input.
        width: numbers of an output.
        blocks: number of blocks.
        mixer: name of a mixer with its options, or one for each block, as `ModelConfig.mixer`.
        heads: heads of each mixer; must divide the width.

    Raises:
        InvalidInput: a value is out of range, or the mixer cannot be read.
    """

    def __init__(self, input_size: int, width: int = 64, blocks: int = 1, mixer: str = "aaren", heads: int = 1) -> None:
        super().__init__()
        if input_size < 1:
            raise InvalidInput(f"input_size is {input_size}; expected at least 1")
        self.input_size, self.width = input_size, width
        self.embed = nn.Linear(input_size, width)
        # As in the agent, tokens are normalised before the blocks.
        self.norm = nn.LayerNorm(width)
        self.trunk = Trunk(ModelConfig(mixer=mixer, blocks=blocks, width=width, heads=heads, dropout=0.0))
        self._like = self.trunk.initial_state(1)

    @property
    def fixed_size(self) -> bool:
        """True if the state is of one size, however many inputs were seen; buffers need that."""
        return all(mixer.memory != "growing" for mixer in self.trunk.mixers())

    def initial_state(self, batch_size: int) -> CoreState:
        """The state before the first input of an episode, in every row."""
        return tuple(state_tensors(self.trunk.initial_state(batch_size)))

    def forward(
        self, x: Tensor, state: CoreState | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, CoreState]:
        """Outputs of whole sequences, continuing from a state.

        Args:
            x: inputs, (batch, time, input size).
            state: the state after the inputs before these; None for the initial one.
            resets: (batch, time), of any type; not 0 where an episode starts with this input. The state before it
                does not count there.

        Returns:
            Outputs (batch, time, width) and the state after the last input.

        Raises:
            InvalidInput: shapes that do not fit.
        """
        if x.dim() != 3 or x.shape[-1] != self.input_size:
            raise InvalidInput(f"x has shape {tuple(x.shape)}; expected (batch, time, {self.input_size})")
        if resets is not None and resets.shape != x.shape[:2]:
            raise InvalidInput(f"resets has shape {tuple(resets.shape)}; expected {tuple(x.shape[:2])}, as x")
        before = None if state is None else rebuild_state(self._like, iter(self._checked(state, len(x))))
        tokens = self.norm(self.embed(x))  # (batch, time, width)
        y, after = self.trunk(tokens, before, None if resets is None else resets != 0)
        return y, tuple(state_tensors(after))

    def step(self, x: Tensor, state: CoreState, done: Tensor | None = None) -> tuple[Tensor, CoreState]:
        """The next output.

        Args:
            x: inputs, (batch, input size).
            state: the state after the inputs before these.
            done: (batch,), of any type; not 0 where the episode before has ended, so that one starts with this input.

        Returns:
            Outputs (batch, width) and the state after these inputs.

        Raises:
            InvalidInput: shapes that do not fit.
        """
        if x.dim() != 2:
            raise InvalidInput(f"x has shape {tuple(x.shape)}; expected (batch, {self.input_size})")
        if done is not None and done.shape != x.shape[:1]:
            raise InvalidInput(f"done has shape {tuple(done.shape)}; expected {tuple(x.shape[:1])}")
        y, state = self(x.unsqueeze(1), state, None if done is None else done.unsqueeze(1))
        return y.squeeze(1), state

    def _checked(self, state: CoreState, batch: int) -> CoreState:
        expected = len(state_tensors(self._like))
        if len(state) != expected or any(part.shape[0] != batch for part in state):
            given = [tuple(part.shape) for part in state]
            raise InvalidInput(
                f"state has shapes {given}; expected {expected} tensors with a first dimension of {batch}, as "
                "initial_state makes them"
            )
        return state


def detached(state: CoreState) -> CoreState:
    """The state cut off from the graph of gradients, to go on from after an update."""
    return tuple(part.detach() for part in state)


def pack(state: CoreState) -> Tensor:
    """The state as one row of float32 for each environment, for buffers that hold plain arrays.

    Returns:
        (batch, `packed_size`); the last number is 1. Buffers start with zeros, which `unpack` takes for no state.
    """
    parts = [part.flatten(1).float() for part in state]
    return torch.cat([*parts, torch.ones_like(parts[0][:, :1])], 1)


def packed_size(core: RecurrentCore) -> int:
    """Numbers of a row of `pack`."""
    return pack(core.initial_state(1)).shape[1]


def unpack(core: RecurrentCore, rows: Tensor) -> CoreState:
    """The state of a core from the rows of `pack`; the initial one where a row is 0.

    Raises:
        InvalidInput: the rows are not those of this core.
    """
    start = core.initial_state(len(rows))
    sizes = [part[0].numel() for part in start]
    if rows.dim() != 2 or rows.shape[1] != sum(sizes) + 1:
        raise InvalidInput(f"rows have shape {tuple(rows.shape)}; expected (batch, {sum(sizes) + 1})")
    *parts, known = torch.split(rows, [*sizes, 1], 1)
    return tuple(
        torch.where((known != 0).view(-1, *[1] * (to.dim() - 1)), part.reshape(to.shape).to(to.dtype), to)
        for part, to in zip(parts, start, strict=True)
    )
