"""The return in reach."""

import numpy as np
import pytest
import torch
from helpers import draw_segment, predict
from tiny_training import make_data, make_learner

from aaren_rl.data.segment import Segment
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.errors import InvalidInput
from aaren_rl.model import ModelConfig, Scaling
from aaren_rl.model.reach import EXPECTILE, ReturnReach
from aaren_rl.stepping.model_stepper import ModelStepper
from aaren_rl.stepping.numpy_model_stepper import NumpyModelStepper
from aaren_rl.training.ensemble import EnsembleLearner
from aaren_rl.training.objectives import Loss, Objective, register_objective

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


def test_the_rest_of_the_model_learns_nothing_from_it():
    """The gradients, and what clipping leaves of them, are those of a model without it."""
    learner, plain = (
        make_learner(shape={"dropout": 0.0, **shape}, clip=1e-3) for shape in (REACHING, {"condition": "norm"})
    )
    # The reach is made last, so all else starts from the same random numbers.
    for name, parameter in plain.model.named_parameters():
        assert torch.equal(parameter, learner.model.get_parameter(name)), name
    for _ in range(3):
        found, expected = learner.update(), plain.update()
        assert found["gradient_norm"] == expected["gradient_norm"]
        assert found["gradient_norm/reach"] > 0
        assert (found["loss"] - found["reach_loss"]).item() == pytest.approx(expected["loss"].item(), rel=1e-5)
    for name, parameter in plain.model.named_parameters():
        assert torch.equal(parameter, learner.model.get_parameter(name)), name


@pytest.mark.parametrize("objective", ["imitation", "critic", "advantage"])
def test_every_objective_trains_it_and_the_validation_leaves_it_out(objective):
    learner = make_learner(objective=objective, shape={"dropout": 0.0, **REACHING})
    before = [parameter.clone() for parameter in learner.model.reach.parameters()]
    assert learner.update()["reach_loss"] > 0
    for old, new in zip(before, learner.model.reach.parameters(), strict=True):
        assert not torch.equal(old, new)
    first = learner.validate()[0]["loss"]
    with torch.no_grad():
        learner.model.reach.predict.bias.add_(100.0)
    assert learner.validate()[0]["loss"] == first


@register_objective("test-without-reach")
class WithoutReach(Objective):
    def forward(self, segment, state=None):
        hidden, state = self.model.hidden(segment, state)
        return Loss(self.model.head_loss(hidden, segment), {}, state)


def test_an_objective_that_does_not_train_it_is_refused():
    with pytest.raises(InvalidInput, match="objective test-without-reach does not train the return in reach"):
        make_learner(objective="test-without-reach", shape=REACHING).update()


def test_seeds_trained_together_clip_it_alone_too():
    alone, together = (
        [make_learner(shape={"dropout": 0.0, **REACHING}, clip=1e-3, model_seed=seed, seed=seed) for seed in range(2)]
        for _ in range(2)
    )
    ensemble = EnsembleLearner(together)
    for _ in range(3):
        found = ensemble.update()
        for number, learner in enumerate(alone):
            for name, value in learner.update().items():
                assert found[name][number].item() == pytest.approx(value.item(), rel=1e-4), name


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
    """Observations 0 and 1 are followed by returns of 0 to 1, and of 2 to 3."""
    rng = np.random.default_rng(0)
    kind, ends = rng.integers(0, 2, 600), np.ones(600, dtype=bool)
    observations = np.repeat(kind[:, None], 3, 1).astype(float)
    data = Trajectories(observations, np.zeros((600, 2)), 2 * kind + rng.random(600), np.arange(601), ends, ~ends)
    shape = {"dropout": 0.0, "layout": "fused", **REACHING}
    learner = make_learner(data, shape=shape, learning_rate=5e-3, context=1, batch_size=64)
    learner.model.inputs.return_scale.fill_(3.0)
    learner.model.reach.greatest.fill_(1.0)
    for _ in range(300):
        learner.update()
    shown, first = torch.tensor([0.0, 1.0]).view(2, 1, 1).expand(2, 1, 3), torch.zeros(2, 1, dtype=torch.long)
    segment = Segment(shown, first, returns_to_go=torch.zeros(2, 1))
    with torch.no_grad():
        hidden, _ = learner.model.eval().hidden(segment)
        low, high = (3 * learner.model.reach(hidden)).flatten().tolist()
    # The 0.99 expectile of a uniform distribution on 0 to 1 is x with 0.99 (1 - x)^2 = 0.01 x^2.
    wanted = 1 / (1 + (0.01 / 0.99) ** 0.5)
    assert low == pytest.approx(wanted, abs=0.12)
    assert high == pytest.approx(2 + wanted, abs=0.12)


def test_models_that_cannot_have_it_are_refused():
    with pytest.raises(InvalidInput, match="cannot be learned from tokens that hold the return; pass --condition norm"):
        ModelConfig(reach=True)
    with pytest.raises(InvalidInput, match="return_to_go is false; leave one out"):
        ModelConfig(**REACHING, return_to_go=False)
    none = np.zeros(1, np.float32)
    with pytest.raises(InvalidInput, match="expected two finite numbers, the least first"):
        Scaling(none, none, return_range=(1.0, 0.0))
