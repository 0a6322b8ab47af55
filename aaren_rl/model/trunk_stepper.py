"""The trunk of a model folded for acting, in torch and in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers import NumpyStepper, Stepper
from aaren_rl.model.inputs_stepper import layer_norm
from aaren_rl.ops.numpy_layers import Array, centre_outputs, fold_norm, normalise, to_array


class TrunkStepper(nn.Module):
    """Steps all blocks, for the tokens of one step.

    Args:
        blocks: all blocks.
        norm: the last layer norm; the identity if blocks end with one.
    """

    def __init__(self, blocks: Sequence[BlockStepper], norm: nn.Module) -> None:
        super().__init__()
        self.blocks, self.norm = nn.ModuleList(blocks), norm

    def starts(self) -> list[Tensor]:
        """The row of state of every mixer before the first step of an episode."""
        return [cast(BlockStepper, block).mixer.start for block in self.blocks]

    @property
    def sizes(self) -> list[int]:
        """Columns of every mixer's row of state."""
        return [len(start) for start in self.starts()]

    def forward(self, x: Tensor, pieces: tuple[Tensor, ...], live: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """The hidden vector of the step.

        Args:
            x: tokens, (batch * tokens, width).
            pieces: columns of the rows of state, of the `sizes`.
            live: (batch, tokens), 0 for missing tokens, else 1; None if none is missing.

        Returns:
            Hidden vectors (batch, width) and the new pieces.
        """
        after = []
        for block, before in zip(self.blocks, pieces, strict=True):
            x, piece = block(x, before, live)
            after.append(piece)
        return (layer_norm(self.norm, x) if isinstance(self.norm, nn.LayerNorm) else x), after

    def to_numpy(self) -> NumpyTrunk | None:
        """The same in NumPy; None if a mixer has no such form, or the norms come after the parts of a block."""
        if not isinstance(self.norm, nn.LayerNorm):
            return None
        blocks = []
        for module in self.blocks:
            block = cast(BlockStepper, module)
            mixer = block.mixer.to_numpy(block.mixer_norm)
            if mixer is None:
                return None
            blocks.append(NumpyBlock(block, mixer))
        return NumpyTrunk(blocks, self.sizes, self.norm)


class BlockStepper(nn.Module):
    """A block for the tokens of one step, of which all leave it, or only the last.

    Args:
        mixer: of the block.
        norms: the layer norms of the mixer and of the perceptron.
        layers: the two layers of the perceptron.
        pre_norm: True if the norms come before their parts.
        tokens: tokens of a step.
        outputs: how many of them leave the block, the last ones.
    """

    expand: Tensor
    expand_bias: Tensor
    contract: Tensor

    def __init__(
        self,
        mixer: Stepper,
        norms: tuple[nn.LayerNorm, nn.LayerNorm],
        layers: tuple[nn.Linear, nn.Linear],
        pre_norm: bool,
        tokens: int,
        outputs: int,
    ) -> None:
        super().__init__()
        self.mixer, (self.mixer_norm, self.perceptron_norm) = mixer, norms
        self.pre_norm, self.tokens, self.outputs = pre_norm, tokens, outputs
        first, second = layers
        # A hidden unit that is always 1 carries the bias of the second layer, whose product then adds to the tokens.
        self.register_buffer("expand", torch.cat([first.weight, torch.zeros_like(first.weight[:1])]))
        self.register_buffer("expand_bias", F.pad(first.bias, (0, 1), value=1.0))
        self.register_buffer("contract", torch.cat([second.weight.t(), second.bias[None]]))

    def forward(self, x: Tensor, state: Tensor, live: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens (batch * tokens, width) to (batch * outputs, width), and the mixer's row of state (batch, size)."""
        normed = layer_norm(self.mixer_norm, x) if self.pre_norm else x
        if self.outputs < self.tokens:
            x = x.view(-1, self.tokens, x.shape[-1])[:, -1]
        x, state = self.mixer(normed, x, state, live)
        x = x if self.pre_norm else layer_norm(self.mixer_norm, x)
        into = layer_norm(self.perceptron_norm, x) if self.pre_norm else x
        hidden = F.relu(F.linear(into, self.expand, self.expand_bias))  # (batch * outputs, 4 * width + 1)
        x = torch.addmm(x, hidden, self.contract)
        return (x if self.pre_norm else layer_norm(self.perceptron_norm, x)), state


class NumpyTrunk:
    """Computes what `TrunkStepper` computes, save the scale and shift of its last layer norm, which the head folds.

    Args:
        blocks: all blocks.
        sizes: columns of every mixer's row of state.
        norm: the last layer norm.
    """

    def __init__(self, blocks: list[NumpyBlock], sizes: list[int], norm: nn.LayerNorm) -> None:
        self.blocks, self.sizes, self.norm = blocks, sizes, norm

    def __call__(self, x: Array, before: Array, after: Array, live: Array | None) -> Array:
        """Hidden vectors (batch, width); reads the mixers' rows of state and writes those after."""
        start = 0
        for block, size in zip(self.blocks, self.sizes, strict=True):
            x = block(x, before[:, start : start + size], after[:, start : start + size], live)
            start += size
        return normalise(x, self.norm.eps)


class NumpyBlock:
    """Computes what a pre-norm `BlockStepper` computes.

    Args:
        block: to compute.
        mixer: its mixer.
    """

    def __init__(self, block: BlockStepper, mixer: NumpyStepper) -> None:
        self.tokens, self.outputs, self.eps, self.mixer = block.tokens, block.outputs, block.mixer_norm.eps, mixer
        self.expand, self.expand_bias = fold_norm(block.perceptron_norm, block.expand, block.expand_bias)
        self.contract = centre_outputs(to_array(block.contract))

    def __call__(self, x: Array, before: Array, after: Array, live: Array | None) -> Array:
        """Centred tokens through the block; reads the mixer's row of state and writes the one after."""
        added = self.mixer(normalise(x, self.eps), before, after, live)
        if self.outputs < self.tokens:
            x = x[self.tokens - 1 :: self.tokens]
        x = x + added
        hidden = normalise(x, self.eps) @ self.expand + self.expand_bias
        through: Array = x + np.maximum(hidden, 0.0, out=hidden) @ self.contract
        return through
