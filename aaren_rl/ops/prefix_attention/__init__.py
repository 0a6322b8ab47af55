"""Prefix softmax attention of one query, the operator behind Aaren, in interchangeable forms.

For scores s and values v the output at position k is ``sum_{i<=k} exp(s_i) v_i / sum_{i<=k} exp(s_i)``.
Every form computes the prefix state (m, c, a) of "Attention as an RNN" (Feng et al. 2024, arXiv 2405.13956, section 3):
m is the running maximum of the scores, c and a are the sums of ``exp(s_i - m)`` and of ``exp(s_i - m) v_i``. The output
is a / c. Two adjacent pieces combine associatively. A state can therefore be carried from one call to the next, and a
loop, chunks, a tree and a matrix all give the same numbers.

===============  ===========================================================
`reference`      the ground truth, and the other forms that torch differentiates
`chunked`        matrix products, with a backward pass that we derive
`fused`          the same as Triton kernels (`kernels`)
`autograd`       the autograd function over `chunked` and `fused`
`decay`          for all of them, weights that later tokens lower
===============  ===========================================================
"""

from __future__ import annotations

import functools
from typing import Literal, get_args

import torch
from torch import Tensor

from aaren_rl.errors import InvalidInput, unknown_name
from aaren_rl.ops.prefix_attention import autograd, chunked, decay, fused, reference
from aaren_rl.ops.prefix_attention.reference import combine, read_out
from aaren_rl.ops.prefix_attention.state import ScanState, accumulation_dtype, initial_state, to_dtype

__all__ = ["Form", "ScanState", "choose_form", "combine", "initial_state", "prefix_attention", "read_out"]

Form = Literal["auto", "recurrent", "blockwise", "parallel", "chunked", "matrix", "fused"]


def prefix_attention(
    scores: Tensor,
    values: Tensor,
    state: ScanState | None = None,
    reset: Tensor | None = None,
    valid: Tensor | None = None,
    form: Form = "auto",
    log_decay: Tensor | None = None,
) -> tuple[Tensor, ScanState]:
    """Attention outputs of one query over every prefix of a sequence.

    Args:
        scores: (batch, heads, time), any floating dtype.
        values: (batch, heads, time, dim), any floating dtype.
        state: the state after the tokens before this sequence; None for no such tokens.
        reset: (batch, time) bool, True where a new episode starts before the token. A reset drops earlier tokens and
            the given state.
        valid: (batch, time) bool, False for padding, which leaves the state unchanged.
        form: how to compute it.
            "recurrent" loops over tokens and is the ground truth of the others.
            "blockwise" loops over chunks in O(chunk) memory (paper, appendix A).
            "parallel" is the Hillis-Steele prefix scan (paper, algorithm 1).
            "matrix" writes out all time x time weights; with decay, those of 1,024 tokens.
            "chunked" writes them out within chunks and carries a state from chunk to chunk.
            "fused" is one GPU kernel.
            "auto" is the form that `choose_form` returns.
        log_decay: (batch, heads, time), at most 0: logarithm of the factor by which a token multiplies the weights of
            all earlier tokens; None for no decay. Padding decays nothing.

    Returns:
        Outputs (batch, heads, time, dim) in the dtype of the values, and the state after the last token.

    Raises:
        InvalidInput: shapes do not fit together, the form is unknown, or the form cannot run on this device.
    """
    _check(scores, values, state, reset, valid, form, log_decay)
    batch_size, heads, time, dim = values.shape
    dtype = accumulation_dtype(scores, values)
    if time == 0:
        return values, to_dtype(state or initial_state(batch_size, heads, dim, scores.device), dtype)
    if form == "auto":
        form = choose_form(time, scores.device, dtype)
    if state is not None:
        # No output depends on how a state is split into m and the rest, so m has no gradient in any form.
        state = state._replace(m=state.m.detach())
    if reset is None:
        reset = torch.zeros(batch_size, time, dtype=torch.bool, device=scores.device)
    attend = functools.partial(reference.attend if form in reference.FORMS else autograd.attend, form=form)
    with torch.autocast(device_type=scores.device.type, enabled=False):
        if log_decay is not None:
            return decay.attend_in_pieces(attend, scores, values, state, reset, valid, log_decay)
        return attend(scores, values, state, reset, valid)


def choose_form(time: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Form:
    """The form that "auto" takes.

    Args:
        time: length of the sequence in tokens.
        device: of the scores and values.
        dtype: of the state.
    """
    if time == 1:
        return "recurrent"
    if device.type == "cuda" and dtype == torch.float32 and fused.available():
        return "fused"
    return "matrix" if time <= chunked.ONE_CHUNK_UP_TO else "chunked"


def _check(
    scores: Tensor,
    values: Tensor,
    state: ScanState | None,
    reset: Tensor | None,
    valid: Tensor | None,
    form: Form,
    log_decay: Tensor | None,
) -> None:
    if form not in get_args(Form):
        raise unknown_name("scan form", form, get_args(Form))
    if scores.ndim != 3 or values.ndim != 4 or values.shape[:3] != scores.shape:
        raise InvalidInput(
            f"scores have shape {tuple(scores.shape)} and values {tuple(values.shape)}; "
            "expected (batch, heads, time) and (batch, heads, time, dim)"
        )
    if log_decay is not None and log_decay.shape != scores.shape:
        raise InvalidInput(
            f"log_decay has shape {tuple(log_decay.shape)}; expected that of the scores, {tuple(scores.shape)}"
        )
    for name, mask in (("reset", reset), ("valid", valid)):
        if mask is None:
            continue
        expected = (scores.shape[0], scores.shape[2])
        if tuple(mask.shape) != expected or mask.dtype != torch.bool:
            raise InvalidInput(
                f"{name} is {mask.dtype} of shape {tuple(mask.shape)}; expected torch.bool of shape {expected}"
            )
    if state is not None:
        expected_shape = (*values.shape[:2], values.shape[3])
        given = tuple(tuple(part.shape) for part in state)
        if given != (expected_shape[:2], expected_shape[:2], expected_shape):
            raise InvalidInput(
                f"the state holds m, c and a of shapes {given}; expected (batch, heads) twice and "
                f"(batch, heads, dim) = {expected_shape}"
            )
