import copy

import pytest
import torch

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


def draw(time=20):
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(3, time, 4, generator=generator, dtype=torch.float64) * 3,
        torch.rand(3, time, 2, generator=generator, dtype=torch.float64),
        torch.rand(3, time, generator=generator, dtype=torch.float64) * 100,
        torch.arange(time).expand(3, -1),
    )


@pytest.mark.parametrize("layout", ["interleaved", "fused"])
def test_a_model_of_it_is_a_perceptron_of_the_current_step(make_model, layout):
    model = copy.deepcopy(make_model(mixer="none", layout=layout)).double()
    states, actions, returns_to_go, timesteps = draw()

    def linear(layer, x):
        return x @ layer.weight.T + layer.bias

    def norm(layer, x):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias

    x = linear(model.embed_observation, (states - model.observation_mean) / model.observation_std)
    if layout == "fused":
        middle, half = (model.action_high + model.action_low) / 2, (model.action_high - model.action_low) / 2
        before = linear(model.embed_action, (actions - middle) / half)[:, :-1]
        x = x + linear(model.embed_return, returns_to_go.unsqueeze(-1) / model.return_scale)
        x[:, 1:] += before
    x = norm(model.embed_norm, x)
    for block in model.blocks:
        x = x + linear(block.contract, linear(block.expand, norm(block.perceptron_norm, x)).clamp(min=0))
    unit = torch.tanh(linear(model.head, norm(model.norm, x)))
    expected = (unit + 1) / 2 * (model.action_high - model.action_low) + model.action_low
    predicted, _ = model(states, actions, returns_to_go, timesteps)
    torch.testing.assert_close(predicted, expected, rtol=0, atol=1e-10)
    assert predicted.std() > 0.05


def test_its_norm_is_all_that_a_loss_does_not_reach(make_model):
    model = make_model(mixer="none", layout="fused")
    model.loss(*(part.float() if part.is_floating_point() else part for part in draw())).backward()
    untouched = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert untouched == {f"blocks.{block}.mixer_norm.{part}" for block in (0, 1) for part in ("weight", "bias")}
