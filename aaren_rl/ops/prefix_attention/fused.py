"""Prefix softmax attention of one query as fused Triton kernels, forward and backward.

The same operator as `aaren_rl.ops.prefix_attention` (Feng et al. 2024, arXiv 2405.13956, section 3) in one pass over
memory: a program
walks over time in chunks, as in the paper's appendix A, and all prefixes of a chunk are one small matrix product. Where
batch, heads and columns are too few to fill the device and the sequence is long, groups of chunks run side by side:
their summaries (logsumexp and output of the group alone) are tokens themselves, so the same kernel over the summaries
gives the state at the start of each group. The backward pass does likewise from the end.

Both calls are torch operators, opaque to `torch.compile`; they never wait for the device, so CUDA graphs capture them,
and use no atomics, so results repeat bit for bit. Accumulation is in float32 whatever the inputs.
"""

from __future__ import annotations

import functools
import importlib
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aaren_rl.errors import InvalidInput

CHUNK = 32
"""Positions per chunk. A chunk costs CHUNK multiplications per value read, a walk over time T / CHUNK waits."""

LARGEST_BLOCK, SMALLEST_BLOCK = 128, 32
"""Columns of the values per program."""

PROGRAMS_PER_MULTIPROCESSOR = 2
"""With fewer the device idles."""

GROUPS_FROM, SMALLEST_GROUP = 1024, 4 * CHUNK
"""Positions from which a sequence is cut into groups, and of the smallest group: both have to pay for more launches."""

INTERPRETED_MULTIPROCESSORS = 1


class Plan(NamedTuple):
    """How the work is cut into programs.

    Attributes:
        block: columns per program, a power of two, 16 or more.
        group: positions per program, a multiple of CHUNK.
    """

    block: int
    group: int

    def blocks(self, dim: int) -> int:
        """Programs side by side over the columns."""
        return _ceil(dim, self.block)

    def groups(self, time: int) -> int:
        """Programs side by side over time."""
        return max(_ceil(time, self.group), 1)


