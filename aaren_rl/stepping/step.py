"""One step of a decision model as a function of three arrays, for acting and for export."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.errors import InvalidInput
from aaren_rl.model import Block, DecisionModel, ModelConfig

RETURN_TO_GO, TIMESTEP, ACTION = 0, 1, 2
"""Where they stand in a row of the state, the previous action from ACTION on; the mixers' states follow."""


class Step(nn.Module):
    """Acts like `DecisionModel.step`, with what does not change from step to step worked out beforehand.

    The scaling of observations, returns and actions is folded into the embeddings; the three embeddings, and each
    mixer's projections, are single products. All that is carried from step to step is one float64 row per
    environment: return-to-go, timestep, previous action, mixers' states. Later changes of the model's weights do not
    count.

    Args:
        model: to act with.

    Raises:
        InvalidInput: the state of a mixer grows.
    """

    start: Tensor
    embed_weight: Tensor
    embed_bias: Tensor
    half_range: Tensor
    middle: Tensor
    action_low: Tensor
    action_high: Tensor

    def __init__(self, model: DecisionModel) -> None:
        super().__init__()
        if not model.fixed_size:
            raise InvalidInput(
                f"the state of mixer {model.config.mixer!r} grows with every token; a step of constant size needs "
                "mixers of constant memory or with a window, as aaren or local"
            )
        # A copy: what is folded stands still, so all of it has to.
        model = copy.deepcopy(model).eval()
        self.config, self.tokens = model.config, model.tokens_per_step
        # At the first step of an episode there is no token of the step before.
        self.first_may_miss = self.tokens > 1 and model.knows_outcome
        self.observation_size, self.action_size = model.observation_size, model.action_size
        with torch.no_grad():
            weight, bias = _folded_embedding(model)
            self.register_buffer("embed_weight", weight)
            self.register_buffer("embed_bias", bias)
            self.embed_norm = model.embed_norm
            self.embed_timesteps = model.embed_timesteps
            blocks = [cast(Block, block) for block in model.blocks]
            # A post-norm block reads what the last norm of the block before has left.
            read = [block.mixer_norm for block in blocks] if model.config.norm == "pre" else [model.embed_norm]
            read += [block.perceptron_norm for block in blocks]
            self.blocks = nn.ModuleList(
                BlockStep(block, norm, self.tokens, self.tokens if block is not blocks[-1] else 1)
                for block, norm in zip(blocks, read, strict=False)
            )
            self.norm, self.head = model.norm, model.head
            self.register_buffer("half_range", (model.action_high - model.action_low) / 2)
            self.register_buffer("middle", (model.action_high + model.action_low) / 2)
            self.register_buffer("action_low", model.action_low)
            self.register_buffer("action_high", model.action_high)
            self.unit_range = bool(((model.action_low == -1) & (model.action_high == 1)).all())
            mixed = [cast(BlockStep, block).mixer.start for block in self.blocks]
            self.sizes = [len(part) for part in mixed]
            self.register_buffer("start", torch.cat([mixed[0].new_zeros(2 + self.action_size), *mixed]))

    def initial_state(self, target_return: Tensor) -> Tensor:
        """Rows of state, (batch, state size), before episodes of which a return is asked, (batch,)."""
        state = self.start.repeat(len(target_return), 1)
        state[:, RETURN_TO_GO] = target_return
        return state

    def forward(self, observation: Tensor, reward: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The next action.

        Args:
            observation: (batch, observation size), in the environment's units, like all here.
            reward: of the action before, (batch,); 0 at the first step of an episode.
            state: (batch, state size) float64, from `initial_state` or as returned by the step before.

        Returns:
            The action (batch, action size) and the new state.
        """
        return_to_go, timestep, previous, *mixed = torch.split(state, [1, 1, self.action_size, *self.sizes], -1)
        return_to_go = return_to_go - reward.unsqueeze(-1)
        known = timestep.to(observation.dtype).clamp(max=1.0)
        live = F.pad(known, (0, self.tokens - 1), value=1.0) if self.first_may_miss else None
        # Tokens stay rows of a matrix: products with a bias are one operation then, in torch as in ONNX.
        given = inputs(self.config, previous.to(known.dtype), reward, known, return_to_go.to(known.dtype), observation)
        x = F.linear(torch.cat(given, -1), self.embed_weight, self.embed_bias)
        x = x if self.tokens == 1 else x.view(-1, self.config.width)
        if self.config.timesteps != "none":
            x = x + self.times(timestep)
        x = _norm(self.embed_norm, x)
        for number, (block, before) in enumerate(zip(self.blocks, mixed, strict=True)):
            x, mixed[number] = block(x, before, live)
        x = _norm(self.norm, x) if isinstance(self.norm, nn.LayerNorm) else x
        action = torch.tanh(F.linear(x, self.head.weight, self.head.bias))
        if not self.unit_range:
            action = action * self.half_range + self.middle
            # Rounding may not carry a saturated action out of its bounds.
            action = torch.minimum(torch.maximum(action, self.action_low), self.action_high)
        return action, torch.cat([return_to_go, timestep + 1, action.double(), *mixed], -1)

    def times(self, timestep: Tensor) -> Tensor:
        """What the timesteps, (batch, 1), add to the tokens, (batch * tokens, width)."""
        now = timestep.long()
        if self.tokens > 1:
            # The outcome belongs to the step before.
            before = (now - 1).clamp(min=0) if self.first_may_miss else now
            now = torch.cat([before, *[now] * (self.tokens - 1)], -1)
        return self.embed_timesteps(now).view(-1, self.config.width)


class BlockStep(nn.Module):
    """A block, for the tokens of one step, all of which leave it, or only the last."""

    expand: Tensor
    expand_bias: Tensor
    contract: Tensor

    def __init__(self, block: Block, read: nn.LayerNorm, tokens: int, outputs: int) -> None:
        super().__init__()
        self.mixer_norm, self.perceptron_norm, self.pre_norm = block.mixer_norm, block.perceptron_norm, block.pre_norm
        self.tokens, self.outputs = tokens, outputs
        self.mixer = block.mixer.stepper(read, tokens, outputs)
        # A hidden unit that is always 1 carries the bias of the second layer, whose product then adds to the tokens.
        always = torch.zeros_like(block.expand.weight[:1])
        self.register_buffer("expand", torch.cat([block.expand.weight, always]))
        self.register_buffer("expand_bias", F.pad(block.expand.bias, (0, 1), value=1.0))
        self.register_buffer("contract", torch.cat([block.contract.weight.t(), block.contract.bias[None]]))

    def forward(self, x: Tensor, state: Tensor, live: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens (batch * tokens, width) and the mixer's row of state (batch, size)."""
        normed = _norm(self.mixer_norm, x) if self.pre_norm else x
        if self.outputs < self.tokens:
            x = x.view(-1, self.tokens, x.shape[-1])[:, -1]
        x, state = self.mixer(normed, x, state, live)
        x = x if self.pre_norm else _norm(self.mixer_norm, x)
        into = _norm(self.perceptron_norm, x) if self.pre_norm else x
        hidden = F.relu(F.linear(into, self.expand, self.expand_bias))
        x = torch.addmm(x, hidden, self.contract)
        return (x if self.pre_norm else _norm(self.perceptron_norm, x)), state


def _norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    # Calling the module itself would cost as much again as the operation.
    return F.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)


