"""Prefix attention as fused Triton kernels, forward and backward, in one pass over memory.

A program walks over time in chunks, as in appendix A of the paper (Feng et al. 2024, arXiv 2405.13956). All prefixes of
a chunk are one small matrix product. A long sequence with too few rows and features to fill the device is cut into
groups of chunks that run side by side:

1. A summary kernel computes each group alone: the logsumexp of its scores, and its attention output.
2. The summaries are tokens themselves. The forward kernel over them gives the state before each group.
3. The forward kernel starts each group from that state.

The backward pass does the same from the end.

Both calls are torch operators, opaque to `torch.compile`. They never wait for the device, so CUDA graphs can capture
them. They use no atomics, so results repeat bit for bit. Accumulation is in float32 for every input dtype.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from aaren_rl.errors import InvalidInput
from aaren_rl.ops.prefix_attention import launch
from aaren_rl.ops.prefix_attention.launch import Gradients, Inputs, Results

__all__ = ["Gradients", "Inputs", "Results", "available", "backward", "forward"]


def available() -> bool:
    """Whether the kernels can run: Triton is installed, and finds a CUDA device it supports or interprets.

    Triton interprets, on CPU tensors, where TRITON_INTERPRET=1 was set before it was imported.
    """
    return _available()


# The mark of torch.compiler.assume_constant_result, which would import the compiler: that takes seconds.
available._dynamo_marked_constant = True  # type: ignore[attr-defined]


def forward(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Attention outputs of one query over every prefix.

    Returns:
        Outputs (batch, heads, time, dim) in the dtype of the values, laid out as (batch, time, heads, dim), and the
        logsumexp of the scores that each token sees, (batch, heads, time) float32. A token that sees nothing has the
        output 0 and the logsumexp -inf.

    Raises:
        InvalidInput: the kernels cannot run on this device, or do not take these dtypes.
    """
    outputs, logs = torch.ops.aaren_rl.fused_scan_forward(*inputs)
    return outputs, logs


def backward(inputs: Inputs, results: Results) -> Gradients:
    """Gradients of `forward`.

    With p_kj = exp(s_j - L_k), over the positions k >= j that see j, and delta_k = <do_k, o_k> - dL_k::

        dv_j = sum_k p_kj do_k          ds_j = <v_j, dv_j> - sum_k p_kj delta_k

    The state before is one more token.

    Raises:
        InvalidInput: the kernels cannot run on this device, or do not take these dtypes.
    """
    return Gradients(*torch.ops.aaren_rl.fused_scan_backward(*inputs, *results))


# The operators take tensors one by one: those of `Inputs`, then those of `Results`.
def _split(tensors: tuple[Any, ...]) -> tuple[Inputs, Results]:
    count = len(Inputs._fields)
    return Inputs(*tensors[:count]), Results(*tensors[count:])


def _forward(*tensors: Any) -> tuple[Tensor, Tensor]:
    return launch.forward(Inputs(*tensors))


def _backward(*tensors: Any) -> tuple[Tensor, ...]:
    return launch.backward(*_split(tensors))


def _fake_forward(*tensors: Any) -> tuple[Tensor, Tensor]:
    return launch.empty_results(Inputs(*tensors))


def _fake_backward(*tensors: Any) -> tuple[Tensor, ...]:
    inputs, _ = _split(tensors)
    before = (part.new_empty(part.shape, dtype=torch.float32) for part in inputs.before())
    return inputs.scores.new_empty(inputs.scores.shape), launch.like_values(inputs.values), *before


# Registered by hand: a call through torch.library.custom_op costs 50 microseconds of Python, one of these 15.
_LIBRARY: Any = torch.library.Library("aaren_rl", "FRAGMENT")  # type: ignore[no-untyped-call]
_INPUTS = "Tensor scores, Tensor values, Tensor? segment, Tensor? valid, Tensor log_before, Tensor output_before"
_RESULTS = "Tensor outputs, Tensor logs, Tensor d_outputs, Tensor? d_logs"
for _name, _schema, _call, _fake in (
    ("fused_scan_forward", f"({_INPUTS}) -> (Tensor, Tensor)", _forward, _fake_forward),
    ("fused_scan_backward", f"({_INPUTS}, {_RESULTS}) -> (Tensor, Tensor, Tensor, Tensor)", _backward, _fake_backward),
):
    _LIBRARY.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(_name, _call, "CompositeExplicitAutograd")
    torch.library.register_fake(f"aaren_rl::{_name}", _fake, lib=_LIBRARY)


@functools.cache
def _available() -> bool:
    try:
        kernels = launch.load_kernels()
    except InvalidInput:
        return False
    # Triton supports, and bfloat16 needs, compute capability 8.0.
    return bool(kernels.INTERPRETED) or (torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0))
