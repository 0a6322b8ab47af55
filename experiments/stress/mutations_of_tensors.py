"""Mutations of safetensors files: their header, and the tensors that they hold."""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from aaren_rl.experiments.stress.mutations import Rng, mutate_bytes, mutate_tree

_LENGTH = 8
"""Bytes of the header's length, in front of it."""


def mutate_tensors(rng: Rng, content: bytes, other: bytes) -> tuple[bytes, str]:
    """Changes a safetensors file.

    Args:
        rng: chooses the change.
        content: of a valid file.
        other: of another one.

    Returns:
        The changed content, and the change in words.
    """
    kind = rng.choice(["tensor", "header", "bytes"], p=[0.6, 0.2, 0.2])
    if kind == "bytes":
        return mutate_bytes(rng, content, other)
    if kind == "header":
        return _mutate_header(rng, content, other)
    tensors, about = _mutate_tensor(rng, load(content), load(other))
    return save({name: tensor.contiguous().clone() for name, tensor in tensors.items()}), about


def _mutate_header(rng: Rng, content: bytes, other: bytes) -> tuple[bytes, str]:
    header, body = _split(content)
    if rng.random() < 0.2:
        length = int(rng.choice([0, 1, 2**31, 2**62, len(content)]))
        return length.to_bytes(_LENGTH, "little") + content[_LENGTH:], f"header of {length} bytes"
    changed, about = mutate_tree(rng, header, _split(other)[0])
    text = json.dumps(changed).encode()
    return len(text).to_bytes(_LENGTH, "little") + text + body, f"header, {about}"


def _split(content: bytes) -> tuple[Any, bytes]:
    length = int.from_bytes(content[:_LENGTH], "little")
    return json.loads(content[_LENGTH : _LENGTH + length]), content[_LENGTH + length :]


def _mutate_tensor(rng: Rng, tensors: dict[str, Tensor], other: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Changes one tensor, in its name, its shape, its dtype or its values."""
    name = sorted(tensors)[int(rng.integers(len(tensors)))]
    tensor = tensors[name]
    kind = str(rng.choice(["remove", "rename", "add", "exchange", "shape", "dtype", "values"], p=_SHARES))
    if kind == "remove":
        del tensors[name]
    elif kind == "rename":
        tensors[f"{name}.more"] = tensors.pop(name)
    elif kind == "add":
        tensors[f"more.{name}"] = tensor
    elif kind == "exchange":
        chosen = sorted(other)[int(rng.integers(len(other)))]
        tensors[name] = other[chosen]
    elif kind == "shape":
        kind, tensors[name] = _reshaped(rng, tensor)
    elif kind == "dtype":
        dtype = _DTYPES[int(rng.integers(len(_DTYPES)))]
        kind, tensors[name] = f"dtype {dtype}", tensor.to(dtype)
    else:
        value = _VALUES[int(rng.integers(len(_VALUES)))]
        filled = tensor.clone().reshape(-1)
        count = len(filled) if rng.random() < 0.5 else min(1, len(filled))
        if tensor.is_floating_point():
            filled[:count] = value
        else:
            filled[:count] = int(max(-(2**7), min(2**7 - 1, value))) if value == value else 0
        kind, tensors[name] = f"values {value}", filled.reshape(tensor.shape)
    return tensors, f"{kind} of {name}"


_SHARES = [0.1, 0.06, 0.06, 0.1, 0.28, 0.14, 0.26]
_DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.uint8, torch.bool)
_VALUES = (float("nan"), float("inf"), float("-inf"), 0.0, -1.0, 3e38, -3e38, 1e20, 1e-40)


def _reshaped(rng: Rng, tensor: Tensor) -> tuple[str, Tensor]:
    choices = {
        "flat": tensor.reshape(-1),
        "one dimension more": tensor.unsqueeze(0),
        "transposed": tensor.transpose(0, -1) if tensor.ndim else tensor.reshape(1),
        "half": tensor[: tensor.shape[0] // 2] if tensor.ndim else tensor.reshape(1),
        "double": torch.cat([tensor, tensor]) if tensor.ndim else tensor.reshape(1),
        "empty": tensor.reshape(-1)[:0],
        "a single number": tensor.reshape(-1)[:1],
        "a scalar": tensor.reshape(-1)[0] if tensor.numel() else tensor,
    }
    kind = sorted(choices)[int(rng.integers(len(choices)))]
    return kind, choices[kind]
