"""Tests of the chunked form alone; test_prefix_attention.py compares all forms with the definition."""

import numpy as np
import pytest
import torch
from helpers import assert_close

from aaren_rl.ops.prefix_attention import ScanState, chunked, prefix_attention
from aaren_rl.ops.prefix_attention.chunked import CHUNK, ONE_CHUNK_UP_TO, chunk_length

HEADS, DIM = 2, 3
RESULTS = ("outputs", "m", "c", "a", "d_scores", "d_values", "d_c_before", "d_a_before")


def draw(time, batch=2, resets=0.001, padded=0.05, seed=0, dtype=torch.float64):
    """Scores, values, state, reset, valid; no reset in the first row, which carries its state to the end."""
    rng = np.random.default_rng(seed)
    reset = torch.from_numpy(rng.random((batch, time)) < resets)
    reset[0] = False
    state = ScanState(
        torch.from_numpy(rng.normal(size=(batch, HEADS)) * 3),
        torch.from_numpy(rng.uniform(0.5, 3.0, size=(batch, HEADS))),
        torch.from_numpy(rng.normal(size=(batch, HEADS, DIM))),
    )
    return (
        torch.from_numpy(rng.normal(size=(batch, HEADS, time)) * 3).to(dtype),
        torch.from_numpy(rng.normal(size=(batch, HEADS, time, DIM))).to(dtype),
        state,
        reset,
        torch.from_numpy(rng.random((batch, time)) >= padded),
    )


def outputs_and_gradients(form, scores, values, state, reset, valid):
    leaves = [part.detach().clone().requires_grad_() for part in (scores, values, state.c, state.a)]
    outputs, final = prefix_attention(
        leaves[0], leaves[1], ScanState(state.m, leaves[2], leaves[3]), reset, valid, form=form
    )
    weights = torch.linspace(-1, 1, outputs.numel(), dtype=torch.float64).view(outputs.shape).sin()
    total = (outputs * weights).sum() + (final.c * weights[:, :, 0, 0]).sum() + (final.a * weights[:, :, 1]).sum()
    return [outputs.detach(), *(part.detach() for part in final), *torch.autograd.grad(total, leaves)]


