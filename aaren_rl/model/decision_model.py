"""The decision model: actions from returns-to-go, observations and past actions, over any mixer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl import mixers
from aaren_rl.errors import InvalidInput
from aaren_rl.mixers import Mixer, State
from aaren_rl.model.dropout import Dropout

Layout = Literal["interleaved", "fused"]
Timesteps = Literal["none", "first", "learned", "sinusoidal"]
Norm = Literal["pre", "post"]


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decision model; defaults are the Decision Transformer's (Chen et al. 2021, appendix A), save three.

    These are the mixer; one token a step; and no timestep embedding, so that training on windows and streaming agree.
    """

    mixer: str = "aaren"
    """What mixes tokens over time: a name that scripts/mixers.py lists, with the tokens of its window where it has one,
    as "local:60"; or one for each block, as "aaren,local,aaren"."""
    blocks: int = 3
    """Number of blocks, each a mixer and a two-layer perceptron."""
    width: int = 128
    """Size of a token."""
    heads: int = 1
    """Heads of each mixer; must divide the width."""
    dropout: float = 0.1
    """Dropout on the tokens and on what each block adds."""
    layout: Layout = "fused"
    """Tokens per step: all fused in one, or three (outcome of the step before, return-to-go, observation), as in the
    paper. One costs a half and streamed better (docs/streaming.md)."""
    timesteps: Timesteps = "none"
    """Embedding of the step's number in its episode. With "learned" (the paper's), trained on windows and acting by
    streaming part ways; "sinusoidal" (Vaswani et al. 2017) has no longest episode; "first" only marks the first step
    (ours)."""
    previous_action: bool = True
    """Whether the action before a step is part of its input, as in the paper."""
    reward: bool = False
    """Whether the reward before a step is part of its input, beside the previous action (Duan et al. 2016, "RL^2")."""
    return_to_go: bool = True
    """Whether the return-to-go is part of the input; without it the model clones the behaviour."""
    recency: bool = False
    """Aaren only: the score of a token falls linearly with its age, by a learned slope per head; the state then decays
    exponentially (ours, after the fixed slopes of Press et al. 2022, "Train Short, Test Long")."""
    norm: Norm = "pre"
    """Layer norms before each part of a block (GPT-2, Radford et al. 2019) or after it (Vaswani et al. 2017)."""
    max_steps: int = 1000
    """Longest episode that a learned timestep embedding can hold."""

    def __post_init__(self) -> None:
        for name, choices in (("layout", Layout), ("timesteps", Timesteps), ("norm", Norm)):
            if getattr(self, name) not in get_args(choices):
                raise InvalidInput(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(get_args(choices))}")
        if not 0 <= self.dropout < 1:
            raise InvalidInput(f"dropout is {self.dropout}; expected a number from 0 up to but not 1")
        for name in ("blocks", "width", "heads", "max_steps"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.width % self.heads:
            raise InvalidInput(f"width {self.width} with {self.heads} heads; expected a multiple of the heads")
        if len(self.mixers) != self.blocks:
            raise InvalidInput(
                f"mixer {self.mixer!r} names {len(self.mixers)} mixers for {self.blocks} blocks; expected one for all, "
                "or one for each"
            )
        for written in self.mixers:
            mixers.get(written)
        if self.recency and "aaren" not in self.mixers:
            raise InvalidInput(f"recency is an option of the mixer aaren, not of {self.mixer}; leave it out")

    @property
    def mixers(self) -> tuple[str, ...]:
        """The mixer of every block, in its written form."""
        written = tuple(part.strip() for part in self.mixer.split(","))
        return written * self.blocks if len(written) == 1 else written

    @property
    def recordable(self) -> bool:
        """Whether the model can be recorded as a CUDA graph and mapped over models."""
        return all(mixers.get(written).cuda_graph for written in self.mixers)


@dataclass(frozen=True)
class Scaling:
    """Maps raw environment units to what the network sees; kept with the weights.

    Attributes:
        observation_mean: (observation size,).
        observation_std: (observation size,), positive.
        action_low: (action size,), mapped to -1.
        action_high: (action size,), mapped to 1.
        return_scale: returns-to-go are divided by this.
        reward_scale: rewards are divided by this.
    """

    observation_mean: np.ndarray
    observation_std: np.ndarray
    action_low: np.ndarray
    action_high: np.ndarray
    return_scale: float = 1000.0
    reward_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.observation_mean.shape != self.observation_std.shape or self.action_low.shape != self.action_high.shape:
            raise InvalidInput("mean and std, or low and high, differ in shape; expected one value per component each")
        if not (self.observation_std > 0).all() or not (self.action_high > self.action_low).all():
            raise InvalidInput("every observation_std must be positive and every action_high above its action_low")
        for name in ("return_scale", "reward_scale"):
            if not getattr(self, name) > 0:
                raise InvalidInput(f"{name} is {getattr(self, name)}; expected a positive number")


class DecisionModel(nn.Module):
    """A Decision Transformer (Chen et al. 2021, arXiv 2106.01345, section 3) over a swappable mixer.

    Each step t of a trajectory is three things: the outcome of the step before, that is its action a_{t-1} and where
    asked for its reward r_{t-1} (nothing at the first step of an episode), the return-to-go R_t and the observation
    o_t. In the interleaved layout they are three tokens, in the fused layout their embeddings are summed to one; the
    action a_t is read off the last token of the step. This is the order in which things are known while acting, so
    `forward` over a trajectory and `step` along it are one function. What the configuration leaves out takes no token.

    Units are the environment's everywhere outside: observations, actions and returns are scaled inside.

    Args:
        config: the model's shape.
        scaling: from raw units to the network's; its shapes give the sizes of observations and actions.
    """

    observation_mean: Tensor
    observation_std: Tensor
    action_low: Tensor
    action_high: Tensor
    return_scale: Tensor
    reward_scale: Tensor

    def __init__(self, config: ModelConfig, scaling: Scaling) -> None:
        super().__init__()
        self.config = config
        for name, value in asdict(scaling).items():
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32).clone())
        self.observation_size, self.action_size = scaling.observation_mean.size, scaling.action_low.size
        self.embed_observation = nn.Linear(self.observation_size, config.width)
        if config.previous_action:
            self.embed_action = nn.Linear(self.action_size, config.width)
        if config.reward:
            # The action's bias serves both.
            self.embed_reward = nn.Linear(1, config.width, bias=not config.previous_action)
        if config.return_to_go:
            self.embed_return = nn.Linear(1, config.width)
        if config.timesteps == "learned":
            self.embed_timestep = nn.Embedding(config.max_steps, config.width)
        elif config.timesteps == "first":
            self.embed_first = nn.Parameter(torch.randn(config.width))
        self.embed_norm = nn.LayerNorm(config.width)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, written) for written in config.mixers)
        # Post-norm blocks end with a norm of their own.
        self.norm = nn.LayerNorm(config.width) if config.norm == "pre" else nn.Identity()
        self.head = nn.Linear(config.width, self.action_size)
        self.blocks.apply(_initialise)

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one step of a trajectory takes."""
        config = self.config
        return 1 if config.layout == "fused" else 1 + self.knows_outcome + config.return_to_go

    @property
    def knows_outcome(self) -> bool:
        """Whether the input of a step has something of the step before: its action, its reward or both."""
        return self.config.previous_action or self.config.reward

    @property
    def fixed_size(self) -> bool:
        """Whether the state has the same size at every step."""
        return all(mixer.memory != "growing" for mixer in self._mixers())

    def initial_state(self, batch_size: int) -> tuple[State, ...]:
        """The state before the first step of an episode: one per block."""
        return tuple(mixer.initial_state(batch_size) for mixer in self._mixers())

    def reset_state(self, state: tuple[State, ...], rows: Tensor) -> tuple[State, ...]:
        """The state with the rows marked in `rows`, (batch,) bool, back at the start of an episode."""
        return tuple(mixer.reset_state(part, rows) for mixer, part in zip(self._mixers(), state, strict=True))

    def forward(
        self,
        states: Tensor,
        actions: Tensor,
        returns_to_go: Tensor,
        timesteps: Tensor,
        previous_action: Tensor | None = None,
        valid: Tensor | None = None,
        rewards: Tensor | None = None,
        previous_reward: Tensor | None = None,
        state: tuple[State, ...] | None = None,
    ) -> tuple[Tensor, tuple[State, ...]]:
        """Predicts the action of every step of a batch of trajectories, in parallel over time.

        Args:
            states: observations, (batch, time, observation size).
            actions: (batch, time, action size); the prediction for a step never sees its own action or later ones.
            returns_to_go: (batch, time).
            timesteps: number of the step within its episode, (batch, time); 0 starts a new episode, which forgets all
                before, so several episodes may be packed in one row.
            previous_action: the action before the first valid step, (batch, action size); None if it is not known.
            valid: (batch, time) bool, False for padding, on either side; what is predicted there has no meaning.
            rewards: of the actions, (batch, time); only models with reward as input look at them, and need them.
            previous_reward: of the previous action, (batch,); where both are inputs, both are given or neither.
            state: the state after the steps before these, as returned here or by `step`.

        Returns:
            Actions (batch, time, action size) and the state after the last step.
        """
        previous = previous_action, previous_reward
        predicted, state = self._predict(states, actions, returns_to_go, timesteps, previous, valid, rewards, state)
        return self._unscale_action(predicted), state

    def step(
        self,
        observation: Tensor,
        previous_action: Tensor,
        return_to_go: Tensor,
        timestep: Tensor,
        state: tuple[State, ...],
        previous_reward: Tensor | None = None,
    ) -> tuple[Tensor, tuple[State, ...]]:
        """Predicts the action of the next step: `forward` on one step, from the state of all before.

        Args:
            observation: (batch, observation size).
            previous_action: the action really taken before it, (batch, action size); not looked at where timestep is 0.
            return_to_go: (batch,).
            timestep: (batch,).
            state: from `initial_state`, or as returned by the step before.
            previous_reward: of that action, (batch,), for models with reward as input.

        Returns:
            The action (batch, action size) and the new state.
        """
        predicted, state = self.forward(
            observation.unsqueeze(1),
            previous_action.unsqueeze(1),
            return_to_go.unsqueeze(1),
            timestep.unsqueeze(1),
            previous_action,
            rewards=None if previous_reward is None else previous_reward.unsqueeze(1),
            previous_reward=previous_reward,
            state=state,
        )
        return predicted.squeeze(1), state

    def loss(
        self,
        states: Tensor,
        actions: Tensor,
        returns_to_go: Tensor,
        timesteps: Tensor,
        previous_action: Tensor | None = None,
        valid: Tensor | None = None,
        rewards: Tensor | None = None,
        previous_reward: Tensor | None = None,
        counted: Tensor | None = None,
        state: tuple[State, ...] | None = None,
    ) -> Tensor:
        """Mean squared error of the predicted actions, scaled to [-1, 1], over valid steps only (paper, section 3).

        Args as `forward`, and counted: (batch, time) bool, the valid steps to take the mean over; None for all.
        """
        return self.loss_and_state(
            states, actions, returns_to_go, timesteps, previous_action, valid, rewards, previous_reward, counted, state
        )[0]

    def loss_and_state(
        self,
        states: Tensor,
        actions: Tensor,
        returns_to_go: Tensor,
        timesteps: Tensor,
        previous_action: Tensor | None = None,
        valid: Tensor | None = None,
        rewards: Tensor | None = None,
        previous_reward: Tensor | None = None,
        counted: Tensor | None = None,
        state: tuple[State, ...] | None = None,
    ) -> tuple[Tensor, tuple[State, ...]]:
        """The `loss`, and the state after the last step for the segment that follows."""
        previous = previous_action, previous_reward
        predicted, state = self._predict(states, actions, returns_to_go, timesteps, previous, valid, rewards, state)
        error = (predicted.float() - self._scale_action(actions)).square().mean(-1)
        counted = valid if counted is None else counted
        loss = error.mean() if counted is None else torch.where(counted, error, 0.0).sum() / counted.sum().clamp(min=1)
        return loss, state

    def _predict(
        self,
        states: Tensor,
        actions: Tensor,
        returns_to_go: Tensor,
        timesteps: Tensor,
        previous: tuple[Tensor | None, Tensor | None],
        valid: Tensor | None,
        rewards: Tensor | None,
        state: tuple[State, ...] | None,
    ) -> tuple[Tensor, tuple[State, ...]]:
        self._check(states, actions, returns_to_go, timesteps, previous, valid, rewards)
        real = torch.ones_like(timesteps, dtype=torch.bool) if valid is None else valid
        first = (timesteps == 0) & real
        known = F.pad(real[:, :-1], (1, 0))
        opening = real & (real.cumsum(1) == 1)
        told = self.config.previous_action and previous[0] is not None, self.config.reward and previous[1] is not None
        if any(told):
            known = known | opening
        known = known & ~first
        columns: list[Tensor] = []
        for asked, given, before, scaled in (
            (self.config.previous_action, actions, previous[0], self._scale_action),
            (self.config.reward, rewards, previous[1], self._scale_reward),
        ):
            if asked and given is not None:
                shifted = scaled(_after(given, before, opening))
                columns.append(shifted.masked_fill(~known.unsqueeze(-1), 0.0))
        outcome = torch.cat([*columns, known.unsqueeze(-1).to(states.dtype)], -1) if columns else None
        observation = (states - self.observation_mean) / self.observation_std
        wanted = (returns_to_go / self.return_scale).unsqueeze(-1) if self.config.return_to_go else None
        parts = [part for part in (outcome, wanted, observation) if part is not None]
        if self.config.layout == "fused":
            x, reset = self._fuse(parts, timesteps), first
        else:
            x = self._interleave(parts, timesteps)
            never = [torch.zeros_like(first)] * (len(parts) - 1)
            reset = torch.stack([first, *never], dim=2).flatten(1, 2)
            live = [real] * len(parts) if outcome is None else [known & real, *[real] * (len(parts) - 1)]
            valid = torch.stack(live, dim=2).flatten(1, 2)
        x = self.dropout(self.embed_norm(x))
        states_before = state or (None,) * len(self.blocks)
        states_after = []
        for number, (block, before_block) in enumerate(zip(self.blocks, states_before, strict=True), start=1):
            # After the last mixer nothing but the last token of each step is read.
            every = self.tokens_per_step if number == len(self.blocks) else 1
            x, after_block = block(x, before_block, reset, valid, every)
            states_after.append(after_block)
        return torch.tanh(self.head(self.norm(x))), tuple(states_after)

    def embeddings(self) -> list[tuple[Tensor, Tensor | None]]:
        """Weight, inputs last, and bias of each part of a step's input: outcome, return-to-go and observation.

        The outcome's inputs are (previous action, previous reward, 1), zeros where there is no step before: its bias
        is the weight of the 1, so nothing is added then.
        """
        config = self.config
        found: list[tuple[Tensor, Tensor | None]] = []
        if self.knows_outcome:
            layers = [self.embed_action] if config.previous_action else []
            layers += [self.embed_reward] if config.reward else []
            bias = layers[0].bias.unsqueeze(-1)
            found.append((torch.cat([*(layer.weight for layer in layers), bias], -1), None))
        if config.return_to_go:
            found.append((self.embed_return.weight, self.embed_return.bias))
        return [*found, (self.embed_observation.weight, self.embed_observation.bias)]

    def _interleave(self, parts: list[Tensor], timesteps: Tensor) -> Tensor:
        """One token for each part of a step's input."""
        tokens = [F.linear(part, *layer) for part, layer in zip(parts, self.embeddings(), strict=True)]
        if self.config.timesteps != "none":
            times = [self.embed_timesteps(timesteps)] * len(tokens)
            if self.knows_outcome:
                times[0] = self.embed_timesteps((timesteps - 1).clamp(min=0))
            tokens = [token + time for token, time in zip(tokens, times, strict=True)]
        return torch.stack(tokens, dim=2).flatten(1, 2)

    def _fuse(self, parts: list[Tensor], timesteps: Tensor) -> Tensor:
        """One token a step, the sum of the embeddings of its parts: one product with the weights side by side."""
        layers = self.embeddings()
        bias = torch.stack([bias for _, bias in layers if bias is not None]).sum(0)
        x = F.linear(torch.cat(parts, -1), torch.cat([weight for weight, _ in layers], -1), bias)
        return x if self.config.timesteps == "none" else x + self.embed_timesteps(timesteps)

    def _mixers(self) -> Iterator[Mixer]:
        return (cast(Block, block).mixer for block in self.blocks)

    def embed_timesteps(self, timesteps: Tensor) -> Tensor:
        """What numbers of steps add to a token, (..., width)."""
        if self.config.timesteps == "learned":
            return self.embed_timestep(timesteps)  # type: ignore[no-any-return]
        if self.config.timesteps == "first":
            return (timesteps == 0).unsqueeze(-1) * self.embed_first
        return _sinusoids(timesteps, self.config.width).to(self.head.weight.dtype)

    def _scale_action(self, action: Tensor) -> Tensor:
        return (action - self.action_low) / (self.action_high - self.action_low) * 2 - 1

    def _scale_reward(self, reward: Tensor) -> Tensor:
        return reward.unsqueeze(-1) / self.reward_scale

    def _unscale_action(self, action: Tensor) -> Tensor:
        raw = (action + 1) / 2 * (self.action_high - self.action_low) + self.action_low
        # Rounding may not carry a saturated action out of its bounds.
        return torch.minimum(torch.maximum(raw, self.action_low), self.action_high)

    def _check(
        self,
        states: Tensor,
        actions: Tensor,
        returns_to_go: Tensor,
        timesteps: Tensor,
        previous: tuple[Tensor | None, Tensor | None],
        valid: Tensor | None,
        rewards: Tensor | None,
    ) -> None:
        batch_time = tuple(states.shape[:2])
        expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {
            "states": (states, (*batch_time, self.observation_size)),
            "actions": (actions, (*batch_time, self.action_size)),
            "returns_to_go": (returns_to_go, batch_time),
            "timesteps": (timesteps, batch_time),
        }
        if previous[0] is not None:
            expected["previous_action"] = (previous[0], (batch_time[0], self.action_size))
        if self.config.reward:
            if rewards is None:
                raise InvalidInput("this model has reward as input; give rewards")
            expected["rewards"] = (rewards, batch_time)
            if previous[1] is not None:
                expected["previous_reward"] = (previous[1], batch_time[:1])
            if self.config.previous_action and (previous[0] is None) != (previous[1] is None):
                raise InvalidInput("this model has action and reward as input; give both of the step before or neither")
        if valid is not None:
            expected["valid"] = (valid, batch_time)
        for name, (given, shape) in expected.items():
            if tuple(given.shape) != shape or 0 in shape[:2]:
                raise InvalidInput(f"{name} has shape {tuple(given.shape)}; expected {shape}, with no dimension of 0")
        if valid is not None and valid.dtype != torch.bool:
            raise InvalidInput(f"valid is {valid.dtype}; expected torch.bool")
        # On a GPU the look at the values would hold up the host; training and acting check them before.
        if self.config.timesteps == "learned" and timesteps.device.type == "cpu":
            longest = int(timesteps.max())
            if longest >= self.config.max_steps:
                raise InvalidInput(
                    f"timestep {longest} is beyond the learned embedding of {self.config.max_steps} steps"
                )


