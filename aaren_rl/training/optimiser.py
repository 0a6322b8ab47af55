"""The optimiser of a network, its learning rate, and what "auto" stands for on a device."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from aaren_rl.errors import InvalidInput
from aaren_rl.model import ModelConfig
from aaren_rl.ops.prefix_attention import fused
from aaren_rl.training.config import TrainingConfig


def learning_rate(config: TrainingConfig, update: int) -> float:
    """Learning rate of an update, the first of which is 1.

    It rises over the warm-up. Then it stays, or falls along a line or half a cosine (Loshchilov and Hutter 2017, arXiv
    1608.03983, section 3) whose end, 0, lies one update behind the last.
    """
    if update <= config.warmup:
        return config.learning_rate * (update / config.warmup)
    done = min(1.0, (update - config.warmup) / max(1, config.updates + 1 - config.warmup))
    left = {"none": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return config.learning_rate * left[config.decay]


def make_optimiser(parameters: Iterable[Tensor], config: TrainingConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW in one operation for all parameters; on a GPU its learning rate is a tensor, so that it can be captured."""
    on_gpu = device.type == "cuda"
    rate = torch.tensor(config.learning_rate, device=device) if on_gpu else config.learning_rate
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    return torch.optim.AdamW(trainable, lr=rate, weight_decay=config.weight_decay, fused=True, capturable=on_gpu)


def clipped_together(network: str, named: Iterable[tuple[str, nn.Parameter]]) -> dict[str, list[nn.Parameter]]:
    """Parameters whose gradients are clipped by their common norm, by the name under which that norm is logged.

    The return in reach stands by itself: it teaches the rest of the model nothing, so it shall not shrink its gradient.

    Args:
        network: the network's name in its objective.
        named: its parameters by their names in the network.
    """
    whole = "gradient_norm" if network == "model" else f"gradient_norm/{network}"
    groups: dict[str, list[nn.Parameter]] = {whole: []}
    for name, parameter in named:
        alone = network == "model" and name.startswith("reach.")
        groups.setdefault("gradient_norm/reach" if alone else whole, []).append(parameter)
    return groups


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate, in place where it is a tensor."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Matrix products in a precision. Weights are cast where they are used, so that a captured update does it too."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


def resolve_auto(
    config: TrainingConfig, device: torch.device, shape: ModelConfig
) -> tuple[Literal["float32", "bf16"], bool, bool]:
    """What "auto" stands for on a device: precision, whether to compile, whether to capture a CUDA graph.

    Raises:
        InvalidInput: a CUDA graph is asked for, and the device or the mixer has none.
    """
    on_gpu = device.type == "cuda"
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if on_gpu and torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
    compiled = on_gpu and fused.available() if config.compile == "auto" else config.compile == "yes"
    captured = on_gpu and shape.cuda_graph if config.cuda_graph == "auto" else config.cuda_graph == "yes"
    if captured and not shape.cuda_graph:
        raise InvalidInput(f"updates of mixer {shape.mixer!r} have no CUDA graph; pass --cuda-graph auto")
    if captured and not on_gpu:
        raise InvalidInput("a CUDA graph was asked for and the device is a CPU; pass --cuda-graph auto")
    return precision, compiled, captured
