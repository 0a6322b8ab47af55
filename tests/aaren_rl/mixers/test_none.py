import copy

import pytest
import torch
from helpers import assert_close, double, draw_segment, predict

from aaren_rl.mixers import NoMixing, state_bytes
from aaren_rl.model import count_parameters


def test_whatever_comes_nothing_is_added_and_nothing_is_kept():
    mixer = NoMixing(6, 2)
    x = torch.randn(3, 5, 6, dtype=torch.float64)
    x[0, 2] = torch.nan
    reset, valid = torch.rand(3, 5) < 0.5, torch.rand(3, 5) < 0.5
    for given in ((x,), (x, mixer.initial_state(3), reset, valid)):
        outputs, state = mixer(*given)
        assert torch.equal(outputs, torch.zeros_like(x))
        assert state.shape == (3, 0)
    assert state_bytes(mixer.initial_state(7)) == 0
    assert count_parameters(mixer) == 0
    assert not mixer.state_dict()


def test_its_state_follows_the_module_to_a_device_and_a_type():
    mixer = NoMixing(6, 2).to("meta").double()
    assert mixer.initial_state(3).device.type == "meta"
    assert mixer.initial_state(3).dtype == torch.float64


@pytest.fixture
def segment():
    return double(draw_segment(20, batch=3))


@pytest.mark.parametrize("layout", ["interleaved", "fused"])
def test_a_model_of_it_is_a_perceptron_of_the_current_step(make_model, segment, layout):
    model = copy.deepcopy(make_model(mixer="none", layout=layout)).double()
    inputs, trunk, head = model.inputs, model.trunk, model.head

    def linear(layer, x):
        return x @ layer.weight.T + layer.bias

    def norm(layer, x):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias

    low, high = map(torch.from_numpy, model.action_space.bounds())
    standardised = (segment.observations - inputs.observation.mean) / inputs.observation.std
    x = linear(inputs.embed_observation, standardised)
    if layout == "fused":
        middle, half = (high + low) / 2, (high - low) / 2
        before = linear(inputs.embed_action, (segment.actions - middle) / half)[:, :-1]
        x = x + linear(inputs.embed_return, segment.returns_to_go.unsqueeze(-1) / inputs.return_scale)
        x[:, 1:] += before
    x = norm(inputs.norm, x)
    for block in trunk.blocks:
        x = x + linear(block.contract, linear(block.expand, norm(block.perceptron_norm, x)).clamp(min=0))
    unit = torch.tanh(linear(head.linear, norm(trunk.norm, x)))
    expected = (unit + 1) / 2 * (high - low) + low
    predicted = predict(model, segment)
    assert_close("actions", predicted, expected, rtol=0, atol=1e-10)
    assert predicted.std() > 0.05


def test_its_norm_is_all_that_a_loss_does_not_reach(make_model):
    model = make_model(mixer="none", layout="fused")
    model.loss(draw_segment(20, batch=3))[0].backward()
    untouched = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert untouched == {f"trunk.blocks.{block}.mixer_norm.{part}" for block in (0, 1) for part in ("weight", "bias")}