def assert_chunked_equals_parallel(given, tolerance=1e-9):
    ours, theirs = (outputs_and_gradients(form, *given) for form in ("chunked", "parallel"))
    for name, computed, expected in zip(RESULTS, ours, theirs, strict=True):
        assert_close(name, computed, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("time", range(1, 1200, 7))
def test_a_chunk_length_is_near_the_usual_and_a_divisor_if_any(time):
    length = chunk_length(time)
    assert CHUNK // 2 <= length < 2 * CHUNK
    divisors = [c for c in range(CHUNK // 2, 2 * CHUNK) if time % c == 0]
    if divisors:
        assert time % length == 0
        assert abs(length - CHUNK) == min(abs(c - CHUNK) for c in divisors)
    else:
        assert length == CHUNK


@pytest.mark.parametrize(
    ("time", "length"), [(128, 64), (150, 75), (8192, 64), (60, 60), (131, 64), (1, 64), (3000, 60)]
)
def test_chunks_of_some_lengths(time, length):
    assert chunk_length(time) == length


@pytest.mark.parametrize("time", [9_600, 8_641, 64 * 131])
def test_more_chunks_than_one_table_equal_the_parallel_form(time):
    """Two levels of chunks, which fill the sequence and the second level, or neither (131 is prime)."""
    assert -(-time // chunk_length(time)) > ONE_CHUNK_UP_TO
    assert_chunked_equals_parallel(draw(time))


@pytest.mark.parametrize("time", [997, 1000, 2048])
@pytest.mark.parametrize("resets", [0.0, 0.01, 0.3])
def test_many_levels_of_small_chunks_equal_the_parallel_form(monkeypatch, time, resets):
    monkeypatch.setattr(chunked, "CHUNK", 4)
    monkeypatch.setattr(chunked, "ONE_CHUNK_UP_TO", 4)
    assert_chunked_equals_parallel(draw(time, resets=resets, padded=0.3, seed=time))


def test_whole_chunks_of_padding_at_any_level_change_nothing(monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK", 4)
    monkeypatch.setattr(chunked, "ONE_CHUNK_UP_TO", 4)
    scores, values, state, reset, valid = draw(600, padded=0.0)
    valid[:, :100] = valid[:, 200:390] = valid[:, 560:] = False
    reset[1, 150] = reset[1, 250] = reset[1, 599] = True
    assert_chunked_equals_parallel((scores, values, state, reset, valid))


def test_scores_that_grow_neither_overflow_nor_vanish():
    scores, values, state, reset, valid = draw(9_000)
    for slope in (1.0, -1.0):
        assert_chunked_equals_parallel((scores + slope * torch.arange(9_000), values, state, reset, valid), 1e-8)


@pytest.mark.parametrize("time", [100, 200, 9_000])
def test_bfloat16_gradients_are_bfloat16_and_nearly_right(time):
    scores, values, _, reset, valid = draw(time, batch=1, dtype=torch.bfloat16)
    form = "matrix" if time == 100 else "chunked"
    weights, grads = torch.randn(values.shape, generator=torch.Generator().manual_seed(0)), []
    for dtype in (torch.bfloat16, torch.float64):
        leaves = [part.to(dtype).detach().requires_grad_() for part in (scores, values)]
        outputs, _ = prefix_attention(*leaves, None, reset, valid, form=form if dtype == torch.bfloat16 else "parallel")
        assert outputs.dtype == dtype
        grads.append(torch.autograd.grad((outputs * weights.to(dtype)).sum(), leaves))
    for name, ours, theirs in zip(("d_scores", "d_values"), *grads, strict=True):
        assert ours.dtype == torch.bfloat16
        assert_close(name, ours.double(), theirs, rtol=0.03, atol=0.02 * float(theirs.abs().max()))


def stacked(time, copies=3):
    drawn = [draw(time, seed=seed, resets=0.02) for seed in range(copies)]
    return [torch.stack([one[part] for one in drawn]) for part in (0, 1, 3, 4)], [one[2] for one in drawn]


@pytest.mark.parametrize("form", ["auto", "matrix", "chunked"])
@pytest.mark.parametrize("time", [1, 70, 300])
def test_vmap_equals_a_loop(time, form):
    (scores, values, reset, valid), states = stacked(time)
    state = ScanState(*(torch.stack(parts) for parts in zip(*states, strict=True)))

    def attend(s, v, before, starts, real):
        return prefix_attention(s, v, before, starts, real, form=form)

    outputs, final = torch.func.vmap(attend)(scores, values, state, reset, valid)
    for k in range(3):
        expected, expected_final = attend(scores[k], values[k], states[k], reset[k], valid[k])
        assert_close(f"outputs of model {k}", outputs[k], expected, rtol=1e-12, atol=1e-12)
        for name, ours, theirs in zip(final._fields, final, expected_final, strict=True):
            assert_close(f"{name} of model {k}", ours[k], theirs, rtol=1e-12, atol=1e-12)


def test_vmap_over_some_arguments_equals_a_loop():
    (scores, values, reset, valid), _ = stacked(150)

    def attend(s, v, starts):
        return prefix_attention(s, v, None, starts, valid[0])[0]

    outputs = torch.func.vmap(attend, in_dims=(1, None, 0), out_dims=2)(scores.movedim(0, 1), values[0], reset)
    for k in range(3):
        expected = attend(scores[k], values[0], reset[k])
        assert_close(f"outputs of model {k}", outputs[:, :, k], expected, rtol=1e-12, atol=1e-12)


def squared_outputs(s, v, starts, real):
    return prefix_attention(s, v, None, starts, real)[0].square().sum()


def test_gradients_through_vmap_equal_a_loop():
    (scores, values, reset, valid), _ = stacked(200)
    leaves = [scores.requires_grad_(), values.requires_grad_()]
    together = torch.autograd.grad(torch.func.vmap(squared_outputs)(*leaves, reset, valid).sum(), leaves)
    alone = torch.autograd.grad(
        sum(squared_outputs(*(p[k] for p in (*leaves, reset, valid))) for k in range(3)), leaves
    )
    for name, ours, theirs in zip(("d_scores", "d_values"), together, alone, strict=True):
        assert_close(name, ours, theirs, rtol=1e-12, atol=1e-12)
