"""Checks saved weights against the model that they are said to be of, before anything of its size is allocated."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from aaren_rl.data.spaces import Space
from aaren_rl.errors import InvalidInput
from aaren_rl.mixers import state_bytes
from aaren_rl.model.config import ModelConfig
from aaren_rl.model.decision_model import DecisionModel
from aaren_rl.model.scaling import Scaling

LARGEST_TABLES = 2**28
"""Bytes of constants, which no weights bring, that a model may ask for beyond the size of its weights."""

LARGEST_STATE = 2**28
"""Bytes of state that a model may ask for in each environment."""


def check_weights(config: ModelConfig, observations: Space, actions: Space, weights: Mapping[str, Tensor]) -> None:
    """Checks names, shapes, dtypes and values of a model's weights.

    Args:
        config: the model's shape.
        observations: its observation space.
        actions: its action space.
        weights: its `state_dict`.

    Raises:
        InvalidInput: they are not of this model, hold a NaN or an infinite value, or the model asks for far more memory
            than its weights.
    """
    # Every block has weights, and modules are not free even without memory.
    if config.blocks > len(weights):
        raise InvalidInput(f"{config.blocks} blocks, and {len(weights)} weights")
    with torch.device("meta"):
        model = DecisionModel(config, observations, actions, Scaling.identity(observations))
        expected = model.state_dict()
        state = state_bytes(model.initial_state(1))
    for name, tensor in expected.items():
        if name not in weights:
            raise InvalidInput(f"the weight {name} is missing")
        found = weights[name]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise InvalidInput(
                f"the weight {name} is {str(found.dtype)[6:]} of shape {tuple(found.shape)}, expected "
                f"{str(tensor.dtype)[6:]} of shape {tuple(tensor.shape)}"
            )
    if unknown := sorted(weights.keys() - expected.keys()):
        raise InvalidInput(f"the weight {unknown[0]} is unknown")
    if (bad := first_not_finite(weights)) is not None:
        raise InvalidInput(f"the weight {bad} holds a NaN or an infinite value")
    for name, tensor in weights.items():
        if fault := scaling_fault(name, tensor):
            raise InvalidInput(f"the scaling {name} {fault}")
    tables = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    for what, size, largest in (("constants", tables, LARGEST_TABLES), ("state", state, LARGEST_STATE)):
        if size > largest + sum(tensor.numel() * tensor.element_size() for tensor in weights.values()):
            raise InvalidInput(f"mixer {config.mixer!r} asks for {size / 2**30:.1f} GiB of {what}")


def scaling_fault(name: str, tensor: Tensor) -> str | None:
    """What is wrong with a tensor that values are divided by; None for any other."""
    if name.endswith(("inputs.return_scale", "inputs.reward_scale")) and not (tensor > 0).all():
        return f"is {tensor.min():g}, expected a positive number"
    if "inputs.observation." in name and name.endswith(".std") and (tensor < 0).any():
        return f"holds {tensor.min():g}, expected nothing below 0"
    return None


def first_not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor that holds a NaN or an infinite value; None if all are numbers."""
    return next(
        (name for name, part in weights.items() if part.is_floating_point() and not bool(part.isfinite().all())), None
    )
