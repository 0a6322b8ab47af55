"""What only NumPy's step has; test_step.py compares what it computes with torch."""

import numpy as np
import pytest
import torch

from aaren_rl.mixers import Aaren, Mixer
from aaren_rl.stepping.model_stepper import ModelStepper
from aaren_rl.stepping.numpy_model_stepper import NumpyModelStepper


def run(model, steps=20, batch=2):
    step = ModelStepper(model)
    observations = np.random.default_rng(0).normal(size=(steps, batch, 4)).astype(np.float32)
    state, function = np.tile(step.start.numpy(), (batch, 1)), NumpyModelStepper.of(step)
    for observation in observations:
        action, state = function(observation, np.ones(batch, np.float32), state)
    return action, state


@pytest.mark.parametrize("timesteps", ["none", "learned", "sinusoidal"])
def test_actions_are_float32_and_states_float64(make_model, timesteps):
    action, state = run(make_model(timesteps=timesteps))
    assert (action.dtype, state.dtype) == (np.float32, np.float64)
    assert action.shape == (2, 2)


def test_it_is_for_models_whose_mixers_all_have_that_form(make_model, monkeypatch):
    model = make_model(blocks=2)
    assert isinstance(NumpyModelStepper.of(ModelStepper(model)), NumpyModelStepper)
    # One block without it is enough; a step folds its blocks in their order.
    steppers = iter([Aaren.stepper, Mixer.stepper])
    monkeypatch.setattr(Aaren, "stepper", lambda mixer, *given: next(steppers)(mixer, *given))
    step = ModelStepper(model)
    assert [block.mixer.to_numpy(block.mixer_norm) is None for block in step.trunk.blocks] == [False, True]
    assert NumpyModelStepper.of(step) is None


def test_it_is_not_for_models_of_post_norm(make_model):
    assert NumpyModelStepper.of(ModelStepper(make_model(norm="post"))) is None


@pytest.mark.parametrize("layout", ["interleaved", "fused"])
def test_a_large_mean_in_the_residual_stream_is_taken_away(make_model, layout):
    """Every reader of the stream is a layer norm, so a number added to all components changes nothing."""
    plain, shifted = make_model(layout=layout), make_model(layout=layout)
    with torch.no_grad():
        shifted.inputs.norm.bias.add_(40.0)
        for block in shifted.trunk.blocks:
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