def choose_plan(rows: int, time: int, dim: int, multiprocessors: int) -> Plan:
    """Cuts the columns, then a long sequence, until there are enough programs to fill the device.

    Columns come first: each block computes the weights anew, which is little, while groups read the values twice, the
    second time mostly from the cache.

    Args:
        rows: batch times heads.
        time: positions.
        dim: columns of the values.
        multiprocessors: of the device.
    """
    wanted = PROGRAMS_PER_MULTIPROCESSOR * multiprocessors
    # The matrix units take 16 columns at least.
    block = min(max(_power_of_two(dim), 16), LARGEST_BLOCK)
    while block > SMALLEST_BLOCK and rows * _ceil(dim, block) < wanted:
        block //= 2
    programs = max(rows * _ceil(dim, block), 1)
    groups = 1
    if time >= GROUPS_FROM and programs < wanted:
        groups = min(_ceil(wanted, programs), time // SMALLEST_GROUP)
    return Plan(block, CHUNK * max(_ceil(time, groups * CHUNK), 1))


def available() -> bool:
    """Whether the kernels can run: Triton is installed, and finds a CUDA device it supports or interprets.

    Triton interprets, on CPU tensors, where TRITON_INTERPRET=1 was set before it was imported.
    """
    return _available()


# What torch.compiler.assume_constant_result marks, which imports the compiler, seconds that all would wait for.
available._dynamo_marked_constant = True  # type: ignore[attr-defined]


def forward(
    scores: Tensor,
    values: Tensor,
    segment: Tensor | None,
    valid: Tensor | None,
    log_before: Tensor,
    output_before: Tensor,
) -> tuple[Tensor, Tensor]:
    """Attention outputs of one query over every prefix.

    Args:
        scores: (batch, heads, time), float32, bfloat16 or float16, any strides.
        values: (batch, heads, time, dim), float32, bfloat16 or float16, any strides.
        segment: (batch, time) int32, the number of resets up to and including each position; None for no resets.
            Positions see those of their own segment only, and the state before is seen by segment 0.
        valid: (batch, time) bool, False for padding, which contributes nothing, whatever it holds; None for no padding.
        log_before: (batch, heads) float32, logsumexp of the scores before; -inf for none.
        output_before: (batch, heads, dim) float32, the attention output before; 0 for none.

    Returns:
        Outputs (batch, heads, time, dim) in the type of the values and laid out as (batch, time, heads, dim), and the
        logsumexp of all scores that each position sees, (batch, heads, time) float32. Where nothing is seen these are 0
        and -inf.

    Raises:
        InvalidInput: the kernels cannot run here, or do not take such tensors.
    """
    outputs, logs = torch.ops.aaren_rl.fused_scan_forward(scores, values, segment, valid, log_before, output_before)
    return outputs, logs


def backward(
    scores: Tensor,
    values: Tensor,
    segment: Tensor | None,
    valid: Tensor | None,
    log_before: Tensor,
    output_before: Tensor,
    outputs: Tensor,
    logs: Tensor,
    d_outputs: Tensor,
    d_logs: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `forward`.

    With p_kj = exp(s_j - L_k): dv_j = sum_k p_kj do_k and ds_j = <v_j, dv_j> - sum_k p_kj delta_k over the positions
    k >= j that see j, where delta_k = <do_k, o_k> - dL_k. The state before is one more token.

    Args:
        scores: as given to `forward`.
        values: as given to `forward`.
        segment: as given to `forward`.
        valid: as given to `forward`.
        log_before: as given to `forward`.
        output_before: as given to `forward`.
        outputs: as returned by `forward`.
        logs: as returned by `forward`.
        d_outputs: gradient by the outputs, (batch, heads, time, dim), any strides.
        d_logs: gradient by the logs, (batch, heads, time) float32; None for none.

    Returns:
        Gradients by the scores and the values, in their types, the latter laid out as the outputs are; by log_before
        (batch, heads) and by output_before (batch, heads, dim), float32.

    Raises:
        InvalidInput: the kernels cannot run here, or do not take such tensors.
    """
    d_scores, d_values, d_log_before, d_output_before = torch.ops.aaren_rl.fused_scan_backward(
        scores, values, segment, valid, log_before, output_before, outputs, logs, d_outputs, d_logs
    )
    return d_scores, d_values, d_log_before, d_output_before


def _forward(
    scores: Tensor,
    values: Tensor,
    segment: Tensor | None,
    valid: Tensor | None,
    log_before: Tensor,
    output_before: Tensor,
) -> tuple[Tensor, Tensor]:
    kernels = _kernels_for(scores, values)
    batch_size, heads, time, dim = values.shape
    plan = choose_plan(batch_size * heads, time, dim, _multiprocessors(values.device))
    groups = plan.groups(time)
    before = log_before.float().contiguous(), output_before.float().contiguous()
    with _on(values.device):
        if groups == 1:
            return _launch_forward(scores, values, segment, valid, *before, None, None, plan)
        group_log = scores.new_empty(batch_size, heads, groups - 1, dtype=torch.float32)
        group_output = scores.new_empty(batch_size, heads, groups - 1, dim, dtype=torch.float32)
        kernels.forward_summary_kernel[batch_size * heads, plan.blocks(dim), groups - 1](
            scores,
            values,
            segment,
            _bytes(valid),
            group_log,
            group_output,
            heads,
            dim,
            plan.group,
            *scores.stride(),
            *values.stride(),
            *_strides(segment, 2),
            *_strides(valid, 2),
            has_segment=segment is not None,
            has_valid=valid is not None,
            **_constants(plan),
        )
        group_output, group_log = _launch_forward(
            group_log,
            group_output,
            _at_ends(segment, plan.group, groups),
            None,
            *before,
            None,
            None,
            _whole(plan, groups),
        )
        return _launch_forward(scores, values, segment, valid, *before, group_log, group_output.contiguous(), plan)


def _launch_forward(
    scores: Tensor,
    values: Tensor,
    segment: Tensor | None,
    valid: Tensor | None,
    log_before: Tensor,
    output_before: Tensor,
    group_log: Tensor | None,
    group_output: Tensor | None,
    plan: Plan,
) -> tuple[Tensor, Tensor]:
    batch_size, heads, time, dim = values.shape
    outputs, logs = _like_values(values), scores.new_empty(scores.shape, dtype=torch.float32)
    _kernels().forward_kernel[batch_size * heads, plan.blocks(dim), plan.groups(time)](
        scores,
        values,
        segment,
        _bytes(valid),
        log_before,
        output_before,
        group_log,
        group_output,
        outputs,
        logs,
        time,
        heads,
        dim,
        plan.group,
        *scores.stride(),
        *values.stride(),
        *_strides(segment, 2),
        *_strides(valid, 2),
        *outputs.stride()[:3],
        has_segment=segment is not None,
        has_valid=valid is not None,
        has_groups=group_log is not None,
        native=_native(values),
        **_constants(plan),
    )
    return outputs, logs


def _backward(
    scores: Tensor,
    values: Tensor,
    segment: Tensor | None,
    valid: Tensor | None,
    log_before: Tensor,
    output_before: Tensor,
    outputs: Tensor,
    logs: Tensor,
    d_outputs: Tensor,
    d_logs: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kernels = _kernels_for(scores, values)
    batch_size, heads, time, dim = values.shape
    plan = choose_plan(batch_size * heads, time, dim, _multiprocessors(values.device))
    blocks, groups = plan.blocks(dim), plan.groups(time)
    before = log_before.float().contiguous(), output_before.float().contiguous()
    given = scores, values, segment, valid, *before, outputs, logs, d_outputs, d_logs
    with _on(values.device):
        if groups == 1:
            return _launch_backward(*given, None, None, plan)
        after = scores.new_empty(batch_size, heads, groups - 1, dim, dtype=torch.float32)
        delta = scores.new_empty(blocks, batch_size, heads, groups - 1, dtype=torch.float32)
        kernels.backward_summary_kernel[batch_size * heads, blocks, groups - 1](
            segment,
            outputs,
            logs,
            d_outputs,
            d_logs,
            after,
            delta,
            time,
            heads,
            dim,
            plan.group,
            *_strides(segment, 2),
            *outputs.stride(),
            *logs.stride(),
            *d_outputs.stride(),
            *_strides(d_logs, 3),
            has_segment=segment is not None,
            has_d_logs=d_logs is not None,
            **_constants(plan),
        )
        # The sum of exp(L_end - L_later_end) times the later summaries is dv of the same kernel with the logs at the
        # ends as scores; with v = o = 0 and dL = delta, ds is that sum of the deltas.
        logs_there = logs[:, :, plan.group - 1 :: plan.group][:, :, : groups - 1]
        nothing = after.new_zeros(1).expand_as(after)
        group_delta, group_after, _, _ = _launch_backward(
            logs_there,
            nothing,
            _at_ends(segment, plan.group, groups),
            None,
            *before,
            nothing,
            logs_there,
            after,
            delta.sum(0),
            None,
            None,
            _whole(plan, groups),
        )
        return _launch_backward(*given, group_after.contiguous(), group_delta, plan)


def _launch_backward(
    scores: Tensor,
    values: Tensor,
    segment: Tensor | None,
    valid: Tensor | None,
    log_before: Tensor,
    output_before: Tensor,
    outputs: Tensor,
    logs: Tensor,
    d_outputs: Tensor,
    d_logs: Tensor | None,
    group_after: Tensor | None,
    group_delta: Tensor | None,
    plan: Plan,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch_size, heads, time, dim = values.shape
    blocks = plan.blocks(dim)
    kind = scores.dtype if blocks == 1 else torch.float32
    d_scores = scores.new_empty(blocks, batch_size, heads, time, dtype=kind)
    d_values = _like_values(values)
    d_log_before = log_before.new_empty(blocks, batch_size, heads)
    d_output_before = torch.empty_like(output_before)
    _kernels().backward_kernel[batch_size * heads, blocks, plan.groups(time)](
        scores,
        values,
        segment,
        _bytes(valid),
        log_before,
        output_before,
        outputs,
        logs,
        d_outputs,
        d_logs,
        group_after,
        group_delta,
        d_scores,
        d_values,
        d_log_before,
        d_output_before,
        time,
        heads,
        dim,
        plan.group,
        *scores.stride(),
        *values.stride(),
        *_strides(segment, 2),
        *_strides(valid, 2),
        *outputs.stride(),
        *logs.stride(),
        *d_outputs.stride(),
        *_strides(d_logs, 3),
        *d_values.stride()[:3],
        has_segment=segment is not None,
        has_valid=valid is not None,
        has_d_logs=d_logs is not None,
        has_groups=group_after is not None,
        native=_native(d_outputs),
        **_constants(plan),
    )
    if blocks == 1:
        return d_scores[0], d_values, d_log_before[0], d_output_before
    return d_scores.sum(0).to(scores.dtype), d_values, d_log_before.sum(0), d_output_before


def _fake_forward(
    scores: Tensor,
    values: Tensor,
    segment: Tensor | None,
    valid: Tensor | None,
    log_before: Tensor,
    output_before: Tensor,
) -> tuple[Tensor, Tensor]:
    return _like_values(values), scores.new_empty(scores.shape, dtype=torch.float32)


def _fake_backward(
    scores: Tensor,
    values: Tensor,
    segment: Tensor | None,
    valid: Tensor | None,
    log_before: Tensor,
    output_before: Tensor,
    outputs: Tensor,
    logs: Tensor,
    d_outputs: Tensor,
    d_logs: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        scores.new_empty(scores.shape),
        _like_values(values),
        log_before.new_empty(log_before.shape, dtype=torch.float32),
        output_before.new_empty(output_before.shape, dtype=torch.float32),
    )


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
def _kernels() -> Any:
    try:
        return importlib.import_module("aaren_rl.ops.prefix_attention.kernels")
    except ImportError:
        raise InvalidInput("the fused scan needs Triton, which is not installed; pip install triton") from None


@functools.cache
def _available() -> bool:
    try:
        kernels = _kernels()
    except InvalidInput:
        return False
    # Triton supports, and bfloat16 needs, compute capability 8.0.
    return bool(kernels.INTERPRETED) or (torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0))


def _kernels_for(scores: Tensor, values: Tensor) -> Any:
    kernels = _kernels()
    if values.device.type != "cuda" and not kernels.INTERPRETED:
        raise InvalidInput(f"the fused scan takes CUDA tensors, these are on {values.device}; take another form there")
    for name, x in (("scores", scores), ("values", values)):
        if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise InvalidInput(f"{name} are {x.dtype}; the fused scan takes float32, bfloat16 and float16")
    return kernels


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETED_MULTIPROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _native(x: Tensor) -> bool:
    """Whether a matrix product takes this type; Triton's interpreter takes the bits of bfloat16 for integers."""
    return not (_kernels().INTERPRETED and x.dtype == torch.bfloat16)


def _constants(plan: Plan) -> dict[str, int]:
    return {
        "chunk": CHUNK,
        "block": plan.block,
        # 16 columns a warp keep every tile in registers; with 32 the widest backward spills.
        "num_warps": max(plan.block // 16, 4),
        "num_stages": 2,
        # Triton 3.10 turns it off by default, and the float32 product is made of these.
        "enable_fp_fusion": True,
    }


def _whole(plan: Plan, groups: int) -> Plan:
    """The plan for the summaries of all groups but one, walked over by one program."""
    return Plan(plan.block, CHUNK * _ceil(groups - 1, CHUNK))


def _like_values(values: Tensor) -> Tensor:
    """Uninitialised, of the shape of the values, laid out so that joining the heads is a view."""
    batch_size, heads, time, dim = values.shape
    return values.new_empty(batch_size, time, heads, dim).transpose(1, 2)


def _at_ends(segment: Tensor | None, group: int, groups: int) -> Tensor | None:
    """The segments at the ends of all groups but the last."""
    return None if segment is None else segment[:, group - 1 :: group][:, : groups - 1]


def _bytes(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.view(torch.uint8)


def _strides(x: Tensor | None, dimensions: int) -> tuple[int, ...]:
    return (0,) * dimensions if x is None else x.stride()


def _ceil(number: int, divisor: int) -> int:
    return -(-number // divisor)


def _power_of_two(number: int) -> int:
    """The number, or the next power of two."""
    return 1 << (number - 1).bit_length()
