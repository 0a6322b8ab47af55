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
from aaren_rl.dropout import Dropout
from aaren_rl.errors import InvalidInput
from aaren_rl.mixers import Mixer, State

Layout = Literal["interleaved", "fused"]
Timesteps = Literal["none", "learned", "sinusoidal"]


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decision model; the defaults are the Decision Transformer's (Chen et al. 2021, appendix A), save two.

    The mixer, and the timestep embedding: it is left out so that acting by streaming and training on windows agree.
    """

    mixer: str = "aaren"
    """What mixes tokens over time (aaren_rl.mixers.names() lists them)."""
    blocks: int = 3
    """Number of blocks, each a mixer and a two-layer perceptron."""
    width: int = 128
    """Size of a token."""
    heads: int = 1
    """Heads of each mixer; must divide the width."""
    dropout: float = 0.1
    """Dropout on the tokens and on what each block adds."""
    layout: Layout = "interleaved"
    """Tokens per step: three (previous action, return-to-go, observation), as in the paper, or all fused in one."""
    timesteps: Timesteps = "none"
    """Embedding of the step's number in its episode. With "learned", trained on windows and acting by streaming part
    ways; "sinusoidal" has no longest episode."""
    max_steps: int = 1000
    """Longest episode that a learned timestep embedding can hold."""

    def __post_init__(self) -> None:
        mixers.get(self.mixer)
        for name, choices in (("layout", get_args(Layout)), ("timesteps", get_args(Timesteps))):
            if getattr(self, name) not in choices:
                raise InvalidInput(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(choices)}")
        if not 0 <= self.dropout < 1:
            raise InvalidInput(f"dropout is {self.dropout}; expected a number from 0 up to but not 1")
        for name in ("blocks", "width", "heads", "max_steps"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.width % self.heads:
            raise InvalidInput(f"width {self.width} with {self.heads} heads; expected a multiple of the heads")


@dataclass(frozen=True)
class Scaling:
    """Maps raw environment units to what the network sees; kept with the weights.

    Attributes:
        observation_mean: (observation size,).
        observation_std: (observation size,), positive.
        action_low: (action size,), mapped to -1.
        action_high: (action size,), mapped to 1.
        return_scale: returns-to-go are divided by this.
    """

    observation_mean: np.ndarray
    observation_std: np.ndarray
    action_low: np.ndarray
    action_high: np.ndarray
    return_scale: float = 1000.0

    def __post_init__(self) -> None:
        if self.observation_mean.shape != self.observation_std.shape or self.action_low.shape != self.action_high.shape:
            raise InvalidInput("mean and std, or low and high, differ in shape; expected one value per component each")
        if not (self.observation_std > 0).all() or not (self.action_high > self.action_low).all():
            raise InvalidInput("every observation_std must be positive and every action_high above its action_low")
        if not self.return_scale > 0:
            raise InvalidInput(f"return_scale is {self.return_scale}; expected a positive number")


class DecisionModel(nn.Module):
    """A Decision Transformer (Chen et al. 2021, arXiv 2106.01345, section 3) over a swappable mixer.

    Each step t of a trajectory is three things: the action before it a_{t-1} (nothing at the first step of an
    episode), the return-to-go R_t and the observation o_t. In the interleaved layout they are three tokens, in the
    fused layout their embeddings are summed to one; the action a_t is read off the last token of the step. This is
    the order in which things are known while acting, so `forward` over a trajectory and `step` along it are one
    function.

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

    def __init__(self, config: ModelConfig, scaling: Scaling) -> None:
        super().__init__()
        self.config = config
        for name, value in asdict(scaling).items():
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32).clone())
        self.observation_size, self.action_size = scaling.observation_mean.size, scaling.action_low.size
        self.embed_observation = nn.Linear(self.observation_size, config.width)
        self.embed_action = nn.Linear(self.action_size, config.width)
        self.embed_return = nn.Linear(1, config.width)
        if config.timesteps == "learned":
            self.embed_timestep = nn.Embedding(config.max_steps, config.width)
        self.embed_norm = nn.LayerNorm(config.width)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, self.action_size)
        self.blocks.apply(_initialise)

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one step of a trajectory takes."""
        return 3 if self.config.layout == "interleaved" else 1

    @property
    def constant_memory(self) -> bool:
        """Whether the state has the same size at every step."""
        return all(mixer.memory == "constant" for mixer in self._mixers())

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
            state: the state after the steps before these, as returned here or by `step`.

        Returns:
            Actions (batch, time, action size) and the state after the last step.
        """
        predicted, state = self._predict(states, actions, returns_to_go, timesteps, previous_action, valid, state)
        return self._unscale_action(predicted), state

    def step(
        self,
        observation: Tensor,
        previous_action: Tensor,
        return_to_go: Tensor,
        timestep: Tensor,
        state: tuple[State, ...],
    ) -> tuple[Tensor, tuple[State, ...]]:
        """Predicts the action of the next step: `forward` on one step, from the state of all before.

        Args:
            observation: (batch, observation size).
            previous_action: the action really taken before it, (batch, action size); not looked at where timestep is 0.
            return_to_go: (batch,).
            timestep: (batch,).
            state: from `initial_state`, or as returned by the step before.

        Returns:
            The action (batch, action size) and the new state.
        """
        predicted, state = self.forward(
            observation.unsqueeze(1),
            previous_action.unsqueeze(1),
            return_to_go.unsqueeze(1),
            timestep.unsqueeze(1),
            previous_action,
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
    ) -> Tensor:
        """Mean squared error of the predicted actions, scaled to [-1, 1], over valid steps only (paper, section 3)."""
        predicted, _ = self._predict(states, actions, returns_to_go, timesteps, previous_action, valid, None)
        error = (predicted.float() - self._scale_action(actions)).square().mean(-1)
        return error.mean() if valid is None else torch.where(valid, error, 0.0).sum() / valid.sum().clamp(min=1)

    def _predict(
        self,
        states: Tensor,
        actions: Tensor,
        returns_to_go: Tensor,
        timesteps: Tensor,
        previous_action: Tensor | None,
        valid: Tensor | None,
        state: tuple[State, ...] | None,
    ) -> tuple[Tensor, tuple[State, ...]]:
        self._check(states, actions, returns_to_go, timesteps, previous_action, valid)
        observation = (states - self.observation_mean) / self.observation_std
        wanted = (returns_to_go / self.return_scale).unsqueeze(-1)
        real = torch.ones_like(timesteps, dtype=torch.bool) if valid is None else valid
        first = (timesteps == 0) & real
        before, known = F.pad(actions[:, :-1], (0, 0, 1, 0)), F.pad(real[:, :-1], (1, 0))
        if previous_action is not None:
            opening = real & (real.cumsum(1) == 1)
            before = torch.where(opening.unsqueeze(-1), previous_action.unsqueeze(1), before)
            known = known | opening
        known = known & ~first
        acted = self._scale_action(before).masked_fill(~known.unsqueeze(-1), 0.0)
        if self.config.layout == "fused":
            x, reset = self._fuse(acted, known, wanted, observation, timesteps), first
        else:
            x = self._interleave(acted, wanted, observation, timesteps)
            never = torch.zeros_like(first)
            reset = torch.stack([first, never, never], dim=2).flatten(1, 2)
            valid = torch.stack([known & real, real, real], dim=2).flatten(1, 2)
        x = self.dropout(self.embed_norm(x))
        states_before = state or (None,) * len(self.blocks)
        states_after = []
        for number, (block, before_block) in enumerate(zip(self.blocks, states_before, strict=True), start=1):
            # After the last mixer nothing but the last token of each step is read.
            every = self.tokens_per_step if number == len(self.blocks) else 1
            x, after_block = block(x, before_block, reset, valid, every)
            states_after.append(after_block)
        return torch.tanh(self.head(self.norm(x))), tuple(states_after)

    def _interleave(self, acted: Tensor, wanted: Tensor, observation: Tensor, timesteps: Tensor) -> Tensor:
        """Three tokens a step: previous action, return-to-go, observation."""
        tokens = [self.embed_action(acted), self.embed_return(wanted), self.embed_observation(observation)]
        if self.config.timesteps != "none":
            now = self.embed_timesteps(timesteps)
            # The previous action belongs to the step before.
            times = [self.embed_timesteps((timesteps - 1).clamp(min=0)), now, now]
            tokens = [token + time for token, time in zip(tokens, times, strict=True)]
        return torch.stack(tokens, dim=2).flatten(1, 2)

    def _fuse(self, acted: Tensor, known: Tensor, wanted: Tensor, observation: Tensor, timesteps: Tensor) -> Tensor:
        """One token a step, the sum of the three embeddings, without the previous action where it is not known."""
        # One product with the weights side by side; the action's bias is the weight of whether the action is known.
        given = torch.cat([acted, known.unsqueeze(-1).to(acted.dtype), wanted, observation], -1)
        action, wish, observed = self.embed_action, self.embed_return, self.embed_observation
        weight = torch.cat([action.weight, action.bias.unsqueeze(-1), wish.weight, observed.weight], -1)
        x = F.linear(given, weight, wish.bias + observed.bias)
        return x if self.config.timesteps == "none" else x + self.embed_timesteps(timesteps)

    def _mixers(self) -> Iterator[Mixer]:
        return (cast(Block, block).mixer for block in self.blocks)

    def embed_timesteps(self, timesteps: Tensor) -> Tensor:
        """What numbers of steps add to a token, (..., width)."""
        if self.config.timesteps == "learned":
            return self.embed_timestep(timesteps)  # type: ignore[no-any-return]
        return _sinusoids(timesteps, self.config.width).to(self.embed_return.weight.dtype)

    def _scale_action(self, action: Tensor) -> Tensor:
        return (action - self.action_low) / (self.action_high - self.action_low) * 2 - 1

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
        previous_action: Tensor | None,
        valid: Tensor | None,
    ) -> None:
        batch_time = tuple(states.shape[:2])
        expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {
            "states": (states, (*batch_time, self.observation_size)),
            "actions": (actions, (*batch_time, self.action_size)),
            "returns_to_go": (returns_to_go, batch_time),
            "timesteps": (timesteps, batch_time),
        }
        if previous_action is not None:
            expected["previous_action"] = (previous_action, (batch_time[0], self.action_size))
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
    """A pre-norm residual block: a mixer over time, then a two-layer perceptron (GPT-2, Radford et al. 2019)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.mixer_norm = nn.LayerNorm(config.width)
        self.mixer = mixers.get(config.mixer)(config.width, config.heads)
        self.perceptron_norm = nn.LayerNorm(config.width)
        self.expand = nn.Linear(config.width, 4 * config.width)
        self.contract = nn.Linear(4 * config.width, config.width)
        self.dropout = Dropout(config.dropout)

    def forward(
        self, x: Tensor, state: State, reset: Tensor | None, valid: Tensor | None, every: int = 1
    ) -> tuple[Tensor, State]:
        """Tokens (batch, time, width) through the block, of each `every` only the last, and the mixer's state."""
        mixed, state = self.mixer(self.mixer_norm(x), state, reset, valid)
        if every > 1:
            x, mixed = x[:, every - 1 :: every], mixed[:, every - 1 :: every]
        x = self.dropout(mixed, onto=x)
        # In two dimensions, where a linear layer's output is no view, rectifying it in place saves a pass over memory.
        hidden = F.relu(self.expand(self.perceptron_norm(x).flatten(0, 1)), inplace=True)
        return self.dropout(self.contract(hidden).view_as(x), onto=x), state


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