class Block(nn.Module):
    """A residual block: a mixer over time, then a two-layer perceptron, with a layer norm before or after each."""

    def __init__(self, config: ModelConfig, mixer: str) -> None:
        super().__init__()
        self.pre_norm = config.norm == "pre"
        self.mixer_norm = nn.LayerNorm(config.width)
        options = {"recency": True} if config.recency and mixer == "aaren" else {}
        self.mixer = mixers.build(mixer, config.width, config.heads, **options)
        self.perceptron_norm = nn.LayerNorm(config.width)
        self.expand = nn.Linear(config.width, 4 * config.width)
        self.contract = nn.Linear(4 * config.width, config.width)
        self.dropout = Dropout(config.dropout)

    def forward(
        self, x: Tensor, state: State, reset: Tensor | None, valid: Tensor | None, every: int = 1
    ) -> tuple[Tensor, State]:
        """Tokens (batch, time, width) through the block, of each `every` only the last, and the mixer's state."""
        mixed, state = self.mixer(self.mixer_norm(x) if self.pre_norm else x, state, reset, valid)
        if every > 1:
            x, mixed = x[:, every - 1 :: every], mixed[:, every - 1 :: every]
        x = self.dropout(mixed, onto=x)
        x = x if self.pre_norm else self.mixer_norm(x)
        # In two dimensions, where a linear layer's output is no view, rectifying it in place saves a pass over memory.
        into = (self.perceptron_norm(x) if self.pre_norm else x).flatten(0, 1)
        hidden = F.relu(self.expand(into), inplace=True)
        x = self.dropout(self.contract(hidden).view_as(x), onto=x)
        return (x if self.pre_norm else self.perceptron_norm(x)), state


