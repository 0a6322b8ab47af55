import pytest
import torch
from torch.nn import functional as F

from aaren_rl import mixers
from aaren_rl.errors import InvalidInput
from aaren_rl.mixers import Aaren, Mixer, Softmax, state_bytes, state_tensors

WIDTH, HEADS = 12, 3


VARIANTS = [
    *(
        f"{name}({option}={str(not default).lower()})"
        for name in mixers.names()
        for option, default in mixers.option_defaults(name).items()
        if isinstance(default, bool) and name != "gated-aaren"
    ),
    "aaren(rotary=0.5)",
    "gru(conv=3)",
    "local(conv=4)",
    "softmax(conv=2)",
]
"""Mixers with one option changed. The options of gated-aaren are Aaren's."""


def build(spec, loud):
    return loud(mixers.build(spec, WIDTH, HEADS)).double().eval()


@pytest.fixture(params=[*mixers.names(), *VARIANTS])
def mixer(request, loud):
    return build(request.param, loud)


@pytest.fixture(params=[*(name for name in mixers.names() if name != "none"), *VARIANTS])
def mixing(request, loud):
    """For what only holds where tokens matter."""
    return build(request.param, loud)


def tokens(time, batch=3, seed=0):
    return torch.randn(batch, time, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step_through(mixer, x, state=None):
    state = mixer.initial_state(x.shape[0]) if state is None else state
    outputs = []
    for t in range(x.shape[1]):
        y, state = mixer.step(x[:, t], state)
        outputs.append(y)
    return torch.stack(outputs, 1), state


def assert_close(ours, theirs, tolerance=1e-10):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def assert_same_memory(mixer, ours, theirs):
    """Two states are the same when everything that follows is."""
    follow = tokens(3, seed=99)[: state_tensors(ours)[0].shape[0]]
    assert_close(mixer(follow, ours)[0], mixer(follow, theirs)[0])


def gradients(mixer, run, x):
    mixer.zero_grad()
    x = x.clone().requires_grad_()
    y, _ = run(mixer, x)
    (y * tokens(x.shape[1], x.shape[0], seed=5)).sum().backward()
    # A parameter that cannot matter (softmax ignores a shift of all scores) may have none, or zero.
    return [x.grad, *(p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in mixer.parameters())]


@pytest.mark.parametrize("time", [1, 2, 65, 150])
def test_conformance_forward_equals_stepping(mixer, time):
    x = tokens(time)
    whole, after_whole = mixer(x)
    stepped, after_steps = step_through(mixer, x)
    assert_close(whole, stepped)
    assert_same_memory(mixer, after_whole, after_steps)


def test_conformance_forward_and_stepping_share_gradients(mixing):
    x = tokens(70)
    forward = gradients(mixing, lambda m, x: m(x), x)
    stepped = gradients(mixing, step_through, x)
    assert forward[0].abs().max() > 1e-3
    for ours, theirs in zip(forward, stepped, strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("at", [1, 40, 69])
def test_conformance_the_future_changes_nothing_before_it(mixing, at):
    x = tokens(70)
    changed = x.clone()
    changed[:, at:] += 3.0
    before, after = mixing(x)[0], mixing(changed)[0]
    assert_close(before[:, :at], after[:, :at], 1e-12)
    assert (before[:, at:] - after[:, at:]).abs().amax(-1).min() > 1e-6


@pytest.mark.parametrize(("left", "right"), [(5, 0), (0, 5), (3, 70)])
@pytest.mark.parametrize("garbage", [1e4, torch.nan])
def test_conformance_padding_is_as_if_it_were_not_there(mixer, left, right, garbage):
    x = tokens(67)
    plain, after_plain = mixer(x)
    padded = F.pad(x, (0, 0, left, right), value=garbage)
    valid = F.pad(torch.ones(3, 67, dtype=torch.bool), (left, right))
    outputs, after_padded = mixer(padded, valid=valid)
    assert_close(outputs[:, left : left + 67], plain)
    assert_same_memory(mixer, after_padded, after_plain)


def test_conformance_a_row_of_padding_leaves_a_fresh_state(mixer):
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[0] = False
    outputs, state = mixer(tokens(6, 2), valid=valid)
    assert outputs.isfinite().all()
    follow = tokens(3, 2, seed=1)
    assert_close(mixer(follow, state)[0][0], mixer(follow)[0][0])


@pytest.mark.parametrize("at", [0, 1, 33, 64, 129])
def test_conformance_a_reset_makes_two_sequences_of_one(mixer, at):
    x = tokens(130)
    reset = torch.zeros(3, 130, dtype=torch.bool)
    reset[:, at] = True
    before = mixer(tokens(4, seed=7))[1]
    outputs, state = mixer(x, before, reset)
    if at:
        assert_close(outputs[:, :at], mixer(x[:, :at], before)[0])
    second, after_second = mixer(x[:, at:])
    assert_close(outputs[:, at:], second)
    assert_same_memory(mixer, state, after_second)


def test_conformance_rows_reset_and_pad_on_their_own(mixer):
    x = tokens(40)
    reset, valid = torch.zeros(3, 40, dtype=torch.bool), torch.ones(3, 40, dtype=torch.bool)
    reset[0, 10] = reset[0, 30] = reset[2, 5] = True
    valid[1, 20:] = False
    outputs, _ = mixer(x, None, reset, valid)
    for piece in (slice(0, 10), slice(10, 30), slice(30, 40)):
        assert_close(outputs[0, piece], mixer(x[:1, piece])[0][0])
    assert_close(outputs[1, :20], mixer(x[1:2, :20])[0][0])
    assert_close(outputs[2, 5:], mixer(x[2:, 5:])[0][0])


def test_conformance_long_rows_equal_stepping(mixer):
    """Beyond what is mixed at once, with resets on padding too, the last of them behind all real tokens."""
    generator = torch.Generator().manual_seed(3)
    reset, valid = torch.rand(3, 300, generator=generator) < 0.02, torch.rand(3, 300, generator=generator) < 0.9
    valid[0, -1], reset[0, -1] = False, True
    assert (reset & ~valid).any()
    x = tokens(300)
    outputs, after = mixer(x, None, reset, valid)
    expected, state = torch.zeros_like(x), mixer.initial_state(3)
    for t in range(300):
        state = mixer.reset_state(state, reset[:, t])
        y, state = mixer(x[:, t : t + 1], state, None, valid[:, t : t + 1])
        expected[:, t] = y[:, 0]
    assert_close(outputs[valid], expected[valid])
    assert_same_memory(mixer, after, state)


def test_conformance_no_two_tensors_of_a_fresh_state_are_one(mixer):
    """They are written to where a state is carried from segment to segment."""
    parts = [part for part in state_tensors(mixer.initial_state(2)) if part.numel()]
    assert len({part.data_ptr() for part in parts}) == len(parts)


@pytest.mark.parametrize("split", [1, 64, 99])
def test_conformance_splitting_and_resuming_changes_nothing(mixer, split):
    x = tokens(100)
    whole, after_whole = mixer(x)
    first, middle = mixer(x[:, :split])
    second, final = mixer(x[:, split:], middle)
    assert_close(torch.cat([first, second], 1), whole)
    assert_same_memory(mixer, final, after_whole)


def test_conformance_a_row_does_not_depend_on_the_others(mixer):
    x = tokens(70, batch=5)
    together, _ = mixer(x)
    for row in range(5):
        assert_close(together[row : row + 1], mixer(x[row : row + 1])[0])


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_conformance_extreme_tokens_give_no_nan(mixer, size):
    mixer = mixer.float()
    x = (tokens(70).float() + size).requires_grad_()
    outputs, state = mixer(x)
    # As in a block, where the tokens themselves go on too.
    (x + outputs).sum().backward()
    assert outputs.isfinite().all()
    assert x.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in mixer.parameters())
    assert mixer.step(x[:, 0], state)[0].isfinite().all()


def test_conformance_the_state_grows_as_declared(mixer):
    after = {time: state_bytes(step_through(mixer, tokens(time))[1]) for time in (10, 50)}
    assert mixer.memory in ("constant", "window", "growing")
    if mixer.memory != "growing":
        assert after[10] == after[50] == state_bytes(mixer(tokens(50))[1])
        # Numbers and not bytes: a scan's state is in float64 only once it has seen float64.
        sizes = [sum(map(torch.numel, state_tensors(s))) for s in (mixer.initial_state(3), mixer(tokens(50))[1])]
        assert sizes[0] == sizes[1]
    if mixer.memory == "growing":
        # A convolution in front of it holds as many tokens from the start.
        fixed = state_bytes(mixer.initial_state(3))
        assert after[50] - fixed == 5 * (after[10] - fixed)


def test_conformance_reset_rows_are_fresh_and_the_others_go_on(mixer):
    x = tokens(9)
    state = mixer(x)[1]
    rows = torch.tensor([True, False, True])
    follow = tokens(5, seed=3)
    outputs, _ = step_through(mixer, follow, mixer.reset_state(state, rows))
    fresh, gone_on = mixer(follow)[0], mixer(follow, state)[0]
    assert_close(outputs[rows], fresh[rows])
    assert_close(outputs[~rows], gone_on[~rows])
    everywhere, _ = mixer(follow, mixer.reset_state(state, torch.ones(3, dtype=torch.bool)))
    assert_close(everywhere, fresh)


def test_conformance_a_state_handed_in_is_not_changed(mixer):
    state = mixer(tokens(6))[1]
    copies = [part.clone() for part in state_tensors(state)]
    mixer.step(tokens(1)[:, 0], state)
    mixer.reset_state(state, torch.tensor([True, False, True]))
    assert all(torch.equal(after, before) for after, before in zip(state_tensors(state), copies, strict=True))


@pytest.mark.parametrize("name", mixers.names())
def test_a_width_without_whole_heads_is_refused(name):
    for width, heads in ((10, 3), (4, 0), (0, 1)):
        with pytest.raises(InvalidInput, match="multiple of the heads"):
            mixers.build(name, width, heads)


def test_aaren_has_one_vector_more_than_softmax_attention():
    def count(module):
        return sum(p.numel() for p in module.parameters())

    assert count(Aaren(WIDTH, HEADS)) == count(Softmax(WIDTH, HEADS)) + WIDTH


def test_softmax_is_pytorchs_multi_head_attention(loud):
    mixer = loud(Softmax(WIDTH, HEADS)).double()
    theirs = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([p.weight for p in (mixer.query, mixer.key, mixer.value)]))
        theirs.in_proj_bias.copy_(torch.cat([p.bias for p in (mixer.query, mixer.key, mixer.value)]))
        theirs.out_proj.weight.copy_(mixer.output.weight)
        theirs.out_proj.bias.copy_(mixer.output.bias)
    x = tokens(30)
    future = torch.ones(30, 30, dtype=torch.bool).triu(1)
    assert_close(mixer(x)[0], theirs(x, x, x, attn_mask=future, need_weights=False)[0])


