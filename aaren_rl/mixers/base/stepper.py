"""Steppers: mixers folded for acting, in torch and in NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from aaren_rl.mixers.base.state import State, rebuild_state, state_tensors
from aaren_rl.ops.numpy_layers import Array

if TYPE_CHECKING:
    from aaren_rl.mixers.base.contract import Mixer


class Stepper(nn.Module):
    """A mixer folded for acting: it mixes the tokens of one environment step into a row of state.

    The state is one row of float64 numbers per sequence, so that sums over a million tokens keep their digits.

    Args:
        start: row of state before the first token of an episode, (size,).
    """

    start: Tensor

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.register_buffer("start", start)

    def forward(self, x: Tensor, onto: Tensor, state: Tensor, live: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mixes the tokens of one step.

        Args:
            x: tokens, (batch * tokens, width).
            onto: the residual stream, to which the mixed tokens are added, (batch * outputs, width).
            state: rows of state, (batch, size).
            live: (batch, tokens), 0 for missing tokens, else 1. None if no token is missing.

        Returns:
            `onto` plus the mixed tokens, (batch * outputs, width), and the new state.
        """
        raise NotImplementedError

    def to_numpy(self, norm: nn.LayerNorm) -> NumpyStepper | None:
        """This stepper in NumPy, with the scale and shift of a layer norm folded in; None if it has no such form.

        Args:
            norm: layer norm in front of the mixer.
        """
        return None


class NumpyStepper(Protocol):
    """A stepper in NumPy, for a CPU, where torch would spend most of a small step on calling its operations."""

    def __call__(self, normed: Array, before: Array, after: Array, live: Array | None) -> Array:
        """Mixes the tokens of one step.

        Args:
            normed: tokens after a layer norm without its scale and shift, (batch * tokens, width) float32.
            before: rows of state, (batch, size) float64.
            after: receives the new rows of state, (batch, size) float64.
            live: (batch, tokens), 0 for missing tokens, else 1. None if no token is missing.

        Returns:
            What is added to the residual stream, (batch * outputs, width) float32; the mean of each row is 0.
        """
        ...


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
