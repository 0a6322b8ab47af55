"""The trunk alone: blocks of mixers over tokens."""

import copy

import pytest
import torch
from helpers import assert_close, assert_same

from aaren_rl import mixers
from aaren_rl.mixers import state_tensors
from aaren_rl.model import ModelConfig
from aaren_rl.model.trunk import Trunk

WIDTH = 16
both_layouts = pytest.mark.parametrize("layout", ["interleaved", "fused"])
some_mixers = pytest.mark.parametrize("mixer", ["aaren", "softmax", "local:4,aaren(recency=true),gru"])


@pytest.fixture
def make_trunk(loud):
    def make(**changes):
        shape = {"blocks": 3, "width": WIDTH, "heads": 2, "dropout": 0.0, **changes}
        return loud(Trunk(ModelConfig(**shape))).double().eval()

    return make


def draw(steps, per_step, seed=0, batch=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, steps * per_step, WIDTH, generator=generator, dtype=torch.float64)


@both_layouts
@some_mixers
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("split", [1, 4, 11])
def test_it_continues_from_a_state(make_trunk, layout, mixer, norm, split):
    trunk = make_trunk(layout=layout, mixer=mixer, norm=norm)
    tokens, at = draw(12, trunk.tokens_per_step), split * trunk.tokens_per_step
    whole, after_whole = trunk(tokens)
    assert whole.shape == (2, 12, WIDTH)
    first, state = trunk(tokens[:, :at])
    second, after_second = trunk(tokens[:, at:], state)
    assert_close("hidden", torch.cat([first, second], 1), whole)
    follow = draw(3, trunk.tokens_per_step, seed=1)
    assert_close("follow", trunk(follow, after_second)[0], trunk(follow, after_whole)[0])


@some_mixers
def test_no_state_is_the_initial_one(make_trunk, mixer):
    trunk = make_trunk(mixer=mixer).float()
    tokens = draw(5, 1).float()
    state = trunk.initial_state(2)
    assert len(state) == 3
    assert_close("hidden", trunk(tokens, state)[0], trunk(tokens)[0])


@both_layouts
@some_mixers
def test_a_reset_is_as_if_nothing_came_before(make_trunk, layout, mixer):
    trunk = make_trunk(layout=layout, mixer=mixer)
    per_step = trunk.tokens_per_step
    tokens, reset = draw(9, per_step), torch.zeros(2, 9 * per_step, dtype=torch.bool)
    reset[:, 4 * per_step] = True
    hidden, _ = trunk(tokens, None, reset)
    separate = trunk(tokens[:, : 4 * per_step])[0], trunk(tokens[:, 4 * per_step :])[0]
    assert_close("hidden", hidden, torch.cat(separate, 1))


@both_layouts
@some_mixers
def test_padding_leaves_no_trace_in_hidden_vectors_or_state(make_trunk, layout, mixer):
    trunk = make_trunk(layout=layout, mixer=mixer)
    per_step = trunk.tokens_per_step
    tokens = draw(7, per_step)
    padded = torch.cat([draw(2, per_step, seed=5), tokens, draw(3, per_step, seed=6)], 1)
    valid = torch.zeros(2, 12 * per_step, dtype=torch.bool)
    valid[:, 2 * per_step : 9 * per_step] = True
    hidden, after_padded = trunk(padded, None, None, valid)
    plain, after_plain = trunk(tokens)
    assert_close("hidden", hidden[:, 2:9], plain)
    follow = draw(3, per_step, seed=1)
    assert_close("follow", trunk(follow, after_padded)[0], trunk(follow, after_plain)[0])


@some_mixers
def test_rows_of_a_state_are_reset_alone(make_trunk, mixer):
    trunk = make_trunk(mixer=mixer).float()
    _, state = trunk(draw(6, 1).float())
    follow = draw(3, 1, seed=1).float()
    hidden, _ = trunk(follow, trunk.reset_state(state, torch.tensor([True, False])))
    assert_close("reset row", hidden[0], trunk(follow)[0][0])
    assert_close("other row", hidden[1], trunk(follow, state)[0][1])
    assert (hidden[0] - trunk(follow, state)[0][0]).abs().max() > 1e-3


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_of_each_step_the_last_token_leaves(make_trunk, norm):
    trunk = make_trunk(layout="interleaved", norm=norm)
    assert trunk.tokens_per_step == 3
    tokens = draw(5, 3)
    every_token = copy.deepcopy(trunk)
    every_token.tokens_per_step = 1
    assert_close("hidden", trunk(tokens)[0], every_token(tokens)[0][:, 2::3])


def test_each_block_has_the_mixer_of_its_place(make_trunk):
    trunk = make_trunk(mixer="local:4,aaren(recency=true),gru")
    assert [type(mixer) for mixer in trunk.mixers()] == [mixers.get(name) for name in ("local", "aaren", "gru")]


def test_its_initial_weights_are_small_and_without_bias():
    torch.manual_seed(0)
    trunk = Trunk(ModelConfig(blocks=2, width=64, mixer="softmax"))
    trunk.initialise()
    layers = [module for module in trunk.modules() if isinstance(module, torch.nn.Linear)]
    assert layers
    for layer in layers:
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert not layer.bias.any()


@both_layouts
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("mixer", ["aaren", "local:4,aaren(recency=true),gru"])
def test_its_stepper_equals_forward(make_trunk, loud, layout, norm, mixer):
    trunk = make_trunk(layout=layout, norm=norm, mixer=mixer).float()
    per_step, steps = trunk.tokens_per_step, 6
    before = loud(torch.nn.LayerNorm(WIDTH), seed=2, std=1.0)
    with torch.no_grad():
        tokens = before(draw(steps, per_step).float())
        expected, _ = trunk(tokens)
        stepper = trunk.stepper(before)
        assert stepper.sizes == [len(start) for start in stepper.starts()]
        pieces = [start.expand(2, -1) for start in stepper.starts()]
        for t in range(steps):
            now = tokens[:, t * per_step : (t + 1) * per_step].flatten(0, 1)
            hidden, pieces = stepper(now, tuple(pieces), None)
            assert [piece.shape[1] for piece in pieces] == stepper.sizes
            assert_close(f"hidden of step {t}", hidden, expected[:, t], rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_state_before(make_trunk):
    trunk = make_trunk(mixer="gru", blocks=1)
    _, state = trunk(draw(4, 1).requires_grad_())
    hidden, _ = trunk(draw(2, 1, seed=1), state)
    gradients = torch.autograd.grad(hidden.sum(), state_tensors(state))
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_nothing_is_random_in_evaluation(make_trunk):
    trunk = make_trunk(dropout=0.5)
    assert_same("hidden", trunk(draw(4, 1))[0], trunk(draw(4, 1))[0])
