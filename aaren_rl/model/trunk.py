"""The trunk of a model: residual blocks of a mixer and a perceptron."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias, cast

from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl import mixers
from aaren_rl.mixers import Mixer, MixerSpec, State
from aaren_rl.model.config import ModelConfig
from aaren_rl.model.dropout import Dropout
from aaren_rl.model.trunk_stepper import BlockStepper, TrunkStepper

TrunkState: TypeAlias = tuple[State, ...]
"""The state of every block's mixer."""


class Trunk(nn.Module):
    """Blocks one after another, and of each step the hidden vector of its last token.

    Args:
        config: the model's shape.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.tokens_per_step = config.tokens_per_step
        self.blocks = nn.ModuleList(Block(config, spec) for spec in config.mixers)
        # Post-norm blocks end with a norm.
        self.norm = nn.LayerNorm(config.width) if config.norm == "pre" else nn.Identity()

    def initialise(self) -> None:
        """GPT-2's initialisation, which the Decision Transformer uses within its blocks.

        Not for the embeddings: without its random bias, the return token would be normalised to no more than its sign.
        """
        self.blocks.apply(_initialise)

    def forward(
        self,
        tokens: Tensor,
        state: TrunkState | None = None,
        reset: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> tuple[Tensor, TrunkState]:
        """Hidden vectors of all steps, continuing from a state.

        Args:
            tokens: (batch, time * tokens per step, width).
            state: the state after the tokens before these; None for none.
            reset: (batch, time * tokens per step) bool, True where an episode starts before the token.
            valid: (batch, time * tokens per step) bool, False for padding.

        Returns:
            Hidden vectors (batch, time, width) and the state after the last token.
        """
        x, after = tokens, []
        for block, before in zip(self.blocks, state or [None] * len(self.blocks), strict=True):
            # After the last mixer nothing but the last token of each step is read.
            every = self.tokens_per_step if block is self.blocks[-1] else 1
            x, state_after = block(x, before, reset, valid, every)  # (batch, time * tokens / every, width)
            after.append(state_after)
        return self.norm(x), tuple(after)

    def mixers(self) -> Iterator[Mixer]:
        """The mixer of every block."""
        return (cast(Block, block).mixer for block in self.blocks)

    def initial_state(self, batch_size: int) -> TrunkState:
        """The state before the first token of an episode."""
        return tuple(mixer.initial_state(batch_size) for mixer in self.mixers())

    def reset_state(self, state: TrunkState, rows: Tensor) -> TrunkState:
        """The state with the rows marked in `rows`, (batch,) bool, back at the start of an episode."""
        return tuple(mixer.reset_state(part, rows) for mixer, part in zip(self.mixers(), state, strict=True))

    def stepper(self, norm: nn.LayerNorm) -> TrunkStepper:
        """The trunk folded for acting.

        Args:
            norm: the layer norm whose outputs the trunk reads.
        """
        blocks = [cast(Block, block) for block in self.blocks]
        # A post-norm block reads what the last norm of the block before has left.
        read = [block.mixer_norm for block in blocks]
        if not blocks[0].pre_norm:
            read = [norm, *(block.perceptron_norm for block in blocks[:-1])]
        outputs = [self.tokens_per_step] * (len(blocks) - 1) + [1]
        steppers = [
            block.stepper(before, self.tokens_per_step, count)
            for block, before, count in zip(blocks, read, outputs, strict=True)
        ]
        return TrunkStepper(steppers, self.norm)


class Block(nn.Module):
    """A residual block: a mixer over time, then a two-layer perceptron, with a layer norm before or after each.

    Args:
        config: the model's shape.
        spec: of the mixer.
    """

    def __init__(self, config: ModelConfig, spec: MixerSpec) -> None:
        super().__init__()
        self.pre_norm = config.norm == "pre"
        self.mixer_norm = nn.LayerNorm(config.width)
        self.mixer = mixers.build(spec, config.width, config.heads)
        self.perceptron_norm = nn.LayerNorm(config.width)
        self.expand = nn.Linear(config.width, 4 * config.width)
        self.contract = nn.Linear(4 * config.width, config.width)
        self.dropout = Dropout(config.dropout)

    def forward(
        self, x: Tensor, state: State, reset: Tensor | None, valid: Tensor | None, every: int = 1
    ) -> tuple[Tensor, State]:
        """Tokens through the block.

        Args:
            x: (batch, time, width).
            state: of the mixer; None for none.
            reset: (batch, time) bool.
            valid: (batch, time) bool.
            every: keeps the last token of every so many.

        Returns:
            Tokens (batch, time / every, width) and the mixer's state.
        """
        mixed, state = self.mixer(self.mixer_norm(x) if self.pre_norm else x, state, reset, valid)
        if every > 1:
            x, mixed = x[:, every - 1 :: every], mixed[:, every - 1 :: every]  # (batch, time / every, width)
        x = self.dropout(mixed, onto=x)
        x = x if self.pre_norm else self.mixer_norm(x)
        # In two dimensions, where a linear layer's output is no view, rectifying it in place saves a pass over memory.
        into = (self.perceptron_norm(x) if self.pre_norm else x).flatten(0, 1)  # (batch * time, width)
        hidden = F.relu(self.expand(into), inplace=True)  # (batch * time, 4 * width)
        x = self.dropout(self.contract(hidden).view_as(x), onto=x)
        return (x if self.pre_norm else self.perceptron_norm(x)), state

    def stepper(self, read: nn.LayerNorm, tokens: int, outputs: int) -> BlockStepper:
        """The block folded for acting.

        Args:
            read: the layer norm whose outputs the mixer reads.
            tokens: tokens of a step.
            outputs: how many of them leave the block, the last ones.
        """
        norms, layers = (self.mixer_norm, self.perceptron_norm), (self.expand, self.contract)
        mixer = self.mixer.stepper(read, tokens, outputs)
        return BlockStepper(mixer, norms, layers, self.pre_norm, tokens, outputs)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
