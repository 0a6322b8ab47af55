"""Launches the Triton kernels of `aaren_rl.ops.prefix_attention.fused`, with each list of arguments as one type."""

from __future__ import annotations

import functools
import importlib
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aaren_rl.errors import InvalidInput
from aaren_rl.ops.prefix_attention.plan import Plan, choose_plan

INTERPRETED_MULTIPROCESSORS = 1
"""Number of multiprocessors that a CPU counts as in Triton's interpreter."""


class Inputs(NamedTuple):
    """Arguments of `forward`, which `backward` needs again.

    Attributes:
        scores: (batch, heads, time), float32, bfloat16 or float16, any strides.
        values: (batch, heads, time, dim), float32, bfloat16 or float16, any strides.
        segment: (batch, time) int32, the number of resets up to and including each token; None for no resets.
            Tokens see those of their segment only, and segment 0 sees the state before.
        valid: (batch, time) bool, False for padding, which contributes nothing, NaN included; None for no padding.
        log_before: (batch, heads) float32, logsumexp of the scores before; -inf for none.
        output_before: (batch, heads, dim) float32, the attention output before; 0 for none.
    """

    scores: Tensor
    values: Tensor
    segment: Tensor | None
    valid: Tensor | None
    log_before: Tensor
    output_before: Tensor

    def tokens(self) -> tuple[Tensor | None, ...]:
        """A kernel's pointers to scores, values, segment and valid."""
        return self.scores, self.values, self.segment, None if self.valid is None else self.valid.view(torch.uint8)

    def before(self) -> tuple[Tensor, Tensor]:
        """A kernel's pointers to the state before."""
        return self.log_before, self.output_before

    def strides(self) -> tuple[int, ...]:
        """The strides of `tokens`."""
        return *self.scores.stride(), *self.values.stride(), *_strides(self.segment, 2), *_strides(self.valid, 2)

    def flags(self) -> dict[str, bool]:
        """The `tokens` that are not None."""
        return {"has_segment": self.segment is not None, "has_valid": self.valid is not None}

    def contiguous_before(self) -> Inputs:
        """The same with the state before as kernels read it."""
        before = (part.float().contiguous() for part in self.before())
        return Inputs(self.scores, self.values, self.segment, self.valid, *before)

    def summaries(self, logs: Tensor, outputs: Tensor, plan: Plan) -> Inputs:
        """One token for each group but the last, with its score and value.

        Args:
            logs: (batch, heads, groups - 1).
            outputs: (batch, heads, groups - 1, dim).
            plan: gives the length of a group.
        """
        segment = None if self.segment is None else _group_ends(self.segment, plan)
        return Inputs(logs, outputs, segment, None, *self.before())


class Results(NamedTuple):
    """What `forward` returned, and the gradients by it.

    Attributes:
        outputs: (batch, heads, time, dim), any strides.
        logs: (batch, heads, time) float32.
        d_outputs: gradient by the outputs, (batch, heads, time, dim), any strides.
        d_logs: gradient by the logs, (batch, heads, time) float32; None for none.
    """

    outputs: Tensor
    logs: Tensor
    d_outputs: Tensor
    d_logs: Tensor | None

    def strides(self) -> tuple[int, ...]:
        """The strides of all four."""
        return (
            *self.outputs.stride(),
            *self.logs.stride(),
            *self.d_outputs.stride(),
            *_strides(self.d_logs, 3),
        )

    def flags(self) -> dict[str, bool]:
        """Whether the logs have a gradient."""
        return {"has_d_logs": self.d_logs is not None}


class Gradients(NamedTuple):
    """Gradients by the `Inputs`, in the dtype and shape of each.

    Attributes:
        scores: (batch, heads, time).
        values: (batch, heads, time, dim), laid out as the outputs are.
        log_before: (batch, heads) float32.
        output_before: (batch, heads, dim) float32.
    """

    scores: Tensor
    values: Tensor
    log_before: Tensor
    output_before: Tensor


