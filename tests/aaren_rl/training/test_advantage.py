"""Imitation weighted by advantages."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from helpers import assert_goes_on
from tiny_training import error_in_bandit, make_learner

from aaren_rl.data.spaces import Box, DiscreteSpace
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.errors import InvalidInput
from aaren_rl.model import DecisionModel, ModelConfig, Scaling
from aaren_rl.training.config import TrainingConfig
from aaren_rl.training.learner import SingleLearner
from aaren_rl.training.objectives.values import value_unit

BEHIND = {"condition": "norm", "dropout": 0.0}


def make(objective="advantage", **settings):
    return make_learner(objective=objective, shape=BEHIND, **settings)


def test_the_loss_is_as_by_hand():
    learner = make("advantage(temperature=0.5, expectile=0.8, discount=0.9)", context=6)
    objective, segment = learner.objective, learner.sampler.sample()
    unit = value_unit(learner.model, 0.9).item()
    observe = learner.model.inputs.observation
    imitation = learner.model(segment)[0].loss(segment.actions)
    advantages, losses, value_losses, ends = [], [], [], 0
    for row in range(len(segment.valid)):
        last = int(segment.valid[row].nonzero()[-1])
        ends += int(segment.terminated[row, last])
        for t in range(last + 1):
            if t == last and not segment.terminated[row, last]:
                continue
            rewards = segment.rewards[row, t : last + 1] / unit
            if not segment.terminated[row, last]:
                rewards = rewards[:-1]
            total = sum(reward.item() * 0.9**age for age, reward in enumerate(rewards))
            if not segment.terminated[row, last]:
                total += 0.9 ** (last - t) * objective.target(observe(segment.observations[row, last])).item()
            error = total - objective.value(observe(segment.observations[row, t])).item()
            advantages.append(error)
            value_losses.append((0.8 if error > 0 else 0.2) * error**2)
            losses.append(imitation[row, t].item())
    assert 0 < ends < len(segment.valid)
    weights = np.exp(np.array(advantages) / (0.5 * np.abs(advantages).mean())).clip(max=100.0)
    found = objective(segment)
    assert found.metrics["value_loss"].item() == pytest.approx(np.mean(value_losses), rel=1e-4)
    assert found.metrics["largest_weight"].item() == pytest.approx((weights / weights.mean()).max(), rel=1e-4)
    expected = np.mean(weights / weights.mean() * losses) + np.mean(value_losses)
    assert found.loss.item() == pytest.approx(expected, rel=1e-4)


def test_better_actions_of_the_data_weigh_more():
    assert error_in_bandit("advantage(temperature=0.3)") < 0.1


def test_choices_that_pay_are_learned():
    """Random choices of three, of which the one that the observation shows pays."""
    rng = np.random.default_rng(0)
    shown, actions = rng.integers(0, 3, 900), rng.integers(0, 3, 900)
    ends = np.ones(900, dtype=bool)
    rewards = (shown == actions).astype(float)
    data = Trajectories(np.eye(3)[shown], actions, rewards, np.arange(901), ends, ~ends)
    torch.manual_seed(0)
    config = ModelConfig(width=16, blocks=1, dropout=0.0, condition="norm", return_to_go=False, previous_action=False)
    space = DiscreteSpace((), (3,), (0,))
    correct = {}
    for objective in ("imitation", "advantage(temperature=0.3)"):
        model = DecisionModel(config, Box.unbounded((3,)), space, Scaling(*data.observation_statistics(), 1.0))
        schedule = TrainingConfig(
            batch_size=64, context=1, warmup=5, learning_rate=3e-3, clip=10.0, objective=objective, average=0.0
        )
        learner = SingleLearner(model, data, schedule)
        for _ in range(300):
            learner.update()
        segment = learner.sampler.sample()
        with torch.no_grad():
            chosen = learner.model.eval()(segment)[0].mode
        correct[objective] = (chosen == segment.observations.argmax(-1)).float().mean().item()
    cloned, weighted = correct.values()
    assert weighted > 0.95
    assert cloned < 0.8


def test_an_expectile_of_a_half_is_the_mean():
    """One observation, and returns of 0 and 1."""
    ends = np.ones(200, dtype=bool)
    data = Trajectories(np.zeros((200, 3)), np.zeros((200, 2)), np.tile([0.0, 1.0], 100), np.arange(201), ends, ~ends)
    learned = {}
    for expectile in (0.5, 0.9):
        learner = make_learner(
            data,
            objective=f"advantage(expectile={expectile})",
            shape=BEHIND,
            batch_size=64,
            learning_rate=3e-3,
            context=1,
        )
        learner.model.inputs.return_scale.fill_(1.0)
        for _ in range(300):
            learner.update()
        learned[expectile] = learner.objective.value(torch.zeros(1, 3)).item()
    # Of outcomes 0 and 1 in equal shares, the expectile is the share itself.
    assert learned == pytest.approx({0.5: 0.5, 0.9: 0.9}, abs=0.08)


@pytest.mark.parametrize("objective", ["advantage", "advantage(reads=trunk)"])
def test_a_learner_goes_on_from_its_state_dict(objective):
    assert_goes_on(partial(make, objective, average=0.9))


def test_the_target_follows():
    learner = make()
    before = copy.deepcopy(learner.objective.target)
    learner.update()
    parts = before.parameters(), learner.objective.value.parameters(), learner.objective.target.parameters()
    for old, new, found in zip(*parts, strict=True):
        torch.testing.assert_close(found, old.lerp(new, 0.005))


@pytest.mark.parametrize("option", ["temperature=0", "expectile=1", "discount=1"])
def test_options_that_cannot_be_are_refused(option):
    with pytest.raises(InvalidInput, match="expected a temperature above 0, an expectile between 0 and 1"):
        make(f"advantage({option})")


def test_values_of_a_trunk_that_holds_the_return_are_refused():
    with pytest.raises(InvalidInput, match="would read the return that its tokens hold; pass --condition norm"):
        make_learner(objective="advantage(reads=trunk)", shape={"dropout": 0.0})