def test_softmax_drops_what_no_row_needs_any_more(loud):
    mixer = loud(Softmax(WIDTH, HEADS)).double()
    state = mixer(tokens(8))[1]
    assert mixer.reset_state(state, torch.tensor([True, True, True])).live.shape[1] == 0
    assert mixer.reset_state(state, torch.tensor([True, False, True])).live.shape[1] == 8


def test_state_bytes_counts_every_tensor_of_a_state():
    # m and c are one float32 per head, a is one per component.
    assert state_bytes(Aaren(WIDTH, HEADS).initial_state(5)) == 5 * (HEADS + HEADS + WIDTH) * 4
    assert state_bytes((torch.zeros(2), [torch.zeros(3, dtype=torch.float64)])) == 8 + 24


def test_an_unknown_name_is_refused_with_its_nearest_match():
    with pytest.raises(InvalidInput, match="unknown mixer 'aren'; did you mean 'aaren'"):
        mixers.get("aren")
    with pytest.raises(InvalidInput, match="known: 'aaren'"):
        mixers.get("zzzzzz")


def test_a_mixer_that_does_not_say_what_it_is_is_refused():
    class Silent(Mixer):
        memory = "constant"

    with pytest.raises(InvalidInput, match="Silent does not declare 'capability'"):
        mixers.register("silent")(Silent)
    assert "silent" not in mixers.names()


def test_a_name_is_registered_once():
    with pytest.raises(InvalidInput, match=r"'aaren' is registered already \(Aaren\)"):
        mixers.register("aaren")(Softmax)
    assert mixers.get("aaren") is Aaren
