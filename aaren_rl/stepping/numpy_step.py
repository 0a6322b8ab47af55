"""A decision model's step in NumPy: on a CPU, torch would spend most of so small a step on calling its operations."""

from __future__ import annotations

from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from aaren_rl.mixers.aaren.numpy_stepper import EMPTY
from aaren_rl.mixers.aaren.stepper import AarenStepper
from aaren_rl.stepping.step import BlockStep, Step, inputs

Array: TypeAlias = npt.NDArray[Any]


class NumpyStep:
    """Computes what `Step` computes, for pre-norm models whose mixers are all Aaren.

    Every reader of the residual stream is a layer norm, which takes its mean away, so all that is written to the stream
    is centred beforehand, in the weights; a layer norm is then a division by the root of the mean square. Its scale and
    shift are folded into the product that follows.

    Args:
        step: to compute.
    """

    def __init__(self, step: Step) -> None:
        self.tokens, self.width, self.eps = step.tokens, step.config.width, step.embed_norm.eps
        self.config, self.action_size, self.sizes = step.config, step.action_size, step.sizes
        self.first_may_miss = step.first_may_miss
        self.embed = _transposed(step.embed_weight), _array(step.embed_bias)
        self.embed_norm = _array(step.embed_norm.weight), _array(step.embed_norm.bias)
        self.times = step.times if step.config.timesteps != "none" else None
        self.blocks = [_Block(cast(BlockStep, block)) for block in step.blocks]
        self.head = _after_norm(cast(nn.LayerNorm, step.norm), step.head.weight, step.head.bias)
        self.unit_range = step.unit_range
        self.half_range, self.middle = _array(step.half_range), _array(step.middle)
        self.low, self.high = _array(step.action_low), _array(step.action_high)

    @staticmethod
    def fits(step: Step) -> bool:
        """Whether the step can be computed here."""
        mixers = (cast(BlockStep, block).mixer for block in step.blocks)
        return step.config.norm == "pre" and all(isinstance(mixer, AarenStepper) for mixer in mixers)

    def __call__(self, observation: Array, reward: Array, state: Array) -> tuple[Array, Array]:
        """See `Step.forward`; observations, rewards and actions are float32, the state is float64."""
        after = np.empty_like(state)
        return_to_go, timestep = state[:, :1] - reward[:, None], state[:, 1:2]
        known = np.minimum(timestep, 1.0).astype(np.float32)
        previous, wanted = (part.astype(np.float32) for part in (state[:, 2 : 2 + self.action_size], return_to_go))
        given = np.concatenate(inputs(self.config, previous, reward, known, wanted, observation), 1)
        x = (given @ self.embed[0] + self.embed[1]).reshape(-1, self.width)
        if self.times is not None:
            x += _array(self.times(torch.from_numpy(timestep)))
        x -= x.mean(1, keepdims=True)
        x = _normalised(x, self.eps) * self.embed_norm[0] + self.embed_norm[1]
        x -= x.mean(1, keepdims=True)
        # None is missing after the first step of an episode.
        live = (
            None
            if not self.first_may_miss or known.all()
            else np.pad(known, ((0, 0), (0, self.tokens - 1)), constant_values=1)
        )
        start = 2 + self.action_size
        for block, size in zip(self.blocks, self.sizes, strict=True):
            x = block(x, state[:, start : start + size], after[:, start : start + size], live)
            start += size
        action = np.tanh(_normalised(x, self.eps) @ self.head[0] + self.head[1])
        if not self.unit_range:
            action = np.minimum(np.maximum(action * self.half_range + self.middle, self.low), self.high)
        after[:, :1], after[:, 1:2], after[:, 2 : 2 + self.action_size] = return_to_go, timestep + 1, action
        return action, after


