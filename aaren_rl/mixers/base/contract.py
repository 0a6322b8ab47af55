"""The contract of mixers: the same function over a whole sequence and one token at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from aaren_rl.errors import InvalidInput
from aaren_rl.mixers.base.state import State, rebuild_state, state_tensors, where_rows
from aaren_rl.mixers.base.stepper import Stepper

UNTRAINED_SEED = 0
"""Seed of random numbers that are drawn once and never trained.

All models and blocks share it: seeds that train as one batch share these numbers.
"""

Memory = Literal["constant", "window", "growing"]
"""What a state holds: "constant" a summary of the past, "window" a fixed number of past tokens, "growing" all of them.
"""


@dataclass(frozen=True)
class Capability:
    """What a mixer computes and costs, for the table in docs/mixers.md.

    A cost is an order of growth in multiplications; projections of single tokens are left out. T: tokens of a sequence,
    t: tokens so far, d: width of a token, h: width of a head, n: tokens of a window.

    Attributes:
        source: paper and section, as "Vaswani et al. 2017, section 3.2".
        parallel: cost of a whole sequence, and which part of it is sequential in time.
        step: cost of one token while acting.
        differs: changes that make the source causal and streamable, in a few words; empty if there are none.
        sees: tokens that reach an output; {n} stands for the tokens of the window.
    """

    source: str
    parallel: str
    step: str
    differs: str = ""
    sees: str = "the episode"


class Mixer(nn.Module):
    """Mixes information over time within a sequence of tokens, causally.

    A subclass implements `forward` and `initial_state` and declares `memory` and `capability`. The caller carries the
    state; the module keeps none.

    Every further parameter of the constructor is an option of the mixer, as `local(span=60)`. It needs a default and an
    annotation (bool, int, float, str or a Literal of these).

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.

    Raises:
        InvalidInput: the width is not a multiple of the heads.
    """

    memory: ClassVar[Memory]
    """What the state holds. Only a growing state changes its size while acting."""
    capability: ClassVar[Capability]
    """What the mixer computes and costs."""
    conv: ClassVar[int] = 0
    """Default of the option `conv`: taps of a short convolution in front of the mixer, which `build` adds; 0 for none.
    """
    cuda_graph: ClassVar[bool] = True
    """True if `forward` has no data-dependent control flow (safe for CUDA graphs and vmap)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width < 1 or width % heads:
            raise InvalidInput(f"width {width} with {heads} heads; expected a width that is a multiple of the heads")
        self.width, self.heads, self.head_width = width, heads, width // heads

    def initial_state(self, batch_size: int) -> State:
        """State before the first token of an episode."""
        raise NotImplementedError

    def forward(
        self, x: Tensor, state: State = None, reset: Tensor | None = None, valid: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mixes a sequence.

        Args:
            x: tokens, (batch, time, width).
            state: state after the tokens before these. None stands for the initial state.
            reset: (batch, time) bool, True where a new episode starts before the token.
            valid: (batch, time) bool, False for padding; outputs at padding have no meaning.

        Returns:
            Mixed tokens (batch, time, width) and the state after the last token.
        """
        raise NotImplementedError

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """Mixes the next token, (batch, width), into the state: `forward` on a sequence of one."""
        y, state = self.forward(x_t.unsqueeze(1), state)
        return y.squeeze(1), state

    def stepper(self, norm: nn.LayerNorm, tokens: int, outputs: int) -> Stepper:
        """This mixer folded for acting. Later changes of its weights do not count. The state must not grow.

        Args:
            norm: layer norm in front of the mixer.
            tokens: tokens in a step.
            outputs: number of tokens that leave the step, the last ones.
        """
        return PlainStepper(self, tokens, outputs)

    def reset_state(self, state: State, rows: Tensor) -> State:
        """Puts the rows marked in `rows`, (batch,) bool, back to the start of an episode."""
        return where_rows(rows, self.initial_state(rows.shape[0]), state)

    def _split_heads(self, x: Tensor) -> Tensor:
        """(batch, time, width) to (batch, heads, time, head width)."""
        return x.reshape(*x.shape[:-1], self.heads, self.head_width).transpose(1, 2)

    def _join_heads(self, x: Tensor) -> Tensor:
        """(batch, heads, time, head width) to (batch, time, width)."""
        return x.transpose(1, 2).flatten(2)


class PlainStepper(Stepper):
    """Any mixer's `step`, token by token, with the state flattened into a row.

    The mixer computes in the precision of its state, not in float64.

    Args:
        mixer: mixer to act with.
        tokens: tokens in a step.
        outputs: number of tokens that leave the step, the last ones.
    """

    def __init__(self, mixer: Mixer, tokens: int, outputs: int) -> None:
        like = mixer.initial_state(1)
        # JSON has no infinities.
        super().__init__(torch.cat([part.reshape(-1).double() for part in state_tensors(like)]).clamp(min=-1e30))
        self._like = like
        self.mixer, self.tokens, self.outputs = mixer, tokens, outputs

    def forward(self, x: Tensor, onto: Tensor, state: Tensor, live: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `Stepper.forward`."""
        batch = state.shape[0]  # Not len, which a trace would take for a constant.
        mixed = []
        for t, token in enumerate(x.view(batch, self.tokens, -1).unbind(1)):
            y, carried = self.mixer.step(token, self._unflatten(state))
            after = torch.cat([part.reshape(batch, -1).double() for part in state_tensors(carried)], -1)
            state = after if live is None else torch.where(live[:, t : t + 1] > 0, after, state)
            mixed.append(y)
        return onto + torch.stack(mixed[-self.outputs :], 1).flatten(0, 1), state

    def _unflatten(self, state: Tensor) -> State:
        """The mixer's state from rows (batch, size)."""
        leaves = state_tensors(self._like)
        parts = torch.split(state, [part.numel() for part in leaves], -1)
        batch = state.shape[0]
        shaped = (part.view(batch, *leaf.shape[1:]).to(leaf) for part, leaf in zip(parts, leaves, strict=True))
        return rebuild_state(self._like, shaped)
