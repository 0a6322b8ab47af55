"""Mixers folded for acting, in torch and in NumPy, against their forward pass in float64."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from aaren_rl import mixers
from aaren_rl.mixers.aaren import stepper
from aaren_rl.mixers.base.torch_rnn import TorchRNN
from aaren_rl.ops.numpy_layers import normalise

WIDTH = 12

CONSTANT = [name for name in mixers.names() if mixers.get(name).memory == "constant"]

FOLDED = [
    *CONSTANT,
    "perceiver(latents=1)",
    "local:1",
    "local:7",
    "strided:11",
]
"""Mixers whose stepper has a form in NumPy."""

IN_PAIRS = ("gated-aaren", "rotary-linear")
"""Mixers whose heads need an even width."""

TOLERANCE = {"mlstm": 2e-4, "rotary-linear": 2e-4}
"""Where float32 tokens are off by more than 5e-5: these divide by sums of either sign, some of them small."""

every_folded = pytest.mark.parametrize("spec", FOLDED)


class Steps:
    """A stepper in both libraries over the same tokens, with a row of state for each sequence.

    Args:
        mixer: to fold.
        norm: layer norm in front of it.
        tokens: of a step.
        outputs: tokens that leave a step.
        rows: number of sequences.
        stream: every number of the residual stream.
    """

    def __init__(self, mixer, norm, tokens=1, outputs=1, rows=1, stream=1.0):
        self.norm, self.outputs, self.stream = norm, outputs, stream
        with torch.no_grad():
            self.in_torch = mixer.stepper(norm, tokens, outputs)
        self.in_numpy = self.in_torch.to_numpy(norm)
        self.start = self.in_torch.start
        self.states = [self.start.repeat(rows, 1), np.tile(self.start.numpy(), (rows, 1))]

    def restart(self, rows):
        """Puts rows, (rows,) bool, at the start of an episode."""
        self.states[0] = torch.where(torch.from_numpy(rows)[:, None], self.start, self.states[0])
        self.states[1] = np.where(rows[:, None], self.start.numpy(), self.states[1])

    def __call__(self, x, live=None):
        """What each library adds for tokens (rows, tokens, width), (rows, outputs, width) each."""
        rows, _, width = x.shape
        flat = x.reshape(-1, width)
        onto = torch.full((rows * self.outputs, width), self.stream)
        given = None if live is None else torch.from_numpy(live)
        with torch.inference_mode():
            added, self.states[0] = self.in_torch(self.norm(torch.from_numpy(flat)), onto, self.states[0], given)
        before = self.states[1].copy()
        after = np.full_like(before, np.nan)
        with np.errstate(all="raise", under="ignore"):
            normed = normalise(flat - flat.mean(1, keepdims=True), self.norm.eps)
            centred = self.in_numpy(normed, self.states[1], after, live)
        np.testing.assert_array_equal(self.states[1], before)
        self.states[1] = after
        assert (self.states[0].dtype, after.dtype, centred.dtype) == (torch.float64, np.float64, np.float32)
        return [part.reshape(rows, self.outputs, width) for part in ((added - onto).numpy(), centred)]


def forward(mixer, norm, x, reset=None, valid=None):
    """Outputs of the mixer over whole sequences of tokens (rows, time, width)."""
    mixer, norm = copy.deepcopy(mixer).double(), copy.deepcopy(norm).double()
    with torch.inference_mode():
        masks = (None if part is None else torch.from_numpy(part) for part in (reset, valid))
        return mixer(norm(torch.from_numpy(x).double()), None, *masks)[0].numpy()


def centre(rows):
    return rows - rows.mean(-1, keepdims=True)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@every_folded
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize(("tokens", "outputs"), [(1, 1), (3, 3), (3, 1)])
def test_both_libraries_step_like_the_forward_pass(loud, spec, heads, tokens, outputs):
    width, rows, steps = 18 if spec in IN_PAIRS else 15, 3, 40
    norm, mixer = loud(nn.LayerNorm(width), seed=1, std=0.6), loud(mixers.build(spec, width, heads))
    x = draw(rows, steps, tokens, width)
    begins = np.zeros((rows, steps), dtype=bool)
    begins[:, 0] = begins[1, 7] = begins[2, 20] = begins[2, 21] = True
    valid = np.ones((rows, steps, tokens), dtype=bool)
    if tokens > 1:
        # The first token of an episode, as in an agent, and some in the middle.
        valid[..., 0] = ~begins
        valid[0, 10, 1] = valid[1, 11, 0] = False
    reset = np.zeros_like(valid)
    reset[..., 0] = begins
    expected = forward(
        mixer, norm, *(part.reshape(rows, steps * tokens, *part.shape[3:]) for part in (x, reset, valid))
    )
    expected = expected.reshape(x.shape)[:, :, -outputs:]
    assert spec == "none" or expected.std() > 0.1
    tolerance = TOLERANCE.get(spec, 5e-5) * max(1.0, np.abs(expected).max())
    step = Steps(mixer, norm, tokens, outputs, rows)
    for t in range(steps):
        step.restart(begins[:, t])
        # In most steps no token is missing.
        live = None if valid[:, t].all() else valid[:, t].astype(np.float32)
        in_torch, in_numpy = step(x[:, t], live)
        seen = valid[:, t, -outputs:]
        np.testing.assert_allclose(in_torch[seen], expected[:, t][seen], rtol=0, atol=tolerance)
        np.testing.assert_allclose(in_numpy[seen], centre(expected[:, t])[seen], rtol=0, atol=tolerance)
        assert np.isfinite(in_torch).all()
        assert np.isfinite(in_numpy).all()


@every_folded
def test_missing_tokens_leave_the_state_as_it_is(loud, spec):
    norm, x = loud(nn.LayerNorm(WIDTH), seed=1, std=0.6), draw(2, 8, 3, WIDTH)
    step = Steps(loud(mixers.build(spec, WIDTH, 3)), norm, 3, 3, rows=2)
    for t in range(7):
        step(x[:, t])
    before = [np.asarray(state) for state in step.states]
    step(x[:, 7], np.array([[0, 0, 0], [0, 1, 1]], np.float32))
    for earlier, later in zip(before, step.states, strict=True):
        np.testing.assert_array_equal(later[0], earlier[0])
        # Other rows go on, where there is a state.
        assert np.array_equal(later[1], earlier[1]) == (spec in ("none", "local:1"))


@every_folded
def test_two_thousand_steps_do_not_drift(loud, spec):
    width, steps = 12 if spec in IN_PAIRS else 9, 2_000
    norm, mixer = loud(nn.LayerNorm(width), seed=1, std=0.6), loud(mixers.build(spec, width, 3))
    x = draw(1, steps, width)
    expected, step = forward(mixer, norm, x), Steps(mixer, norm)
    found = np.stack([step(x[:, t : t + 1]) for t in range(steps)], 1)[..., 0, 0, :]
    tolerance = TOLERANCE.get(spec, 5e-5) * max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=tolerance)
    np.testing.assert_allclose(found[1], centre(expected[0]), rtol=0, atol=tolerance)


@pytest.mark.parametrize(("name", "gate"), [("mingru", "update"), ("minlstm", "input"), ("lstm", None)])
def test_a_gate_almost_shut_lets_in_its_share(loud, name, gate):
    """Gates of 8e-7 over 1,000 steps. Rounded to multiples of 6e-8, they would be wrong by some percent."""
    width, steps = 8, 1_000
    norm, mixer = nn.LayerNorm(width), loud(mixers.build(name, width, 1), std=0.1)
    with torch.no_grad():
        mixer.output.bias.zero_()
        if gate is not None:
            getattr(mixer, gate).bias.fill_(-14.0)
        else:
            mixer.network.bias_ih_l0[:width] = -14.0
            mixer.network.bias_ih_l0[width : 2 * width] = 30.0
    x = draw(1, steps, width)
    expected, step = forward(mixer, norm, x)[:, -1], Steps(mixer, norm, stream=0.0)
    for t in range(steps):
        in_torch, in_numpy = step(x[:, t : t + 1])
    assert 1e-6 < np.abs(expected).max() < 1e-3
    tolerance = 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(in_torch[0], expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(in_numpy[0], centre(expected), rtol=0, atol=tolerance)


@every_folded
def test_weights_of_any_size_leave_everything_finite(loud, spec):
    norm = loud(nn.LayerNorm(WIDTH), seed=1, std=30.0)
    step = Steps(loud(mixers.build(spec, WIDTH, 3), std=10.0), norm, 3, 3, rows=2)
    x, first = draw(2, 30, 3, WIDTH), np.array([[0, 1, 1]] * 2, np.float32)
    for t in range(30):
        assert all(np.isfinite(added).all() for added in step(x[:, t], None if t else first))
    assert all(np.isfinite(np.asarray(state)).all() for state in step.states)


@every_folded
def test_later_changes_of_the_mixer_do_not_count(loud, spec):
    mixer, norm, x = loud(mixers.build(spec, WIDTH, 3)), nn.LayerNorm(WIDTH), draw(1, 4, 1, WIDTH)
    same, changed = (Steps(mixer, norm) for _ in range(2))
    expected = [same(x[:, t]) for t in range(4)]
    loud(mixer, seed=5)
    for t in range(4):
        np.testing.assert_array_equal(changed(x[:, t]), expected[t])


@pytest.mark.parametrize("name", CONSTANT)
def test_every_mixer_of_constant_memory_has_a_stepper_in_numpy(name):
    norm = nn.LayerNorm(WIDTH)
    for tokens, outputs in ((1, 1), (3, 1)):
        assert mixers.build(name, WIDTH, 1).stepper(norm, tokens, outputs).to_numpy(norm) is not None


@pytest.mark.parametrize("name", ["fnet", "bigbird"])
def test_a_plain_stepper_has_no_numpy_form(name):
    norm = nn.LayerNorm(WIDTH)
    assert mixers.build(name, WIDTH, 1).stepper(norm, 1, 1).to_numpy(norm) is None


@pytest.mark.parametrize("narrow", [60.0, -1.0], ids=["bounded", "running"])
@pytest.mark.parametrize("spec", ["aaren", "aaren(recency=true)"])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize(("tokens", "outputs"), [(1, 1), (3, 3), (3, 1)])
def test_both_forms_of_aaren_add_the_same_in_numpy_and_torch(loud, monkeypatch, narrow, spec, heads, tokens, outputs):
    monkeypatch.setattr(stepper, "NARROW", narrow)
    norm = loud(nn.LayerNorm(WIDTH), seed=1, std=0.6)
    with torch.no_grad():
        in_torch = loud(mixers.build(spec, WIDTH, heads)).stepper(norm, tokens, outputs)
    assert in_torch.bounded == (narrow > 0)
    in_numpy = in_torch.to_numpy(norm)
    generator = np.random.default_rng(0)
    states, rows = in_torch.start.repeat(2, 1), np.tile(in_torch.start.numpy(), (2, 1))
    for step in range(40):
        x = generator.normal(size=(2 * tokens, WIDTH)).astype(np.float32)
        live = np.ones((2, tokens), np.float32)
        # Only the first step of an episode misses a token.
        live[:, 0] = tokens == 1 or step > 0
        onto = torch.zeros(2 * outputs, WIDTH)
        expected, states = in_torch(
            norm(torch.from_numpy(x)), onto, states, torch.from_numpy(live) if tokens > 1 else None
        )
        centred, after = x - x.mean(1, keepdims=True), np.full_like(rows, np.nan)
        added = in_numpy(normalise(centred, norm.eps), rows, after, live if tokens > 1 else None)
        rows = after
        assert (added.dtype, added.shape) == (np.float32, (2 * outputs, WIDTH))
        np.testing.assert_allclose(added.mean(1), 0.0, rtol=0, atol=1e-6)
        expected = expected.detach().numpy()
        np.testing.assert_allclose(added, expected - expected.mean(1, keepdims=True), rtol=0, atol=2e-5)


def test_a_subclass_that_mixes_otherwise_has_no_numpy_form():
    class Doubled(mixers.Local):
        def mix(self, x, past, seen):
            return 2 * super().mix(x, past, seen)

    norm = nn.LayerNorm(WIDTH)
    assert Doubled(WIDTH, 1).stepper(norm, 1, 1).to_numpy(norm) is None
    assert mixers.Strided(WIDTH, 1).stepper(norm, 1, 1).to_numpy(norm) is not None


def test_a_network_without_a_cell_steps_by_its_own_step():
    class Own(TorchRNN):
        state_parts = 1

        def __init__(self, width, heads):
            super().__init__(width, heads)
            self.network = nn.GRU(width, width, batch_first=True)

        run_rows, step = mixers.GRU.run_rows, mixers.GRU.step

    norm = nn.LayerNorm(WIDTH)
    stepper = Own(WIDTH, 1).stepper(norm, 1, 1)
    assert stepper.to_numpy(norm) is None
    onto, state = stepper(torch.randn(2, WIDTH), torch.zeros(2, WIDTH), stepper.start.repeat(2, 1), None)
    assert onto.shape == (2, WIDTH)
    assert state.shape == (2, WIDTH)