def inputs(
    config: ModelConfig, previous_action: Any, reward: Any, known: Any, return_to_go: Any, observation: Any
) -> list[Any]:
    """What a step's embedding reads, side by side: arrays or tensors, (batch, size) each; the reward is (batch,).

    Args:
        config: says which of them are inputs.
        previous_action: zeros where there was none.
        reward: of that action.
        known: (batch, 1), 0 at the first step of an episode, else 1.
        return_to_go: (batch, 1).
        observation: (batch, observation size).
    """
    outcome = ([previous_action] if config.previous_action else []) + (
        [reward[:, None] * known] if config.reward else []
    )
    wanted = [return_to_go] if config.return_to_go else []
    return [*outcome, *([known] if outcome else []), *wanted, observation]


def _folded_embedding(model: DecisionModel) -> tuple[Tensor, Tensor]:
    """All embeddings as one weight and bias for what `inputs` gives, unscaled.

    Its output is one token, or those of a step one after another.
    """
    layers = model.embeddings()
    observation, bias = layers[-1]
    observation = observation / model.observation_std
    parts = [observation]
    biases = [cast(Tensor, bias) - observation @ model.observation_mean]
    if model.config.return_to_go:
        wanted, bias = layers[-2]
        parts.insert(0, wanted / model.return_scale)
        biases.insert(0, cast(Tensor, bias))
    if model.knows_outcome:
        outcome = layers[0][0].clone()
        if model.config.previous_action:
            action = outcome[:, : model.action_size]
            scaled = action * (2 / (model.action_high - model.action_low))
            # What is added to a scaled action is added where there is an action, so it goes to the last column.
            outcome[:, -1] -= scaled @ model.action_low + action.sum(-1)
            outcome[:, : model.action_size] = scaled
        if model.config.reward:
            outcome[:, -2] /= model.reward_scale
        parts.insert(0, outcome)
        biases.insert(0, torch.zeros_like(biases[0]))
    if model.tokens_per_step == 1:
        return torch.cat(parts, -1), torch.stack(biases).sum(0)
    blocks: Tensor = torch.block_diag(*parts)  # type: ignore[no-untyped-call]
    return blocks, torch.cat(biases)
