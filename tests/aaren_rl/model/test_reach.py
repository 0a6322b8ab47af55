"""The return in reach."""

import copy

import numpy as np
import pytest
import torch
from helpers import draw_segment, predict
from tiny_training import make_data, make_learner

from aaren_rl.errors import InvalidInput
from aaren_rl.model import DecisionModel, ModelConfig, Scaling
from aaren_rl.model.reach import EXPECTILE, ReturnReach
from aaren_rl.stepping.model_stepper import ModelStepper
from aaren_rl.stepping.numpy_model_stepper import NumpyModelStepper

REACHING = {"condition": "norm", "reach": True}


def make_head(width=8, returns=(-50.0, 200.0), scale=100.0):
    none = np.zeros(1, np.float32)
    return ReturnReach(width, Scaling(none, none + 1, scale, 1.0, returns))


def expectile(values, share):
    """The number that balances squared errors: share above, 1 - share below; found by bisection."""
    low, high = values.min(), values.max()
    for _ in range(200):
        middle = (low + high) / 2
        above, below = (values - middle).clip(min=0).sum(), (middle - values).clip(min=0).sum()
        low, high = (middle, high) if share * above > (1 - share) * below else (low, middle)
    return low


@pytest.mark.parametrize("share", [0.5, 0.9, EXPECTILE])
def test_the_loss_is_least_at_the_expectile(share, monkeypatch):
    monkeypatch.setattr("aaren_rl.model.reach.EXPECTILE", share)
    returns = np.random.default_rng(0).exponential(size=200)
    head, observed = make_head(), torch.from_numpy(returns).float()
    with torch.no_grad():
        head.predict.weight.zero_()
        losses = {}
        for guess in np.linspace(0, returns.max(), 400):
            head.predict.bias.fill_(guess)
            losses[guess] = head.loss(torch.zeros(200, 8), observed).mean().item()
    found = min(losses, key=losses.get)
    assert found == pytest.approx(expectile(returns, share), abs=0.02)
    if share == 0.5:
        assert found == pytest.approx(returns.mean(), abs=0.02)


def test_it_is_clamped_to_the_range_of_the_data():
    head = make_head()
    with torch.no_grad():
        head.predict.bias.fill_(9.0)
        assert (head(torch.zeros(3, 8)) == 2.0).all()
        head.predict.bias.fill_(-9.0)
        assert (head(torch.zeros(3, 8)) == -0.5).all()


def test_the_range_is_that_of_the_returns_to_go():
    data = make_data()
    scaling = Scaling.of(data)
    assert scaling.return_range == pytest.approx((data.returns_to_go.min(), data.returns_to_go.max()))


def test_the_trunk_learns_nothing_from_it():
    learner, plain = (make_learner(shape={"dropout": 0.0, **shape}) for shape in (REACHING, {"condition": "norm"}))
    segment = learner.sampler.sample()
    learner.model.loss(segment)[0].backward()
    plain.model.loss(segment)[0].backward()
    for name, parameter in plain.model.named_parameters():
        ours = learner.model.get_parameter(name).grad
        # The parameters start from the same random numbers, since the reach is made last.
        assert (ours is None) == (parameter.grad is None), name
    reach = {name for name, part in learner.model.named_parameters() if name.startswith("reach.")}
    assert len(reach) == 4
    assert all(learner.model.get_parameter(name).grad.abs().sum() > 0 for name in reach)
    hidden, _ = learner.model.hidden(segment)
    loss = learner.model.reach_loss(hidden, segment)
    assert torch.autograd.grad(loss, learner.model.trunk.parameters(), allow_unused=True) == (None,) * len(
        list(learner.model.trunk.parameters())
    )


def test_no_more_than_what_is_in_reach_is_asked_for(make_model):
    model = make_model(blocks=2, **REACHING)
    segment = draw_segment(40)
    with torch.no_grad():
        hidden, _ = model.hidden(segment)
        in_reach = model.reach(hidden) * model.inputs.return_scale
        assert ((in_reach < segment.returns_to_go).any() and (in_reach > segment.returns_to_go).any()).item()
        bounded = segment._replace(returns_to_go=torch.minimum(segment.returns_to_go, in_reach))
        auto = segment._replace(returns_to_go=torch.full_like(in_reach, torch.inf))
        torch.testing.assert_close(predict(model, segment), model(bounded)[0].mode)
        torch.testing.assert_close(predict(model, auto), model(auto._replace(returns_to_go=in_reach))[0].mode)


@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_auto_asks_for_what_is_in_reach_at_every_step(make_model, library):
    model = make_model(blocks=2, **REACHING)
    step = ModelStepper(model)
    state = step.initial_state(torch.full((2,), torch.inf))
    numpy_step = NumpyModelStepper.of(step)
    segment, acted = draw_segment(30), []
    with torch.no_grad():
        for t in range(30):
            if library == "numpy":
                action, after = numpy_step(segment.observations[:, t].numpy(), np.ones(2, np.float32), state.numpy())
                action, state = torch.from_numpy(action), torch.from_numpy(after)
            else:
                action, state = step(segment.observations[:, t], torch.ones(2), state)
            acted.append(action)
        assert state[:, 0].isinf().all()
        acted = torch.stack(acted, 1)
        auto = segment._replace(actions=acted, returns_to_go=torch.full_like(segment.returns_to_go, torch.inf))
        torch.testing.assert_close(acted, predict(model, auto), rtol=0, atol=1e-4)


def test_it_learns_the_best_return_of_what_is_known():
    """Two kinds of episodes that look alike at first: the better one is in reach, until it shows which kind it is."""
    learner = make_learner(shape={"dropout": 0.0, "layout": "fused", **REACHING}, learning_rate=3e-3, context="episode")
    before = copy.deepcopy(learner.model.reach)
    for _ in range(60):
        learner.update()
    segment = learner.sampler.sample()
    with torch.no_grad():
        hidden, _ = learner.model.eval().hidden(segment)
        scaled = learner.model.inputs.scaled_return(segment.returns_to_go)[segment.valid]
        loss = learner.model.reach.loss(hidden, learner.model.inputs.scaled_return(segment.returns_to_go))
        first = before.loss(hidden, learner.model.inputs.scaled_return(segment.returns_to_go))
        assert loss[segment.valid].mean() < 0.5 * first[segment.valid].mean()
        above = (learner.model.reach(hidden)[segment.valid] >= scaled - 1e-3).float().mean()
    assert above > 0.8


def test_tokens_that_hold_the_return_would_tell_it():
    for changes in ({"reach": True}, {**REACHING, "return_to_go": False}):
        with pytest.raises(InvalidInput, match="since tokens that hold one would tell it; pass --condition norm"):
            ModelConfig(**changes)


def test_a_model_without_it_loses_nothing_by_it(observation_space, action_space, scaling):
    model = DecisionModel(ModelConfig(width=8, blocks=1), observation_space, action_space, scaling)
    assert model.reach is None
    assert model.reach_loss(torch.zeros(1, 1, 8), draw_segment(1)) == 0.0
