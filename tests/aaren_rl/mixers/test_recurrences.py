"""Mixers that are recurrences, against their equations written out in a float64 loop over time."""

import pytest
import torch
from helpers import draw_segment
from hypothesis import given, settings
from hypothesis import strategies as st

from aaren_rl import mixers
from aaren_rl.mixers import state_bytes

WIDTH = 5


def linear(layer, x):
    return x @ layer.weight.T + layer.bias


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def gru(mixer, x, h):
    network = mixer.network
    from_x = x @ network.weight_ih_l0.T + network.bias_ih_l0
    from_h = h @ network.weight_hh_l0.T + network.bias_hh_l0
    (x_r, x_z, x_n), (h_r, h_z, h_n) = from_x.split(WIDTH, -1), from_h.split(WIDTH, -1)
    r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
    return (1 - z) * torch.tanh(x_n + r * h_n) + z * h


def lstm(mixer, x, state):
    network, (h, c) = mixer.network, state.split(WIDTH, -1)
    whole = x @ network.weight_ih_l0.T + network.bias_ih_l0 + h @ network.weight_hh_l0.T + network.bias_hh_l0
    i, f, g, o = whole.split(WIDTH, -1)
    c = sigmoid(f) * c + sigmoid(i) * torch.tanh(g)
    return torch.cat([sigmoid(o) * torch.tanh(c), c], -1)


def positive(x):
    return torch.where(x >= 0, x + 0.5, sigmoid(x))


def mingru(mixer, x, h):
    z = sigmoid(linear(mixer.update, x))
    return (1 - z) * h + z * positive(linear(mixer.candidate, x))


def minlstm(mixer, x, h):
    f, i = sigmoid(linear(mixer.forget, x)), sigmoid(linear(mixer.input, x))
    return f / (f + i) * h + i / (f + i) * positive(linear(mixer.candidate, x))


CELLS = {"gru": gru, "lstm": lstm, "mingru": mingru, "minlstm": minlstm}
"""(mixer, token, state) to the new state, whose first WIDTH numbers are put out."""

every_recurrence = pytest.mark.parametrize("name", CELLS)


def loop(mixer, cell, x, state, reset, valid):
    """Outputs at every token and the last state."""
    outputs = []
    for t in range(x.shape[1]):
        state = torch.where(reset[:, t, None], 0.0, state)
        # What stands in the padding must not reach the state even as a factor of 0.
        token = torch.where(valid[:, t, None], x[:, t], 0.0)
        state = torch.where(valid[:, t, None], cell(mixer, token, state), state)
        outputs.append(linear(mixer.output, state[:, :WIDTH]))
    return torch.stack(outputs, 1), state


def draw(mixer, batch, time, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, time, WIDTH, generator=generator, dtype=torch.float64)
    return x, torch.randn(mixer.initial_state(batch).shape, generator=generator, dtype=torch.float64).abs()


def marks(*rows):
    """Masks from rows of letters: R a reset before a token, r one before padding, x a token, . padding."""
    reset = torch.tensor([[letter in "Rr" for letter in row] for row in rows])
    return reset, torch.tensor([[letter in "Rx" for letter in row] for row in rows])


PATTERNS = {
    "a single token": ("x",),
    "a single padding": (".",),
    "a single reset": ("R", "x", ".", "r"),
    "no padding": ("xxxxxxx", "Rxxxxxx"),
    "only resets at the start": ("Rxxxx", "Rxxxx"),
    "right": ("xxxxx..", "x......", "Rxx....", "xxxxxxx"),
    "left": (".xxxx", "...Rx", "rxxxx", "xxxxx"),
    "both sides and holes": ("..xx.", ".x.x.", "R.x.x"),
    "resets everywhere": ("RRRR", "xRRR", "rRrR"),
    "resets in the middle": ("xxRxxRx", "RxxxxxR", "xxxxxxx"),
    "a row of padding": ("xxRx", "....", "..r."),
    "nothing but padding": ("...", "r..", "..r"),
    "a reset after the last token": ("xxxr.", "xxx..", "xRr.."),
}


def assert_equals_loop(mixer, name, x, state, reset, valid):
    expected, expected_after = loop(mixer, CELLS[name], x, state, reset, valid)
    outputs, after = mixer(x, state, reset, valid)
    torch.testing.assert_close(outputs[valid], expected[valid], rtol=0, atol=1e-10)
    torch.testing.assert_close(after, expected_after, rtol=0, atol=1e-10)


def build(name, loud):
    return loud(mixers.get(name)(WIDTH, 1), std=0.6).double()


@every_recurrence
@pytest.mark.parametrize("pattern", PATTERNS)
def test_forward_is_the_loop(loud, name, pattern):
    mixer, (reset, valid) = build(name, loud), marks(*PATTERNS[pattern])
    x, state = draw(mixer, *valid.shape)
    x = x.masked_fill(~valid.unsqueeze(-1), torch.nan)
    assert_equals_loop(mixer, name, x, state, reset, valid)
    # A mask left out says the same as one that marks nothing.
    if not reset.any():
        torch.testing.assert_close(mixer(x, state, None, valid), mixer(x, state, reset, valid), equal_nan=True)
    if valid.all():
        torch.testing.assert_close(mixer(x, state, reset), mixer(x, state, reset, valid))
        torch.testing.assert_close(mixer(x, None, reset), mixer(x, torch.zeros_like(state), reset))


