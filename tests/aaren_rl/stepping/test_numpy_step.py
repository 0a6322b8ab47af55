"""What NumPy's step has of its own; that it computes what torch's does is in test_step.py."""

import numpy as np
import pytest
import torch

from aaren_rl.mixers import Aaren, Mixer
from aaren_rl.stepping.numpy_step import NumpyStep
from aaren_rl.stepping.step import Step


def run(model, steps=20, batch=2):
    step = Step(model)
    observations = np.random.default_rng(0).normal(size=(steps, batch, 4)).astype(np.float32)
    state, function = np.tile(step.start.numpy(), (batch, 1)), NumpyStep(step)
    for observation in observations:
        action, state = function(observation, np.ones(batch, np.float32), state)
    return action, state


@pytest.mark.parametrize("timesteps", ["none", "learned", "sinusoidal"])
def test_actions_are_float32_and_states_float64(make_model, timesteps):
    action, state = run(make_model(timesteps=timesteps))
    assert (action.dtype, state.dtype) == (np.float32, np.float64)
    assert action.shape == (2, 2)


def test_it_fits_models_whose_mixers_are_all_aaren(make_model, monkeypatch):
    model = make_model(blocks=2)
    assert NumpyStep.fits(Step(model))
    # One block of another kind is enough.
    monkeypatch.setattr(
        Aaren,
        "stepper",
        lambda mixer, *given: (aaren if mixer is model.blocks[0].mixer else Mixer.stepper)(mixer, *given),
    )
    assert not NumpyStep.fits(Step(model))


aaren = Aaren.stepper


@pytest.mark.parametrize("layout", ["interleaved", "fused"])
def test_a_large_mean_in_the_residual_stream_is_taken_away(make_model, layout):
    """Every reader of the stream is a layer norm, so a number added to all components changes nothing."""
    plain, shifted = make_model(layout=layout), make_model(layout=layout)
    with torch.no_grad():
        shifted.embed_norm.bias.add_(40.0)
        for block in shifted.blocks:
            block.contract.bias.add_(70.0)
            block.mixer.output.bias.sub_(25.0)
    np.testing.assert_allclose(run(shifted)[0], run(plain)[0], rtol=0, atol=1e-3)


def test_no_warning_is_given_from_the_first_step_on(make_model):
    with np.errstate(all="raise", under="ignore"):
        run(make_model())


def test_it_leaves_no_graph_of_gradients_behind(make_model):
    model = make_model(timesteps="learned")
    assert torch.is_grad_enabled()
    run(model)
    assert all(parameter.grad is None for parameter in model.parameters())
