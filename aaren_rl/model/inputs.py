"""From a segment to tokens: what is known before each action, in the order in which it becomes known."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.data.segment import Segment
from aaren_rl.data.spaces import Space
from aaren_rl.errors import InvalidInput
from aaren_rl.model.config import ModelConfig
from aaren_rl.model.dropout import Dropout
from aaren_rl.model.encoders import action_encoder, clip_scaled, observation_encoder
from aaren_rl.model.inputs_stepper import InputsStepper
from aaren_rl.model.scaling import Scaling
from aaren_rl.model.timesteps import TimestepEmbedding


class Tokens(NamedTuple):
    """What the trunk reads.

    Attributes:
        x: (batch, time * tokens per step, width).
        reset: (batch, time * tokens per step) bool, True where an episode starts before the token.
        valid: (batch, time * tokens per step) bool, False for padding; None for none.
    """

    x: Tensor
    reset: Tensor
    valid: Tensor | None


class Masks(NamedTuple):
    """Which steps are there, and which know the outcome of the step before; all (batch, time) bool.

    A row that starts inside an episode after one step of padding, with a second episode packed behind the first:

        timesteps   .  7  8  9  0  1
        real        0  1  1  1  1  1    not padding
        first       0  0  0  0  1  0    starts an episode, so nothing before it is known
        opening     0  1  0  0  0  0    first real step of the row: `previous_action` belongs to it
        known       0  *  1  1  0  1    has an outcome before it (*: only if `previous_action` is given)
    """

    real: Tensor
    first: Tensor
    opening: Tensor
    known: Tensor

    @classmethod
    def of(cls, timesteps: Tensor, valid: Tensor | None, previous_given: bool) -> Masks:
        """The masks of a segment.

        Args:
            timesteps: (batch, time).
            valid: (batch, time) bool, or None.
            previous_given: True if the segment has the outcome before its first real step.
        """
        real = torch.ones_like(timesteps, dtype=torch.bool) if valid is None else valid
        first = (timesteps == 0) & real
        opening = real & (real.cumsum(1) == 1)
        known = F.pad(real[:, :-1], (1, 0))
        if previous_given:
            known = known | opening
        return cls(real, first, opening, known & ~first)


class Inputs(nn.Module):
    """Makes tokens of segments (Chen et al. 2021, arXiv 2106.01345, section 3).

    The input of step t has up to three parts: the outcome of step t - 1 (its action, its reward, and a 1 that says that
    there was one), the return-to-go R_t, and the observation o_t. Each part is a vector of features with a linear layer
    of its own. Interleaved, each is a token; fused, their sum is one token. What the configuration leaves out takes no
    token.

    Args:
        config: the model's shape.
        observation_space: of the environment.
        action_space: likewise.
        scaling: of observations, returns and rewards.
    """

    return_scale: Tensor
    reward_scale: Tensor

    def __init__(self, config: ModelConfig, observation_space: Space, action_space: Space, scaling: Scaling) -> None:
        super().__init__()
        self.config, self.observation_space, self.action_space = config, observation_space, action_space
        for name in ("return_scale", "reward_scale"):
            self.register_buffer(name, torch.tensor(getattr(scaling, name), dtype=torch.float32))
        self.observation = observation_encoder(observation_space, scaling, config.image_encoder, config.leave_out)
        self.embed_observation = nn.Linear(self.observation.size, config.width)
        if config.previous_action:
            self.action = action_encoder(action_space)
            self.embed_action = nn.Linear(self.action.size, config.width)
        if config.reward:
            # The action's bias serves both.
            self.embed_reward = nn.Linear(1, config.width, bias=not config.previous_action)
        if config.return_token:
            self.embed_return = nn.Linear(1, config.width)
        self.embed_timestep = None if config.timesteps == "none" else TimestepEmbedding(config)
        self.norm = nn.LayerNorm(config.width)
        self.dropout = Dropout(config.dropout)

    def forward(self, segment: Segment) -> Tokens:
        """Tokens of all steps.

        Raises:
            InvalidInput: a field that the model needs is missing, or one has a wrong shape.
        """
        self._check(segment)
        config = self.config
        given = config.previous_action and segment.previous_action is not None
        given = given or (config.reward and segment.previous_reward is not None)
        masks = Masks.of(segment.timesteps, segment.valid, given)
        parts = [] if not config.outcome else [self._outcome(segment, masks)]  # (batch, time, action + reward + 1)
        if segment.returns_to_go is not None and config.return_token:
            parts.append(self.scaled_return(segment.returns_to_go).unsqueeze(-1))  # (batch, time, 1)
        parts.append(self.observation(segment.observations))  # (batch, time, features)
        if config.layout == "fused":
            x, reset, valid = self._fuse(parts, segment.timesteps), masks.first, segment.valid  # (batch, time, width)
        else:
            x = self._interleave(parts, segment.timesteps)  # (batch, time * tokens, width)
            reset, valid = self._spread(masks, len(parts))  # (batch, time * tokens)
        return Tokens(self.dropout(self.norm(x)), reset, valid)

    def scaled_return(self, return_to_go: Tensor) -> Tensor:
        """Returns divided by their scale and clipped, as models read them."""
        return clip_scaled(return_to_go / self.return_scale)

    def layers(self) -> list[tuple[Tensor, Tensor | None]]:
        """Weight, inputs last, and bias of each part of a step's input: outcome, return-to-go and observation.

        The outcome's features are (previous action, previous reward, 1), zeros where there is no step before: its bias
        is the weight of the 1, so nothing is added then.
        """
        config = self.config
        found: list[tuple[Tensor, Tensor | None]] = []
        if config.outcome:
            layers = [self.embed_action] if config.previous_action else []
            layers += [self.embed_reward] if config.reward else []
            bias = layers[0].bias.unsqueeze(-1)
            found.append((torch.cat([*(layer.weight for layer in layers), bias], -1), None))
        if config.return_token:
            found.append((self.embed_return.weight, self.embed_return.bias))
        return [*found, (self.embed_observation.weight, self.embed_observation.bias)]

    def stepper(self) -> InputsStepper:
        """The inputs prepared for acting: all scaling is one line, all embeddings one linear layer."""
        return InputsStepper(
            self.config,
            self.observation,
            self.action if self.config.previous_action else None,
            self.action_space.size,
            self._affine(),
            self._side_by_side(),
            self.norm,
            self.embed_timestep,
        )

    def _affine(self) -> tuple[Tensor, Tensor]:
        """Centre and factor of the raw columns of a step (`InputsStepper.columns`)."""

        def divided_by(scale: Tensor) -> tuple[Tensor, Tensor]:
            wide = scale.double().view(1)
            return torch.zeros_like(wide), 1 / wide

        config = self.config
        parts = [self.action.affine()] if config.previous_action else []
        parts += [divided_by(self.reward_scale)] if config.reward else []
        parts += [divided_by(torch.ones_like(self.reward_scale))] if config.outcome else []
        parts += [divided_by(self.return_scale)] if config.return_token else []
        parts.append(self.observation.affine())
        device = self.return_scale.device
        centres, factors = zip(*parts, strict=True)
        return torch.cat([part.to(device) for part in centres]), torch.cat([part.to(device) for part in factors])

    def _side_by_side(self) -> tuple[Tensor, Tensor]:
        """All embeddings as one weight and bias over the features of a step.

        The output is one token, or the tokens of a step one after another.
        """
        weights, biases = zip(*self.layers(), strict=True)
        shifts = [torch.zeros_like(weights[-1][:, 0]) if bias is None else bias for bias in biases]
        if self.config.tokens_per_step == 1:
            return torch.cat(weights, -1), torch.stack(shifts).sum(0)
        blocks: Tensor = torch.block_diag(*weights)  # type: ignore[no-untyped-call]
        return blocks, torch.cat(shifts)

    def _outcome(self, segment: Segment, masks: Masks) -> Tensor:
        """The previous action and reward as features, and a 1 where there is a step before, (batch, time, features)."""
        columns, known, dtype = [], masks.known.unsqueeze(-1), self.return_scale.dtype
        if self.config.previous_action:
            before = _one_later(segment.actions, segment.previous_action, masks.opening, self.action_space.shape, dtype)
            columns.append(self.action(before).masked_fill(~known, 0.0))
        if self.config.reward:
            before = _one_later(segment.rewards, segment.previous_reward, masks.opening, (), dtype)
            columns.append(clip_scaled(before.unsqueeze(-1) / self.reward_scale).masked_fill(~known, 0.0))
        return torch.cat([*columns, known.to(columns[0].dtype)], -1)

    def _fuse(self, parts: list[Tensor], timesteps: Tensor) -> Tensor:
        """One token a step, the sum of its parts' embeddings: one product with the weights side by side."""
        layers = self.layers()
        bias = torch.stack([bias for _, bias in layers if bias is not None]).sum(0)
        x = F.linear(torch.cat(parts, -1), torch.cat([weight for weight, _ in layers], -1), bias)
        return x if self.embed_timestep is None else x + self._times(self.embed_timestep, timesteps)

    def _interleave(self, parts: list[Tensor], timesteps: Tensor) -> Tensor:
        """One token for each part of a step's input."""
        tokens = [F.linear(part, *layer) for part, layer in zip(parts, self.layers(), strict=True)]
        if self.embed_timestep is not None:
            times = [self._times(self.embed_timestep, timesteps)] * len(tokens)
            if self.config.outcome:
                times[0] = self._times(self.embed_timestep, (timesteps - 1).clamp(min=0))
            tokens = [token + time for token, time in zip(tokens, times, strict=True)]
        return torch.stack(tokens, dim=2).flatten(1, 2)

    def _times(self, embed: TimestepEmbedding, timesteps: Tensor) -> Tensor:
        # In the weights' precision, not in that of products under autocast.
        return embed(timesteps).to(self.norm.weight.dtype)  # type: ignore[no-any-return]

    def _spread(self, masks: Masks, tokens: int) -> tuple[Tensor, Tensor]:
        """Resets and validity of interleaved tokens: a step resets at its first, and an unknown outcome has none."""
        reset = [masks.first, *[torch.zeros_like(masks.first)] * (tokens - 1)]
        valid = [masks.real] * tokens
        if self.config.outcome:
            valid[0] = masks.known & masks.real
        return torch.stack(reset, dim=2).flatten(1, 2), torch.stack(valid, dim=2).flatten(1, 2)

    def _check(self, segment: Segment) -> None:
        segment.check(self.observation_space, self.action_space)
        config = self.config
        needed = {"returns_to_go": config.return_to_go}
        if segment.timesteps.shape[1] > 1:
            needed |= {"actions": config.previous_action, "rewards": config.reward}
        for name, wanted in needed.items():
            if wanted and getattr(segment, name) is None:
                raise InvalidInput(f"this model has {name.replace('_', ' ')} as input; give {name}")
        both = config.previous_action and config.reward
        if both and (segment.previous_action is None) != (segment.previous_reward is None):
            raise InvalidInput("this model has action and reward as input; give both of the step before or neither")
        # On a GPU the look at the values would hold up the host; training and acting check them before.
        if config.timesteps == "learned" and segment.timesteps.device.type == "cpu":
            longest = int(segment.timesteps.max())
            if int(segment.timesteps.min()) < 0:
                raise InvalidInput("timesteps are below 0; expected numbers of steps from 0")
            if longest >= config.max_steps:
                raise InvalidInput(f"timestep {longest} is beyond the learned embedding of {config.max_steps} steps")


def _one_later(
    given: Tensor | None, before: Tensor | None, opening: Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Values moved one step later, (batch, time, *shape): `before` at the opening step, zero where nothing is known."""
    if given is None:
        # A single step, whose own action and reward are not known yet.
        shifted = torch.zeros(*opening.shape, *shape, dtype=dtype, device=opening.device)
    else:
        shifted = torch.cat([torch.zeros_like(given[:, :1]), given[:, :-1]], 1)
    if before is None:
        return shifted
    return torch.where(opening.view(*opening.shape, *[1] * len(shape)), before.unsqueeze(1), shifted)
