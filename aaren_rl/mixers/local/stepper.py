"""Softmax attention to the last tokens, folded for acting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from aaren_rl.mixers.base.contract import PlainStepper
from aaren_rl.mixers.base.stepper import EMPTY
from aaren_rl.ops.numpy_layers import Array, centre_outputs, fold_norm, to_array, transpose

if TYPE_CHECKING:
    from aaren_rl.mixers.local import Local


class LocalStepper(PlainStepper):
    """`Local.step` in torch, token by token, with a form in NumPy.

    A row of state is the window, oldest token first: keys and values of span - 1 tokens, then a 1 for each of them, or
    a 0 for those before the first token of the episode.

    Args:
        mixer: mixer to act with.
        tokens: tokens in a step.
        outputs: number of tokens that leave the step, the last ones.
    """

    mixer: Local

    def to_numpy(self, norm: nn.LayerNorm) -> NumpyLocalStepper | None:
        """See `Stepper.to_numpy`; None for a subclass that mixes or remembers otherwise."""
        from aaren_rl.mixers.local import Local

        changed = type(self.mixer).mix is not Local.mix or type(self.mixer).remember is not Local.remember
        return None if changed else NumpyLocalStepper(self, norm)


class NumpyLocalStepper:
    """Computes what `LocalStepper` computes; see `NumpyStepper` for the contract.

    Args:
        stepper: stepper to compute.
        norm: layer norm in front of the mixer.
    """

    def __init__(self, stepper: LocalStepper, norm: nn.LayerNorm) -> None:
        mixer = stepper.mixer
        self.tokens, self.outputs, self.span, self.width = stepper.tokens, stepper.outputs, mixer.span, mixer.width
        self.heads, self.head_width = mixer.heads, mixer.head_width
        # Entries of a window at ages 0, dilation, 2 * dilation, ...
        self.seen = slice((mixer.span - 1) % mixer.dilation, None, mixer.dilation)
        weights, biases = zip(
            *((part.weight, part.bias) for part in (mixer.query, mixer.key, mixer.value)), strict=True
        )
        weight, bias = fold_norm(norm, torch.cat(weights), torch.cat(biases))
        scale = np.ones(3 * mixer.width, np.float32)
        scale[: mixer.width] = mixer.head_width**-0.5
        self.weight, self.bias = weight * scale, bias * scale
        self.output = centre_outputs(transpose(mixer.output.weight))
        self.output_bias = to_array(mixer.output.bias - mixer.output.bias.mean())

    def __call__(self, normed: Array, before: Array, after: Array, live: Array | None) -> Array:
        """See `NumpyStepper.__call__`."""
        batch, size = len(before), (self.span - 1) * 2 * self.width
        rows = (normed @ self.weight + self.bias).reshape(batch, self.tokens, -1)
        window = before[:, :size].astype(np.float32).reshape(batch, self.span - 1, 2 * self.width)
        filled = before[:, size:]
        one, mixed = np.ones((batch, 1)), []
        for token in range(self.tokens):
            window = np.concatenate([window, rows[:, token : token + 1, self.width :]], 1)  # (batch, span, 2 * width)
            filled = np.concatenate([filled, one], 1)  # (batch, span)
            mixed.append(self._attend(rows[:, token, : self.width], window[:, self.seen], filled[:, self.seen]))
            if live is None:
                window, filled = window[:, 1:], filled[:, 1:]
            else:
                real = live[:, token, None] > 0
                window = np.where(real[..., None], window[:, 1:], window[:, :-1])
                filled = np.where(real, filled[:, 1:], filled[:, :-1])
        after[:, :size], after[:, size:] = window.reshape(batch, -1), filled
        leaving = np.concatenate(mixed[-self.outputs :], 1).reshape(-1, self.width)  # (batch * outputs, width)
        return leaving @ self.output + self.output_bias

    def _attend(self, query: Array, entries: Array, filled: Array) -> Array:
        """Attention of a token, (batch, width), to the filled ones of its entries, (batch, entries, 2 * width)."""
        batch, number, _ = entries.shape
        heads = entries.reshape(batch, number, 2, self.heads, self.head_width).transpose(2, 0, 3, 1, 4)
        keys, values = heads  # (batch, heads, entries, head width)
        scores = (keys @ query.reshape(batch, self.heads, self.head_width, 1))[..., 0]  # (batch, heads, entries)
        scores += ((1 - filled) * EMPTY)[:, None]
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return (weights[:, :, None] @ values).reshape(batch, self.width)  # type: ignore[no-any-return]
