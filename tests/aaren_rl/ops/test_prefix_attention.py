from functools import cache

import numpy as np
import pytest
import torch
from helpers import assert_close, assert_same
from hypothesis import given, settings
from hypothesis import strategies as st

from aaren_rl.errors import InvalidInput
from aaren_rl.ops.prefix_attention import (
    ScanState,
    choose_form,
    combine,
    decay,
    initial_state,
    prefix_attention,
    read_out,
)

FORMS = ("recurrent", "blockwise", "parallel", "chunked", "matrix", "auto")
LENGTHS = (1, 2, 3, 63, 64, 65, 127, 129, 200)
BATCH, HEADS, DIM = 2, 2, 3
LEAVES = ("scores", "values", "c", "a")


def draw(time, seed=0, scale=3.0, resets=0.0, padded=0.0, with_state=True, batch=BATCH):
    """Random float64 inputs: scores, values, state, reset, valid."""
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.normal(size=(batch, HEADS, time)) * scale)
    values = torch.from_numpy(rng.normal(size=(batch, HEADS, time, DIM)))
    state = None
    if with_state:
        state = ScanState(
            torch.from_numpy(rng.normal(size=(batch, HEADS)) * scale),
            torch.from_numpy(rng.uniform(0.5, 3.0, size=(batch, HEADS))),
            torch.from_numpy(rng.normal(size=(batch, HEADS, DIM))),
        )
    reset = torch.from_numpy(rng.random((batch, time)) < resets)
    valid = torch.from_numpy(rng.random((batch, time)) >= padded)
    return scores, values, state, reset, valid


def loop_reference(scores, values, state=None, reset=None, valid=None):
    """The definition, one token after another, in float64 numpy."""
    scores, values = scores.detach().double().numpy(), values.detach().double().numpy()
    batch, heads, time, dim = values.shape
    outputs = np.zeros_like(values)
    final = np.zeros((batch, heads)), np.zeros((batch, heads)), np.zeros((batch, heads, dim))
    for b in range(batch):
        for h in range(heads):
            m, c, a = -np.inf, 0.0, np.zeros(dim)
            if state is not None:
                m, c, a = (part.detach().double().numpy()[b, h] for part in state)
            for t in range(time):
                if reset is not None and reset[b, t]:
                    m, c, a = -np.inf, 0.0, np.zeros(dim)
                if valid is None or valid[b, t]:
                    top = max(m, scores[b, h, t])
                    c = c * np.exp(m - top) + np.exp(scores[b, h, t] - top)
                    a = a * np.exp(m - top) + np.exp(scores[b, h, t] - top) * values[b, h, t]
                    m = top
                outputs[b, h, t] = a / c if c > 0 else 0.0
            final[0][b, h], final[1][b, h], final[2][b, h] = m, c, a
    return outputs, final


@cache
def draw_with_reference(time, resets, padded, with_state):
    given = draw(time, time, resets=resets, padded=padded, with_state=with_state)
    return given, loop_reference(*given)


def naive_reference(scores, values, state, reset, valid):
    """The definition as one masked softmax per position, differentiable; the maximum is a constant."""
    outputs, last = [], []
    for b in range(values.shape[0]):
        visible, carried, row = [], True, []
        for t in range(values.shape[2]):
            if reset[b, t]:
                visible, carried = [], False
            if valid[b, t]:
                visible = [*visible, t]
            terms_s, terms_c, terms_a = [], [], []
            if visible:
                terms_s.append(scores[b, :, visible])
                terms_c.append(torch.ones_like(scores[b, :, visible]))
                terms_a.append(values[b, :, visible])
            if carried and state is not None:
                terms_s.append(state.m[b].unsqueeze(-1))
                terms_c.append(state.c[b].unsqueeze(-1))
                terms_a.append(state.a[b].unsqueeze(-2))
            if not terms_s:
                c, a = torch.zeros_like(scores[b, :, 0]), torch.zeros_like(values[b, :, 0])
                row.append(a)
            else:
                s = torch.cat(terms_s, -1)
                weights = torch.exp(s - s.detach().amax(-1, keepdim=True))
                c = (weights * torch.cat(terms_c, -1)).sum(-1)
                a = (weights.unsqueeze(-1) * torch.cat(terms_a, -2)).sum(-2)
                row.append(a / c.unsqueeze(-1))
        outputs.append(torch.stack(row, 1))
        last.append((c, a))
    return torch.stack(outputs), torch.stack([c for c, _ in last]), torch.stack([a for _, a in last])


