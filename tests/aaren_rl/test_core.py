import pytest
import torch
from helpers import assert_close, open_norms
from hypothesis import given, settings
from hypothesis import strategies as st

from aaren_rl import mixers
from aaren_rl.core import RecurrentCore, detached, pack, packed_size, unpack
from aaren_rl.errors import InvalidInput

BATCH, TIME, INPUT = 3, 11, 5


def make_core(mixer="aaren", **options):
    torch.manual_seed(0)
    return open_norms(RecurrentCore(INPUT, 8, mixer=mixer, heads=2, **options)).eval()


def row_of(number, part):
    return (torch.arange(BATCH) == number).view(-1, *[1] * (part.dim() - 1))


def play(core, x, state, resets):
    outputs = []
    for t in range(x.shape[1]):
        y, state = core.step(x[:, t], state, None if resets is None else resets[:, t])
        outputs.append(y)
    return torch.stack(outputs, 1), state


@pytest.mark.parametrize("mixer", mixers.names())
def test_sequences_and_steps_agree_over_episodes(mixer):
    core = make_core(mixer, blocks=2)
    x, resets = torch.randn(BATCH, TIME, INPUT), torch.rand(BATCH, TIME) < 0.3
    with torch.no_grad():
        whole, _ = core(x, None, resets)
        stepped, _ = play(core, x, core.initial_state(BATCH), resets.float())
    assert_close(mixer, whole, stepped, atol=2e-5, rtol=1e-4)


@settings(max_examples=25)
@given(cut=st.integers(1, TIME - 1), start=st.integers(0, TIME - 1), seed=st.integers(0, 99))
def test_a_sequence_goes_on_from_its_state(cut, start, seed):
    core = make_core("gated-aaren")
    torch.manual_seed(seed)
    x, resets = torch.randn(BATCH, TIME, INPUT), torch.zeros(BATCH, TIME)
    resets[1, start] = 1
    with torch.no_grad():
        whole, last = core(x, core.initial_state(BATCH), resets)
        before, state = core(x[:, :cut], None, resets[:, :cut])
        after, state = core(x[:, cut:], state, resets[:, cut:])
    assert_close("outputs", torch.cat([before, after], 1), whole, atol=2e-5, rtol=1e-4)
    assert_close("state", pack(state), pack(last), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32, torch.float64])
def test_what_was_before_a_reset_does_not_count(dtype):
    core = make_core()
    x, resets = torch.randn(BATCH, TIME, INPUT), torch.zeros(BATCH, TIME, dtype=dtype)
    resets[:, 4] = 1
    with torch.no_grad():
        whole, _ = core(x, None, resets)
        alone, _ = core(x[:, 4:])
    assert_close("outputs", whole[:, 4:], alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(core(x)[0][:, 5], whole[:, 5], atol=1e-3)


def test_gradients_go_through_the_state_until_it_is_detached():
    core = make_core()
    first = torch.randn(BATCH, INPUT, requires_grad=True)
    _, state = core.step(first, core.initial_state(BATCH))
    y, _ = core.step(torch.randn(BATCH, INPUT), state)
    (gradient,) = torch.autograd.grad(y.sum(), first, retain_graph=True)
    assert gradient.abs().sum() > 0
    y, _ = core.step(torch.randn(BATCH, INPUT), detached(state))
    assert torch.autograd.grad(y.sum(), first, allow_unused=True) == (None,)


@pytest.mark.parametrize("mixer", ["aaren", "lstm", "local:3", "mamba2"])
def test_a_state_survives_packing(mixer):
    core = make_core(mixer)
    _, state = core(torch.randn(BATCH, TIME, INPUT))
    rows = pack(state)
    assert rows.shape[0] == BATCH
    assert rows.dtype == torch.float32
    assert rows.shape[1] == packed_size(core)
    # Zeros, as of a buffer that was never written, are no state.
    rows[1] = 0
    expected = [
        torch.where(row_of(1, part), start, part) for part, start in zip(state, core.initial_state(BATCH), strict=True)
    ]
    for one, other in zip(unpack(core, rows), expected, strict=True):
        assert_close("state", one, other)


def test_only_growing_states_are_not_of_one_size():
    assert make_core("gated-aaren").fixed_size
    assert make_core("local:3").fixed_size
    assert not make_core("aaren,softmax", blocks=2).fixed_size


def test_shapes_that_do_not_fit_are_named():
    core = make_core()
    state = core.initial_state(BATCH)
    with pytest.raises(InvalidInput, match=r"x has shape \(3, 11, 4\); expected \(batch, time, 5\)"):
        core(torch.zeros(BATCH, TIME, 4))
    with pytest.raises(InvalidInput, match=r"resets has shape \(3, 10\); expected \(3, 11\), as x"):
        core(torch.zeros(BATCH, TIME, INPUT), None, torch.zeros(BATCH, 10))
    with pytest.raises(InvalidInput, match="with a first dimension of 2, as initial_state makes them"):
        core(torch.zeros(2, TIME, INPUT), state)
    with pytest.raises(InvalidInput, match=r"x has shape \(3, 11, 5\); expected \(batch, 5\)"):
        core.step(torch.zeros(BATCH, TIME, INPUT), state)
    with pytest.raises(InvalidInput, match=r"done has shape \(3, 1\); expected \(3,\)"):
        core.step(torch.zeros(BATCH, INPUT), state, torch.zeros(BATCH, 1))
    with pytest.raises(InvalidInput, match="rows have shape"):
        unpack(core, torch.zeros(BATCH, 3))
    with pytest.raises(InvalidInput, match="input_size is 0; expected at least 1"):
        RecurrentCore(0)
    with pytest.raises(InvalidInput, match="aarn"):
        RecurrentCore(3, mixer="aarn")