def _after(given: Tensor, before: Tensor | None, opening: Tensor) -> Tensor:
    """What was given one step before each, (batch, time, ...): `before` at the opening step, where it is known."""
    shifted = torch.cat([torch.zeros_like(given[:, :1]), given[:, :-1]], 1)
    if before is None:
        return shifted
    opening = opening.view(*opening.shape, *[1] * (given.ndim - 2))
    return torch.where(opening, before.unsqueeze(1), shifted)


def _sinusoids(positions: Tensor, width: int) -> Tensor:
    """Sines and cosines of the positions (Vaswani et al. 2017, section 3.5), (..., width)."""
    half = (width + 1) // 2
    rates = torch.exp(torch.arange(half, device=positions.device) * (-math.log(10_000.0) / half))
    angles = positions.unsqueeze(-1) * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[..., :width]


def _initialise(module: nn.Module) -> None:
    """GPT-2's initialisation, which the Decision Transformer uses within its blocks.

    Not for the embeddings: without its random bias, the return token would be normalised to no more than its sign.
    """
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def config_from_dict(given: dict[str, Any]) -> ModelConfig:
    """A `ModelConfig` from its saved form.

    Raises:
        InvalidInput: a field is unknown, or a value does not fit.
    """
    unknown = sorted(set(given) - set(ModelConfig.__dataclass_fields__))
    if unknown:
        raise InvalidInput(f"the model's configuration has unknown fields {unknown}")
    return ModelConfig(**given)
