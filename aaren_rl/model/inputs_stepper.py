"""The inputs of a model prepared for acting, in torch and in NumPy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.data.bounds import SCALED_BOUND
from aaren_rl.data.segment import Observations
from aaren_rl.model.config import ModelConfig
from aaren_rl.model.encoders import Encoder
from aaren_rl.model.timesteps import TimestepEmbedding
from aaren_rl.ops.numpy_layers import Array, normalise, to_array, transpose

RETURN_TO_GO, TIMESTEP, ACTION = 0, 1, 2
"""Columns of a row of state: return-to-go, timestep, and the numbers of the previous action; mixers' states follow."""


class StepInput(NamedTuple):
    """What the inputs make of one step.

    Attributes:
        x: tokens, (batch * tokens, width).
        live: (batch, tokens), 0 for missing tokens, else 1; None if none is missing.
        return_to_go: after the reward, (batch, 1) float64.
        timestep: of the step that follows, (batch, 1) float64.
    """

    x: Any
    live: Any
    return_to_go: Any
    timestep: Any


class InputsStepper(nn.Module):
    """Makes the tokens of one step: one line scales all raw numbers, one linear layer embeds them.

    The scaling is not folded into the layer. Numbers far larger than their deviation would cancel in float32, so they
    are centred before, in float64; and scaled numbers can be clipped, as in training.

    It owns the first columns of a row of state: return-to-go, timestep and previous action. The reward of a step is
    taken off the return-to-go here and nowhere else.

    Args:
        config: the model's shape.
        observation: encoder of the observations.
        action: encoder of the previous action; None where it is no input.
        action_size: numbers of an action.
        affine: centre and factor of the raw numbers, (columns,) float64 each.
        layer: weight (tokens * width, columns) and bias (tokens * width,) of the layer over the scaled numbers.
        norm: of the tokens.
        embed_timestep: what the number of a step adds to its tokens; None for nothing.
    """

    centre: Tensor
    factor: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        config: ModelConfig,
        observation: Encoder,
        action: Encoder | None,
        action_size: int,
        affine: tuple[Tensor, Tensor],
        layer: tuple[Tensor, Tensor],
        norm: nn.LayerNorm,
        embed_timestep: TimestepEmbedding | None,
    ) -> None:
        super().__init__()
        self.config, self.tokens, self.action_size = config, config.tokens_per_step, action_size
        # The first step of an episode has no outcome before it, so its token is missing.
        self.may_miss = self.tokens > 1 and config.outcome
        for name, part in zip(("centre", "factor", "weight", "bias"), (*affine, *layer), strict=True):
            self.register_buffer(name, part)
        self.norm, self.observation, self.action, self.embed_timestep = norm, observation, action, embed_timestep

    @property
    def sizes(self) -> list[int]:
        """Columns of return-to-go, timestep and previous action."""
        return [1, 1, self.action_size]

    def start(self) -> Tensor:
        """Those columns before an episode; the previous action is the one whose features are 0."""
        start = self.centre.new_zeros(sum(self.sizes))
        if self.action is not None:
            start[ACTION:] = self.action.nothing()
        return start

    def forward(self, observation: Observations, reward: Tensor, pieces: tuple[Tensor, ...]) -> StepInput:
        """The tokens of the next step.

        Args:
            observation: (batch, *observation shape), or a dict where there are images.
            reward: of the previous action, (batch,); 0 at the first step of an episode.
            pieces: columns of the rows of state, of the `sizes`.
        """
        return_to_go, timestep, previous = pieces
        return_to_go = return_to_go - reward.unsqueeze(-1)
        observed = self.observation.raw(observation)  # (batch, features)
        known = timestep.clamp(max=1.0)
        live = F.pad(known.to(self.weight.dtype), (0, self.tokens - 1), value=1.0) if self.may_miss else None
        # float64, as the columns of the state are.
        raw = torch.cat(self.columns(previous, reward, known, return_to_go, observed), -1)
        features = ((raw - self.centre) * self.factor).clamp(-SCALED_BOUND, SCALED_BOUND).to(self.weight.dtype)
        if (images := self.observation.image_features(observation)) is not None:
            features = torch.cat([features, images.to(features.dtype)], -1)
        # Tokens stay rows of a matrix: a product with a bias is one operation then, in torch as in ONNX.
        x = F.linear(features, self.weight, self.bias)
        x = x if self.tokens == 1 else x.view(-1, self.config.width)  # (batch * tokens, width)
        if self.embed_timestep is not None:
            x = x + self.times(self.embed_timestep, timestep)
        return StepInput(layer_norm(self.norm, x), live, return_to_go, timestep + 1)

    def columns(self, previous: Any, reward: Any, known: Any, return_to_go: Any, observed: Any) -> list[Any]:
        """The raw numbers of a step, side by side: tensors or arrays, (batch, size) each.

        Args:
            previous: the numbers of the previous action, those of `start` if there was none.
            reward: of that action, (batch,).
            known: 0 at the first step of an episode, else 1, (batch, 1).
            return_to_go: (batch, 1).
            observed: the numbers of the observation.
        """
        config = self.config
        outcome = [] if self.action is None else [self.action.raw(previous)]
        outcome += [reward[:, None] * known] if config.reward else []
        outcome += [known] if outcome else []
        return [*outcome, *([return_to_go] if config.return_token else []), observed]

    def times(self, embed: TimestepEmbedding, timestep: Tensor) -> Tensor:
        """What the timesteps, (batch, 1), add to the tokens, (batch * tokens, width)."""
        now = timestep.long()
        if self.tokens > 1:
            # The outcome belongs to the step before.
            before = (now - 1).clamp(min=0) if self.may_miss else now
            now = torch.cat([before, *[now] * (self.tokens - 1)], -1)
        added: Tensor = embed(now).to(self.weight.dtype)
        return added.view(-1, self.config.width)

    def to_numpy(self) -> NumpyInputs | None:
        """The same in NumPy; None if the encoder of observations has weights."""
        return None if any(True for _ in self.observation.parameters()) else NumpyInputs(self)