def assert_state(state, expected, tolerance):
    for name, part, wanted in zip(state._fields, state, expected, strict=True):
        np.testing.assert_allclose(part, wanted, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("time", LENGTHS)
def test_outputs_and_state_equal_the_loop(form, time):
    for resets, padded, with_state in ((0.0, 0.0, False), (0.0, 0.0, True), (0.05, 0.2, True), (0.3, 0.5, False)):
        given, (expected, expected_state) = draw_with_reference(time, resets, padded, with_state)
        outputs, state = prefix_attention(*given, form=form)
        np.testing.assert_allclose(outputs, expected, rtol=1e-11, atol=1e-11, err_msg="outputs")
        assert_state(state, expected_state, 1e-11)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("time", [1, 3, 65, 129])
def test_gradients_equal_the_naive_formula(form, time):
    scores, values, state, reset, valid = draw(time, 10 + time, resets=0.03, padded=0.2)
    reset[0] = False  # one row in which the incoming state reaches the end
    leaves = [scores, values, state.c, state.a]
    for leaf in leaves:
        leaf.requires_grad_()
    generator = torch.Generator().manual_seed(time)
    weights = torch.randn(values.shape, generator=generator, dtype=torch.float64)

    def total(outputs, c, a):
        return (outputs * weights).sum() + (c * weights[:, :, 0, 0]).sum() + (a * weights[:, :, -1]).sum()

    outputs, final = prefix_attention(scores, values, state, reset, valid, form=form)
    got = torch.autograd.grad(total(outputs, final.c, final.a), leaves)
    expected = torch.autograd.grad(total(*naive_reference(scores, values, state, reset, valid)), leaves)
    for name, ours, theirs in zip(LEAVES, got, expected, strict=True):
        assert_close(f"d_{name}", ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_nan_in_padding_reaches_neither_outputs_nor_gradients(form):
    scores, values, state, reset, valid = draw(130, 3, resets=0.02, padded=0.4)
    clean, clean_state = prefix_attention(scores, values, state, reset, valid, form=form)
    scores = scores.masked_fill(~valid.unsqueeze(1), torch.nan).requires_grad_()
    values = values.masked_fill(~valid[:, None, :, None], torch.nan).requires_grad_()
    outputs, final = prefix_attention(scores, values, state, reset, valid, form=form)
    assert_same("outputs", outputs, clean)
    assert_same("state", final, clean_state)
    outputs.square().sum().backward()
    assert scores.grad.isfinite().all()
    assert values.grad.isfinite().all()
    assert (scores.grad.masked_select(~valid.unsqueeze(1)) == 0).all()
    assert (values.grad.masked_select(~valid[:, None, :, None]) == 0).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("time", [1, 64, 100])
def test_a_row_of_nothing_but_padding_keeps_its_state(form, time):
    scores, values, state, _, valid = draw(time, 4)
    valid[0] = False
    scores.requires_grad_()
    outputs, final = prefix_attention(scores, values, state, None, valid, form=form)
    for name, after, before in zip(state._fields, final, state, strict=True):
        assert_close(name, after[0], before[0], rtol=1e-15, atol=0)
    assert_close("outputs", outputs[0], (state.a / state.c.unsqueeze(-1))[0].unsqueeze(1).expand(-1, time, -1))
    outputs, final = prefix_attention(scores, values, None, None, valid, form=form)
    assert (outputs[0] == 0).all()
    assert (final.m[0] == -torch.inf).all()
    outputs.sum().backward()
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_of_ten_thousand_neither_overflow_nor_vanish(form, dtype):
    for shift in (1e4, -1e4):
        scores, values, state, reset, valid = draw(131, 5, scale=1.0, resets=0.02, padded=0.1)
        scores = (scores + shift).to(dtype).requires_grad_()
        values = values.to(dtype)
        expected, _ = loop_reference(scores, values, state, reset, valid)
        outputs, _ = prefix_attention(scores, values, state, reset, valid, form=form)
        tolerance = 1e-5 if dtype == torch.float32 else 1e-11
        np.testing.assert_allclose(outputs.detach(), expected, rtol=tolerance, atol=tolerance, err_msg="outputs")
        outputs.square().sum().backward()
        assert scores.grad.isfinite().all()
    # Both signs at once: the small ones weigh nothing.
    scores, values, *_ = draw(70, 6)
    scores = torch.where(scores > 0, 1e4, -1e4).to(dtype)
    expected, _ = loop_reference(scores, values)
    outputs, _ = prefix_attention(scores, values.to(dtype), form=form)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5, err_msg="outputs")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_keep_their_dtype_and_the_state_is_float32(form, dtype):
    scores, values, _, reset, valid = draw(129, 7, resets=0.02, padded=0.1)
    scores, values = scores.to(dtype), values.to(dtype)
    expected, expected_state = loop_reference(scores, values, None, reset, valid)
    outputs, state = prefix_attention(scores, values, None, reset, valid, form=form)
    assert outputs.dtype == dtype
    assert {part.dtype for part in state} == {torch.float32}
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    np.testing.assert_allclose(outputs.double(), expected, rtol=tolerance, atol=tolerance, err_msg="outputs")
    assert_state(state, expected_state, 1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_autocast_does_not_lower_the_precision_of_the_scan(form):
    scores, values, *_ = draw(129, 8, with_state=False)
    expected, _ = prefix_attention(scores.float(), values.float(), form=form)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, _ = prefix_attention(scores.float(), values.float(), form=form)
    assert_same("outputs", outputs, expected)


@settings(max_examples=60)
@given(
    time=st.integers(0, 150),
    split=st.integers(0, 150),
    resets=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    padded=st.sampled_from([0.0, 0.2, 0.9, 1.0]),
    with_state=st.booleans(),
    forms=st.tuples(st.sampled_from(FORMS), st.sampled_from(FORMS)),
    seed=st.integers(0, 1000),
)
def test_pieces_in_any_form_equal_the_loop_over_the_whole(time, split, resets, padded, with_state, forms, seed):
    scores, values, state, reset, valid = draw(time, seed, 3.0, resets, padded, with_state, batch=1)
    split = min(split, time)
    expected, expected_state = loop_reference(scores, values, state, reset, valid)
    first, middle = prefix_attention(
        scores[..., :split], values[..., :split, :], state, reset[:, :split], valid[:, :split], form=forms[0]
    )
    second, final = prefix_attention(
        scores[..., split:], values[..., split:, :], middle, reset[:, split:], valid[:, split:], form=forms[1]
    )
    np.testing.assert_allclose(torch.cat([first, second], 2), expected, rtol=1e-10, atol=1e-10, err_msg="outputs")
    assert_state(final, expected_state, 1e-10)


def test_combine_is_associative_with_the_empty_state_as_identity():
    pieces = [draw(1, seed)[2] for seed in (11, 12, 13)]
    left = combine(combine(pieces[0], pieces[1]), pieces[2])
    right = combine(pieces[0], combine(pieces[1], pieces[2]))
    for name, ours, theirs in zip(left._fields, left, right, strict=True):
        assert_close(name, ours, theirs, rtol=1e-13, atol=1e-13)
    empty = ScanState(*(part.double() for part in initial_state(BATCH, HEADS, DIM)))
    assert_same("empty, piece", combine(empty, pieces[0]), pieces[0])
    assert_same("piece, empty", combine(pieces[0], empty), pieces[0])
    nothing = combine(empty, empty)
    assert_same("empty, empty", nothing, empty)
    assert (read_out(nothing) == 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_sequence_gives_no_outputs_and_the_state_back(form):
    scores, values, state, reset, valid = draw(0, 14)
    outputs, final = prefix_attention(scores, values, state, reset, valid, form=form)
    assert outputs.shape == (BATCH, HEADS, 0, DIM)
    assert_same("state", final, state)


@pytest.mark.parametrize("form", FORMS)
def test_arguments_are_not_changed(form):
    given = draw(100, 15, resets=0.05, padded=0.2)
    arguments = [given[0], given[1], *given[2], given[3], given[4]]
    before = [part.clone() for part in arguments]
    prefix_attention(*given, form=form)
    for name, ours, theirs in zip(
        ("scores", "values", "m", "c", "a", "reset", "valid"), arguments, before, strict=True
    ):
        assert_same(name, ours, theirs)


@pytest.mark.parametrize("form", ["blockwise", "parallel", "chunked"])
def test_a_float32_state_is_right_after_a_hundred_thousand_tokens(form):
    generator = torch.Generator().manual_seed(16)
    tokens = 100_000
    scores = torch.randn(1, 1, tokens, generator=generator)
    values = torch.randn(1, 1, tokens, 2, generator=generator) + 1.0
    state = None
    for start in range(0, tokens, 10_000):
        piece = slice(start, start + 10_000)
        outputs, state = prefix_attention(scores[..., piece], values[..., piece, :], state, form=form)
    weights = torch.exp(scores.double() - scores.double().max())
    assert_close("m", state.m.double(), scores.double().amax(-1))
    assert_close("c", state.c.double(), weights.sum(-1), rtol=1e-5, atol=0)
    expected = (weights.unsqueeze(-1) * values.double()).sum(2)
    assert_close("a", state.a.double(), expected, rtol=1e-5, atol=0)
    assert_close("output", outputs[:, :, -1].double(), expected / weights.sum(-1, keepdim=True), rtol=1e-5, atol=0)


def test_auto_takes_a_form_that_exists_for_every_length():
    assert {choose_form(time, torch.device("cpu")) for time in (1, 2, 128, 129, 100_000)} <= set(FORMS) - {"auto"}


def test_an_unknown_form_is_refused_with_its_nearest_match():
    scores, values, *_ = draw(3)
    with pytest.raises(InvalidInput, match="unknown scan form 'chunkd'; did you mean 'chunked'"):
        prefix_attention(scores, values, form="chunkd")
    with pytest.raises(
        InvalidInput, match="known: 'auto', 'blockwise', 'chunked', 'fused', 'matrix', 'parallel', 'recurrent'"
    ):
        prefix_attention(scores, values, form="zzz")


def test_shapes_and_masks_that_do_not_fit_are_refused():
    scores, values, state, reset, valid = draw(5)
    with pytest.raises(InvalidInput, match=r"expected \(batch, heads, time\) and"):
        prefix_attention(scores[:, :, :4], values)
    with pytest.raises(InvalidInput, match=r"expected \(batch, heads, time\) and"):
        prefix_attention(scores.unsqueeze(-1), values)
    with pytest.raises(InvalidInput, match="reset is"):
        prefix_attention(scores, values, reset=reset[:, :4])
    with pytest.raises(InvalidInput, match=r"valid is torch\.float32"):
        prefix_attention(scores, values, valid=valid.float())
    for wrong in (state._replace(a=state.a[..., :2]), state._replace(c=state.c[:, :1])):
        with pytest.raises(InvalidInput, match="the state holds"):
            prefix_attention(scores, values, wrong)


@pytest.mark.parametrize("wrong", ["m", "m and c"])
def test_a_state_whose_m_or_c_does_not_fit_is_refused(wrong):
    scores, values, state, *_ = draw(5)
    m = state.m[:, :1] if "m" in wrong else state.m
    c = state.c[:, :1] if "c" in wrong else state.c
    with pytest.raises(InvalidInput, match="the state holds"):
        prefix_attention(scores, values, ScanState(m, c, state.a))


def decaying_loop(scores, values, state, reset, valid, log_decay):
    """The definition with decay: outputs and the final (c, a) of every row, differentiable."""
    outputs, last = [], []
    for b in range(values.shape[0]):
        # Weights are plain exponentials here: the inputs are small.
        c, a, row = state.c[b] * state.m[b].exp(), state.a[b] * state.m[b].exp().unsqueeze(-1), []
        for t in range(values.shape[2]):
            if reset[b, t]:
                c, a = torch.zeros_like(c), torch.zeros_like(a)
            if valid[b, t]:
                left, weight = log_decay[b, :, t].exp(), scores[b, :, t].exp()
                c = left * c + weight
                a = left.unsqueeze(-1) * a + weight.unsqueeze(-1) * values[b, :, t]
            row.append(torch.where(c.unsqueeze(-1) > 0, a / c.clamp(min=1e-300).unsqueeze(-1), 0.0))
        outputs.append(torch.stack(row, 1))
        last.append((c, a))
    return torch.stack(outputs), torch.stack([c for c, _ in last]), torch.stack([a for _, a in last])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("piece", [7, 1024])
def test_decay_multiplies_all_earlier_weights(monkeypatch, form, piece):
    """In outputs, the final state and the gradients of all inputs, in one piece and in many."""
    monkeypatch.setattr(decay, "PIECE", piece)
    scores, values, state, reset, valid = draw(30, 3, scale=1.0, resets=0.05, padded=0.2)
    log_decay = -torch.rand(scores.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2
    # One row in which the incoming state reaches the end.
    reset[0] = False
    leaves = {"scores": scores, "values": values, "c": state.c, "a": state.a, "log_decay": log_decay}
    factors = torch.randn(values.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = []
    for run in (decaying_loop, by_form(form)):
        for leaf in leaves.values():
            leaf.grad = None
            leaf.requires_grad_()
        outputs, c, a = run(scores, values, state, reset, valid, log_decay)
        ((outputs * factors * valid[:, None, :, None]).sum() + c.sum() + (a * factors[:, :, 0]).sum()).backward()
        found.append({"outputs": outputs[valid[:, None].expand_as(scores)], "c": c, "a": a})
        found[-1] |= {f"d_{name}": leaf.grad for name, leaf in leaves.items()}
    for name, expected in found[0].items():
        assert_close(name, found[1][name], expected, rtol=1e-9, atol=1e-10)


def by_form(form):
    """Prefix attention with decay, with the final state in plain exponentials."""

    def run(scores, values, state, reset, valid, log_decay):
        outputs, after = prefix_attention(scores, values, state, reset, valid, form, log_decay)
        # A form may not differentiate m, whose value is a constant of the split into m and the rest.
        scale = after.m.detach().exp()
        return outputs, after.c * scale, after.a * scale.unsqueeze(-1)

    return run


def test_a_decay_of_another_shape_is_refused():
    scores, values, *_ = draw(5, with_state=False)
    with pytest.raises(InvalidInput, match=r"log_decay has shape \(2, 2\); expected that of the scores, \(2, 2, 5\)"):
        prefix_attention(scores, values, log_decay=torch.zeros(2, 2))


def test_many_strong_decays_neither_overflow_nor_lose_the_last_tokens():
    """Each token leaves exp(-300) of the past: an output is the token's own value, in float32 over many pieces."""
    values = torch.randn(1, 1, 5_000, 3, generator=torch.Generator().manual_seed(0))
    log_decay = torch.full((1, 1, 5_000), -300.0)
    outputs, state = prefix_attention(torch.zeros(1, 1, 5_000), values, log_decay=log_decay)
    torch.testing.assert_close(outputs, values, rtol=0, atol=0)
    assert all(part.isfinite().all() for part in state)


@pytest.mark.parametrize(("leave", "every", "tolerance"), [(0.97, 1, 1e-5), (np.exp(-50.0), 2, 5e-3)])
def test_digits_lost_to_decay_are_those_stated(leave, every, tolerance):
    """In float32 over several pieces, with gates that forget slowly and gates that all but shut."""
    scores, values, *_ = draw(3_000, 5, with_state=False, batch=1)
    log_decay = torch.zeros_like(scores)
    log_decay[..., ::every] = float(np.log(leave))
    exact, _ = prefix_attention(scores, values, log_decay=log_decay)
    ours, _ = prefix_attention(scores.float(), values.float(), log_decay=log_decay.float())
    assert (ours - exact).abs().max() < tolerance * exact.abs().max()