class _Block:
    def __init__(self, block: BlockStep) -> None:
        mixer = cast(AarenStepper, block.mixer)
        self.tokens, self.outputs, self.eps = block.tokens, block.outputs, block.mixer_norm.eps
        self.heads, self.dim, self.bounded, self.later = mixer.heads, mixer.dim, mixer.bounded, _array(mixer.later)
        # By how much a head's state shrinks with each token; None where it does not.
        self.decay = mixer.kept[:, -1, -2, None].numpy() if mixer.recency else None
        weight, bias, self.folded = mixer.project, mixer.project_bias, mixer.folded
        if self.folded:
            # What goes to the residual stream is centred; the count and the score are not.
            weight, bias = weight.clone(), bias.clone()
            weight[: self.dim] -= weight[: self.dim].mean(0)
            bias[: self.dim] -= bias[: self.dim].mean()
        self.project = _after_norm(block.mixer_norm, weight, bias)
        self.output = _centred(_array(mixer.output))
        self.expand = _after_norm(block.perceptron_norm, block.expand, block.expand_bias)
        self.contract = _centred(_array(block.contract))

    def __call__(self, x: Array, before: Array, after: Array, live: Array | None) -> Array:
        """Tokens through the block; reads the mixer's row of state and writes the one after."""
        rows = (_normalised(x, self.eps) @ self.project[0] + self.project[1]).reshape(
            -1, self.tokens, self.heads, self.dim + 2
        )
        sums = (self._bounded if self.bounded else self._running)(rows, before, after, live)
        if self.outputs < self.tokens:
            x = x[self.tokens - 1 :: self.tokens]
        count = sums[..., self.dim : self.dim + 1]
        if self.folded:
            x = x + (sums[..., : self.dim] / count).reshape(-1, self.dim).astype(np.float32)
        else:
            x = x + (sums / count).reshape(-1, len(self.output)).astype(np.float32) @ self.output
        hidden = _normalised(x, self.eps) @ self.expand[0] + self.expand[1]
        through: Array = x + np.maximum(hidden, 0.0, out=hidden) @ self.contract
        return through

    def _bounded(self, rows: Array, before: Array, after: Array, live: Array | None) -> Array:
        """See `AarenStepper._bounded`; the sums are (batch, outputs, heads, dim + 1)."""
        sums = (np.exp(rows[..., -1:]) * rows[..., :-1]).astype(np.float64)
        if live is not None:
            sums *= live[..., None, None]
        last = before.reshape(-1, self.heads, self.dim + 1)
        for token in range(self.tokens):
            sums[:, token] += last if self.decay is None else self.decay * last
            last = sums[:, token]
        after[:] = sums[:, -1].reshape(len(after), -1)
        return sums[:, -self.outputs :]

    def _running(self, rows: Array, before: Array, after: Array, live: Array | None) -> Array:
        """See `AarenStepper._running`; the sums are (batch, outputs, heads, dim + 1)."""
        state = before.reshape(-1, 1, self.heads, self.dim + 2)
        pieces = np.concatenate([state, rows], 1).swapaxes(1, 2)
        scores = pieces[..., -1]
        if live is not None:
            scores[..., 1:] += ((1 - live) * EMPTY)[:, None]
        table = scores[:, :, None] + self.later
        m = table.max(-1, keepdims=True)
        sums = np.exp(table - m) @ pieces[..., :-1]
        after[:] = np.concatenate([sums[:, :, -1], m[:, :, -1]], -1).reshape(len(after), -1)
        return cast(Array, sums.swapaxes(1, 2))


def _normalised(centred: Array, eps: float) -> Array:
    """Layer norm of rows whose mean is 0, without its scale and shift."""
    mean_square = np.einsum("ij,ij->i", centred, centred)[:, None] / centred.shape[1]
    normalised: Array = centred / np.sqrt(mean_square + np.float32(eps))
    return normalised


def _after_norm(norm: nn.LayerNorm, weight: Tensor, bias: Tensor) -> tuple[Array, Array]:
    """A layer's weight, inputs first, and bias, with the scale and shift of the layer norm before it."""
    return _transposed(weight * norm.weight), _array(bias + weight @ norm.bias)


def _centred(weight: Array) -> Array:
    """A layer, inputs first, whose outputs have the mean 0."""
    return weight - weight.mean(1, keepdims=True)  # type: ignore[no-any-return]


def _transposed(tensor: Tensor) -> Array:
    return np.ascontiguousarray(_array(tensor).T)


def _array(tensor: Tensor) -> Array:
    return tensor.detach().cpu().numpy().astype(np.float32)
