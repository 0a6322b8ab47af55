"""One step of a decision model as a function of three arrays, for acting and for export."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.errors import InvalidInput
from aaren_rl.model import Block, DecisionModel

RETURN_TO_GO, TIMESTEP = 0, 1
"""Where they stand in a row of the state; the previous action and the mixers' states follow."""


class Step(nn.Module):
    """Acts like `DecisionModel.step`, with what does not change from step to step worked out beforehand.

    The scaling of observations, returns and actions is folded into the embeddings; the three embeddings, and each
    mixer's projections, are single products. All that is carried from step to step is one float64 row per
    environment: return-to-go, timestep, previous action, mixers' states. Later changes of the model's weights do not
    count.

    Args:
        model: to act with.

    Raises:
        InvalidInput: the state of a mixer is not of constant size.
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
        if not model.constant_memory:
            raise InvalidInput(
                f"the state of mixer {model.config.mixer!r} grows with every token; a step of constant size needs a "
                "mixer of constant memory, as aaren"
            )
        # A copy: what is folded stands still, so all of it has to.
        model = copy.deepcopy(model).eval()
        self.config, self.tokens = model.config, model.tokens_per_step
        self.observation_size, self.action_size = model.observation_size, model.action_size
        with torch.no_grad():
            weight, bias = _folded_embedding(model)
            self.register_buffer("embed_weight", weight)
            self.register_buffer("embed_bias", bias)
            self.embed_norm = model.embed_norm
            self.embed_timesteps = model.embed_timesteps
            blocks = [cast(Block, block) for block in model.blocks]
            self.blocks = nn.ModuleList(
                BlockStep(block, self.tokens, self.tokens if block is not blocks[-1] else 1) for block in blocks
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
        live = None if self.tokens == 1 else F.pad(known, (0, self.tokens - 1), value=1.0)
        # Tokens stay rows of a matrix: products with a bias are one operation then, in torch as in ONNX.
        given = torch.cat([previous.to(known.dtype), known, return_to_go.to(known.dtype), observation], -1)
        x = F.linear(given, self.embed_weight, self.embed_bias)
        x = x if self.tokens == 1 else x.view(-1, self.config.width)
        if self.config.timesteps != "none":
            x = x + self.times(timestep)
        x = _norm(self.embed_norm, x)
        for number, (block, before) in enumerate(zip(self.blocks, mixed, strict=True)):
            x, mixed[number] = block(x, before, live)
        action = torch.tanh(F.linear(_norm(self.norm, x), self.head.weight, self.head.bias))
        if not self.unit_range:
            action = action * self.half_range + self.middle
            # Rounding may not carry a saturated action out of its bounds.
            action = torch.minimum(torch.maximum(action, self.action_low), self.action_high)
        return action, torch.cat([return_to_go, timestep + 1, action.double(), *mixed], -1)

    def times(self, timestep: Tensor) -> Tensor:
        """What the timesteps, (batch, 1), add to the tokens, (batch * tokens, width)."""
        now = timestep.long()
        if self.tokens > 1:
            # The previous action belongs to the step before.
            now = torch.cat([(now - 1).clamp(min=0), now, now], -1)
        return self.embed_timesteps(now).view(-1, self.config.width)


class BlockStep(nn.Module):
    """A block, for the tokens of one step, all of which leave it, or only the last."""

    expand: Tensor
    expand_bias: Tensor
    contract: Tensor

    def __init__(self, block: Block, tokens: int, outputs: int) -> None:
        super().__init__()
        self.mixer_norm, self.perceptron_norm = block.mixer_norm, block.perceptron_norm
        self.tokens, self.outputs = tokens, outputs
        self.mixer = block.mixer.stepper(block.mixer_norm, tokens, outputs)
        # A hidden unit that is always 1 carries the bias of the second layer, whose product then adds to the tokens.
        always = torch.zeros_like(block.expand.weight[:1])
        self.register_buffer("expand", torch.cat([block.expand.weight, always]))
        self.register_buffer("expand_bias", F.pad(block.expand.bias, (0, 1), value=1.0))
        self.register_buffer("contract", torch.cat([block.contract.weight.t(), block.contract.bias[None]]))

    def forward(self, x: Tensor, state: Tensor, live: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens (batch * tokens, width) and the mixer's row of state (batch, size)."""
        normed = _norm(self.mixer_norm, x)
        if self.outputs < self.tokens:
            x = x.view(-1, self.tokens, x.shape[-1])[:, -1]
        x, state = self.mixer(normed, x, state, live)
        hidden = F.relu(F.linear(_norm(self.perceptron_norm, x), self.expand, self.expand_bias))
        return torch.addmm(x, hidden, self.contract), state


def _norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    # Calling the module itself would cost as much again as the operation.
    return F.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)


def _folded_embedding(model: DecisionModel) -> tuple[Tensor, Tensor]:
    """All embeddings as one weight and bias for (previous action, whether known, return-to-go, observation), unscaled.

    Its output is one token, or the three of a step one after another.
    """
    scale = 2 / (model.action_high - model.action_low)
    action = model.embed_action.weight * scale
    # The action's bias is the weight of whether it is known, so without an action nothing of it is left.
    unknown = (model.embed_action.bias - action @ model.action_low - model.embed_action.weight.sum(-1)).unsqueeze(-1)
    wanted = model.embed_return.weight / model.return_scale
    observation = model.embed_observation.weight / model.observation_std
    bias = model.embed_observation.bias - observation @ model.observation_mean
    parts = [torch.cat([action, unknown], -1), wanted, observation]
    if model.tokens_per_step == 1:
        return torch.cat(parts, -1), model.embed_return.bias + bias
    blocks: Tensor = torch.block_diag(*parts)  # type: ignore[no-untyped-call]
    return blocks, torch.cat([torch.zeros_like(bias), model.embed_return.bias, bias])