class NumpyInputs:
    """Computes what `InputsStepper` computes; its tokens are centred (see `aaren_rl.ops.numpy_layers`).

    Args:
        stepper: to compute.
    """

    def __init__(self, stepper: InputsStepper) -> None:
        # Looked up here once, since attributes of a module are slow.
        self.raw, self.columns = stepper.observation.raw, stepper.columns
        self.times, self.embed_timestep = stepper.times, stepper.embed_timestep
        self.action, self.may_miss = slice(ACTION, ACTION + stepper.action_size), stepper.may_miss
        self.tokens, self.width = stepper.tokens, stepper.config.width
        self.centre, self.factor = (part.cpu().numpy() for part in (stepper.centre, stepper.factor))
        # Arrays: a ufunc would convert numbers at every call.
        self.greatest = np.full_like(self.centre, SCALED_BOUND)
        self.least = -self.greatest
        self.weight, self.bias = transpose(stepper.weight), to_array(stepper.bias)
        self.scale, self.shift, self.eps = to_array(stepper.norm.weight), to_array(stepper.norm.bias), stepper.norm.eps

    def __call__(self, observation: Array, reward: Array, state: Array) -> StepInput:
        """See `InputsStepper.forward`; `state` is the whole rows, (batch, state size)."""
        return_to_go, timestep = state[:, :1] - reward[:, None], state[:, 1:2]
        known = np.minimum(timestep, 1.0)
        columns = self.columns(state[:, self.action], reward, known, return_to_go, self.raw(observation))
        scaled = np.concatenate(columns, 1)
        scaled -= self.centre
        scaled *= self.factor
        np.minimum(scaled, self.greatest, out=scaled)
        np.maximum(scaled, self.least, out=scaled)
        x = (scaled.astype(np.float32) @ self.weight + self.bias).reshape(-1, self.width)
        if self.embed_timestep is not None:
            x += to_array(self.times(self.embed_timestep, torch.from_numpy(timestep)))
        x -= x.mean(1, keepdims=True)
        x = normalise(x, self.eps) * self.scale + self.shift
        x -= x.mean(1, keepdims=True)
        live = None
        # No token is missing after the first step of an episode.
        if self.may_miss and not known.all():
            live = np.pad(known.astype(np.float32), ((0, 0), (0, self.tokens - 1)), constant_values=1)
        return StepInput(x, live, return_to_go, timestep + 1)


def layer_norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    """The layer's output; a call of the module would cost as much again as the operation."""
    return F.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)