def forward(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """See `fused.forward`."""
    inputs, plan = _prepare(inputs)
    with _on(inputs.values.device):
        carried = _states_before_groups(inputs, plan) if plan.groups(inputs.scores.shape[-1]) > 1 else None
        return _launch_forward(inputs, carried, plan)


def _states_before_groups(inputs: Inputs, plan: Plan) -> tuple[Tensor, Tensor]:
    """Log and output before each group but the first, (batch, heads, groups - 1[, dim]), contiguous."""
    batch_size, heads, time, dim = inputs.values.shape
    groups = plan.groups(time)
    logs = inputs.scores.new_empty(batch_size, heads, groups - 1, dtype=torch.float32)
    outputs = inputs.scores.new_empty(batch_size, heads, groups - 1, dim, dtype=torch.float32)
    pointers = *inputs.tokens(), logs, outputs
    sizes = heads, dim, plan.group
    load_kernels().forward_summary_kernel[batch_size * heads, plan.parts(dim), groups - 1](
        *pointers,
        *sizes,
        *inputs.strides(),
        **inputs.flags(),
        **plan.constants(),
    )
    outputs, logs = _launch_forward(inputs.summaries(logs, outputs, plan), None, plan.over_groups(groups))
    return logs, outputs.contiguous()


def _launch_forward(inputs: Inputs, carried: tuple[Tensor, Tensor] | None, plan: Plan) -> tuple[Tensor, Tensor]:
    """Outputs and logs, from the states before the groups; None for one group."""
    batch_size, heads, time, dim = inputs.values.shape
    outputs, logs = empty_results(inputs)
    pointers = *inputs.tokens(), *inputs.before(), *(carried or (None, None)), outputs, logs
    sizes = time, heads, dim, plan.group
    load_kernels().forward_kernel[batch_size * heads, plan.parts(dim), plan.groups(time)](
        *pointers,
        *sizes,
        *inputs.strides(),
        *outputs.stride()[:3],
        **inputs.flags(),
        has_groups=carried is not None,
        native=_native(inputs.values),
        **plan.constants(),
    )
    return outputs, logs


def backward(inputs: Inputs, results: Results) -> Gradients:
    """See `fused.backward`."""
    inputs, plan = _prepare(inputs)
    with _on(inputs.values.device):
        carried = _sums_after_groups(inputs, results, plan) if plan.groups(inputs.scores.shape[-1]) > 1 else None
        return _launch_backward(inputs, results, carried, plan)


def _sums_after_groups(inputs: Inputs, results: Results, plan: Plan) -> tuple[Tensor, Tensor]:
    """What is carried back past the end of each group but the last, (batch, heads, groups - 1[, dim]), contiguous."""
    batch_size, heads, time, dim = inputs.values.shape
    parts, groups = plan.parts(dim), plan.groups(time)
    after = inputs.scores.new_empty(batch_size, heads, groups - 1, dim, dtype=torch.float32)
    delta = inputs.scores.new_empty(parts, batch_size, heads, groups - 1, dtype=torch.float32)
    pointers = inputs.segment, *results, after, delta
    sizes = time, heads, dim, plan.group
    load_kernels().backward_summary_kernel[batch_size * heads, parts, groups - 1](
        *pointers,
        *sizes,
        *_strides(inputs.segment, 2),
        *results.strides(),
        has_segment=inputs.segment is not None,
        **results.flags(),
        **plan.constants(),
    )
    # The sum of exp(L_end - L_later_end) times the later summaries is dv of the backward kernel, with the logs at the
    # groups' ends as scores. With v = o = 0 and dL = delta, ds is the same sum of the deltas.
    logs = _group_ends(results.logs, plan)
    nothing = after.new_zeros(1).expand_as(after)
    gradients = _launch_backward(
        inputs.summaries(logs, nothing, plan),
        Results(nothing, logs, after, delta.sum(0)),
        None,
        plan.over_groups(groups),
    )
    return gradients.values.contiguous(), gradients.scores


def _launch_backward(inputs: Inputs, results: Results, carried: tuple[Tensor, Tensor] | None, plan: Plan) -> Gradients:
    """All gradients, from the sums carried back past the groups' ends; None for one group."""
    batch_size, heads, time, dim = inputs.values.shape
    parts = plan.parts(dim)
    # Each part of the features gives a summand of these two.
    dtype = inputs.scores.dtype if parts == 1 else torch.float32
    d_scores = inputs.scores.new_empty(parts, batch_size, heads, time, dtype=dtype)
    d_log_before = inputs.log_before.new_empty(parts, batch_size, heads)
    d_values, d_output_before = like_values(inputs.values), torch.empty_like(inputs.output_before)
    given = *inputs.tokens(), *inputs.before(), *results, *(carried or (None, None))
    gradients = d_scores, d_values, d_log_before, d_output_before
    sizes = time, heads, dim, plan.group
    load_kernels().backward_kernel[batch_size * heads, parts, plan.groups(time)](
        *given,
        *gradients,
        *sizes,
        *inputs.strides(),
        *results.strides(),
        *d_values.stride()[:3],
        **inputs.flags(),
        **results.flags(),
        has_groups=carried is not None,
        native=_native(results.d_outputs),
        **plan.constants(),
    )
    if parts == 1:
        return Gradients(d_scores[0], d_values, d_log_before[0], d_output_before)
    return Gradients(d_scores.sum(0).to(inputs.scores.dtype), d_values, d_log_before.sum(0), d_output_before)


def empty_results(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Uninitialised outputs and logs."""
    return like_values(inputs.values), inputs.scores.new_empty(inputs.scores.shape, dtype=torch.float32)


@functools.cache
def load_kernels() -> Any:
    """The module of the kernels, which imports Triton.

    Raises:
        InvalidInput: Triton is not installed.
    """
    try:
        return importlib.import_module("aaren_rl.ops.prefix_attention.kernels")
    except ImportError:
        raise InvalidInput("the fused scan needs Triton, which is not installed; pip install triton") from None


def _prepare(inputs: Inputs) -> tuple[Inputs, Plan]:
    """Checks device and dtypes, and chooses the plan."""
    kernels, device = load_kernels(), inputs.values.device
    if device.type != "cuda" and not kernels.INTERPRETED:
        raise InvalidInput(f"the fused scan takes CUDA tensors, these are on {device}; choose another form")
    for name in ("scores", "values"):
        dtype = getattr(inputs, name).dtype
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise InvalidInput(f"{name} are {dtype}; the fused scan takes float32, bfloat16 and float16")
    batch_size, heads, time, dim = inputs.values.shape
    return inputs.contiguous_before(), choose_plan(batch_size * heads, time, dim, _multiprocessors(device))


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Makes the tensors' device the current one, on which Triton launches."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETED_MULTIPROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _native(x: Tensor) -> bool:
    """Whether a matrix product takes this dtype; Triton's interpreter takes the bits of bfloat16 for integers."""
    return not (load_kernels().INTERPRETED and x.dtype == torch.bfloat16)


def like_values(values: Tensor) -> Tensor:
    """Uninitialised, of the shape of the values, laid out so that joining the heads is a view."""
    batch_size, heads, time, dim = values.shape
    return values.new_empty(batch_size, time, heads, dim).transpose(1, 2)


def _group_ends(x: Tensor, plan: Plan) -> Tensor:
    """The last position of every group but the last, of (..., time)."""
    return x[..., plan.group - 1 :: plan.group][..., : plan.groups(x.shape[-1]) - 1]


def _strides(x: Tensor | None, dimensions: int) -> tuple[int, ...]:
    return (0,) * dimensions if x is None else x.stride()