@every_recurrence
def test_forward_is_the_loop_over_three_hundred_tokens(loud, name):
    mixer = build(name, loud)
    x, state = draw(mixer, 2, 300)
    never, real = torch.zeros(2, 300, dtype=torch.bool), torch.ones(2, 300, dtype=torch.bool)
    assert_equals_loop(mixer, name, x, state, never, real)


@every_recurrence
@settings(deadline=None, max_examples=60, derandomize=True)
@given(data=st.data())
def test_any_resets_and_padding_equal_the_loop(name, data):
    rows, time = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 12))
    reset, valid = marks(
        *data.draw(st.lists(st.text("Rrx.", min_size=time, max_size=time), min_size=rows, max_size=rows))
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mixer = mixers.get(name)(WIDTH, 1).double()
    assert_equals_loop(mixer, name, *draw(mixer, rows, time), reset, valid)


@every_recurrence
@pytest.mark.parametrize("pattern", ["no padding", "right", "both sides and holes", "resets in the middle"])
def test_gradients_are_the_loops(loud, name, pattern):
    mixer, (reset, valid) = build(name, loud), marks(*PATTERNS[pattern])
    x, state = draw(mixer, *valid.shape)

    def gradients(run):
        given = x.clone().requires_grad_(), state.clone().requires_grad_()
        outputs, after = run(*given)
        wanted, _ = draw(mixer, *valid.shape, seed=1)
        loss = (outputs * wanted)[valid].sum() + (after * after.detach().cos()).sum()
        return torch.autograd.grad(loss, [*given, *mixer.parameters()])

    ours = gradients(lambda x, state: mixer(x, state, reset, valid))
    theirs = gradients(lambda x, state: loop(mixer, CELLS[name], x, state, reset, valid))
    assert min(part.abs().max() for part in ours) > 1e-3
    for own, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, expected, rtol=0, atol=1e-10)


@every_recurrence
def test_the_state_before_matters_and_is_as_large_as_said(loud, name):
    mixer = build(name, loud)
    x, state = draw(mixer, 3, 4)
    assert (mixer(x)[0] - mixer(x, state)[0]).abs().amax((1, 2)).min() > 1e-3
    assert state_bytes(mixer.float().initial_state(3)) == 3 * state.shape[1] * 4
    assert torch.equal(mixer.initial_state(3), torch.zeros_like(state, dtype=torch.float32))


@every_recurrence
def test_under_autocast_the_state_keeps_full_precision(loud, name):
    mixer = build(name, loud).float()
    x, state = (part.float() for part in draw(mixer, 3, 40))
    expected, expected_after = mixer(x, state)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, after = mixer(x, state)
        stepped, stepped_after = mixer.step(x[:, 0], state)
    assert (after.dtype, stepped_after.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(after, expected_after, rtol=0, atol=PRECISION[name])
    torch.testing.assert_close(outputs.float(), expected, rtol=0, atol=0.1)
    torch.testing.assert_close(stepped.float(), outputs[:, 0].float(), rtol=0, atol=0.1)


PRECISION = {"gru": 1e-6, "lstm": 1e-6, "mingru": 0.05, "minlstm": 0.05}
"""Of a state under bf16: torch's networks run in float32 as a whole, of the minimal ones the recurrence does."""


@pytest.mark.parametrize(("name", "cell"), [("mingru", mingru), ("minlstm", minlstm)])
def test_float32_stays_right_over_thousands_of_tokens(loud, name, cell):
    mixer = build(name, loud)
    x, state = draw(mixer, 2, 3000)
    never, real = torch.zeros(2, 3000, dtype=torch.bool), torch.ones(2, 3000, dtype=torch.bool)
    with torch.no_grad():
        expected, _ = loop(mixer, cell, x, state, never, real)
        outputs, _ = mixer.float()(x.float(), state.float())
    torch.testing.assert_close(outputs.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["mingru", "minlstm"])
def test_a_minimal_network_is_mapped_over_models(loud, name):
    models = [loud(mixers.get(name)(WIDTH, 1), seed).double() for seed in range(3)]
    x, _ = draw(models[0], 2, 7)
    weights, _ = torch.func.stack_module_state(models)

    def loss(weights):
        return torch.func.functional_call(models[0], weights, (x,))[0].square().sum()

    together = torch.vmap(torch.func.grad(loss))(weights)
    for number, model in enumerate(models):
        model(x)[0].square().sum().backward()
        for part, parameter in model.named_parameters():
            torch.testing.assert_close(together[part][number], parameter.grad)


@pytest.mark.parametrize("name", ["gru", "minlstm"])
def test_it_is_trained_where_the_loss_is_compiled(make_model, name):
    model = make_model(mixer=name)
    segment, gradients = draw_segment(6, batch=3), []
    for loss in (torch.compile(model.loss, backend="aot_eager"), model.loss):
        model.zero_grad()
        loss(segment)[0].backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for compiled, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
