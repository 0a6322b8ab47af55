"""The critic: what it learns, and what the model learns from it."""

import copy
from functools import partial

import pytest
import torch
from helpers import assert_close, assert_goes_on
from tiny_training import CARD, error_in_bandit, make_learner, make_run, train, weights

from aaren_rl.data.segment import Segment
from aaren_rl.data.spaces import Box, DiscreteSpace
from aaren_rl.errors import InvalidInput
from aaren_rl.model import DecisionModel, ModelConfig, Scaling
from aaren_rl.model.decision_model import count_parameters
from aaren_rl.training.config import TrainingConfig
from aaren_rl.training.ensemble import EnsembleLearner
from aaren_rl.training.objectives import build_objective
from aaren_rl.training.objectives.values import value_unit, values_to_end
from aaren_rl.training.run import Run

BEHIND = {"condition": "norm", "dropout": 0.0}
FORMS = ["critic", "critic(reads=trunk, weight=0.3)"]
both_forms = pytest.mark.parametrize("objective", FORMS)


def make(objective="critic", shape=BEHIND, **settings):
    return make_learner(objective=objective, shape=shape, **settings)


def values(network, read, action):
    """Both values of one step, from layers applied by hand."""
    found = []
    for layers in (network.first, network.second):
        x = torch.cat([read, action])
        for layer in layers:
            x = layer(x)
        found.append(x)
    return torch.cat(found)


@both_forms
@pytest.mark.parametrize("context", [5, "3+4", "episode", "packed", "carry:5"])
def test_it_learns_the_rewards_to_the_end_of_the_segment_and_the_value_there(objective, context):
    learner = make(objective, context=context)
    critic = learner.objective
    with torch.no_grad():
        for parameter in critic.target_critic.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    segment = learner.sampler.sample()
    found, learns = critic._targets(segment, learner.carried)
    with torch.no_grad():
        hidden, _ = critic.target_model.hidden(segment, learner.carried)
        acted = critic.target_model.predict(hidden, segment).mode
    cases = set()
    for row, last in segment.valid.nonzero().tolist():
        # From this step to the end of its piece of an episode.
        t, total, factor = last, 0.0, 1.0
        while True:
            ends_here = (
                t + 1 == segment.valid.shape[1] or not segment.valid[row, t + 1] or segment.timesteps[row, t + 1] == 0
            )
            if ends_here and not segment.terminated[row, t]:
                read = (
                    hidden[row, t]
                    if "trunk" in objective
                    else critic.model.inputs.observation(segment.observations[row, t])
                )
                with torch.no_grad():
                    total += factor * values(critic.target_critic, read, acted[row, t]).min().item()
                break
            total += factor * segment.rewards[row, t].item() / value_unit(critic.model, 0.99).item()
            if ends_here:
                break
            t, factor = t + 1, factor * critic.discount
        cases.add((segment.terminated[row, t].item(), t == last))
        assert found[row, last].item() == pytest.approx(total, rel=1e-4, abs=1e-5)
        cut = not segment.terminated[row, t] and t == last
        assert learns[row, last] == (segment.counted[row, last] and not cut)
    assert len(cases) == 4
    assert not learns[~segment.valid].any()


def test_a_termination_inside_a_row_ends_the_future():
    """Hindsight goals terminate where they are reached, and the row goes on."""
    terminated = torch.tensor([[False, False, True, False, False]])
    segment = Segment(torch.zeros(1, 5, 3), torch.arange(5)[None], rewards=torch.ones(1, 5), terminated=terminated)
    found, learns = values_to_end(segment, torch.tensor(1.0), torch.full((1, 5), 100.0), 0.9)
    torch.testing.assert_close(found, torch.tensor([[1 + 0.9 + 0.81, 1.9, 1.0, 1 + 90.0, 100.0]]))
    assert learns.tolist() == [[True, True, True, True, False]]


def test_values_have_the_size_of_a_return():
    """Dense rewards without end, and a single one at the end of a long episode."""
    model = make().model
    for returns, rewards, expected in ((3000.0, 6.0, 600.0), (1.0, 1.0, 1.0)):
        model.inputs.return_scale.fill_(returns)
        model.inputs.reward_scale.fill_(rewards)
        assert value_unit(model, 0.99).item() == pytest.approx(expected)


@both_forms
def test_the_critic_learns_nothing_from_the_models_actions(objective):
    """Its gradient is that of its own loss, and the trunk's that of imitation and of the actions alone."""
    learner = make(objective)
    segment = learner.sampler.sample()
    found = learner.objective(segment)
    found.loss.backward()
    gradients = {name: parameter.grad for name, parameter in learner.objective.critic.named_parameters()}
    other = make(objective)
    result = other.objective(segment)
    result.metrics["critic_loss"].backward()
    for name, parameter in other.objective.critic.named_parameters():
        assert_close(name, gradients[name], parameter.grad, rtol=1e-5, atol=1e-7)
    assert all(parameter.grad is None for parameter in other.model.parameters())
    for name in ("target_critic", "target_model"):
        assert all(parameter.grad is None for parameter in getattr(learner.objective, name).parameters())


def test_without_weight_it_imitates():
    learner, plain = make("critic(weight=0)"), make_learner(shape=BEHIND)
    for _ in range(3):
        learner.update(), plain.update()
    for (name, ours), theirs in zip(learner.model.named_parameters(), plain.model.parameters(), strict=True):
        assert_close(name, ours.detach(), theirs.detach(), rtol=0, atol=1e-6)


def test_targets_follow():
    learner = make()
    for name in ("critic", "model"):
        before = copy.deepcopy(getattr(learner.objective, f"target_{name}"))
        learner.update()
        now = getattr(learner.objective, name)
        followed = getattr(learner.objective, f"target_{name}")
        for old, new, found in zip(before.parameters(), now.parameters(), followed.parameters(), strict=True):
            torch.testing.assert_close(found, old.lerp(new, 0.005))


def test_better_actions_than_those_of_the_data_are_found():
    """Random actions are cloned as 0; the rewards ask for 0.5, and for the opposite of an observation."""
    assert error_in_bandit("imitation") > 0.2
    for objective in ("critic(weight=3)", "critic(weight=3, reads=trunk)"):
        assert error_in_bandit(objective) < 0.1, objective


@both_forms
@pytest.mark.parametrize("context", [5, "episode", "packed", "carry:5"])
def test_a_learner_goes_on_from_its_state_dict(objective, context):
    assert_goes_on(partial(make, objective, context=context, average=0.9))


@both_forms
def test_seeds_trained_together_equal_seeds_trained_alone(tmp_path, objective):
    settings = {"objective": objective, "shape": BEHIND, "average": 0.9, "updates": 5}
    alone, together = (
        [make_learner(**settings, model_seed=seed, seed=seed, warmup=1) for seed in range(2)] for _ in range(2)
    )
    Run(EnsembleLearner(together), CARD, tmp_path / "together").run(progress=False)
    for seed, (learner, beside) in enumerate(zip(alone, together, strict=True)):
        Run(learner, CARD, tmp_path / f"alone-{seed}").run(progress=False)
        ours = beside.state_dict()
        for name, tensor in learner.state_dict().items():
            assert_close(name, ours[name], tensor, rtol=0, atol=0.0 if name.startswith("random.") else 1e-4)


def test_the_agent_holds_no_critic(tmp_path):
    run = make_run(tmp_path / "critic", objective="critic", shape=BEHIND)
    (trained,) = run.run(progress=False)
    plain = train(tmp_path / "plain", shape=BEHIND)
    assert weights(trained.last).keys() == weights(plain.last).keys()
    sizes = [(agent / "model.safetensors").stat().st_size for agent in (trained.last, plain.last)]
    assert sizes[0] == sizes[1]
    assert count_parameters(run.learner.objective) > count_parameters(run.learner.model)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("critic(weight=-1)", "weight -1.0 and discount 0.99; expected a weight from 0 on"),
        ("critic(weight=1e999)", "expected a weight from 0 on"),
        ("critic(discount=1)", "discount from 0 up to but not 1"),
        ("critic(reads=pixels)", "option 'reads' is 'pixels'; expected one of observation, trunk"),
        ("critic(wieght=1)", r"unknown option 'wieght'; did you mean 'weight'\?"),
        ("critic(weight)", "cannot be read; expected NAME or NAME"),
        ("imitation(weight=1)", "unknown option 'weight'; imitation has no options"),
    ],
)
def test_options_that_cannot_be_are_refused(objective, message):
    with pytest.raises(InvalidInput, match=message):
        make(objective)


@pytest.mark.parametrize("context", [1, "10+1", "carry:1"])
@pytest.mark.parametrize("objective", ["critic", "advantage"])
def test_segments_of_one_step_are_refused(objective, context):
    with pytest.raises(InvalidInput, match="segments of --context .*1 count one step; pass more"):
        make(objective, context=context)


def test_a_schedule_refuses_an_objective_that_cannot_be_read():
    with pytest.raises(InvalidInput, match="objective 'critic\\(weight=high\\)': option 'weight' is 'high'"):
        TrainingConfig(objective="critic(weight=high)")


def test_models_that_do_not_fit_are_refused():
    with pytest.raises(InvalidInput, match="would read the return that its tokens hold; pass --condition norm"):
        make("critic(reads=trunk)", shape={"dropout": 0.0})
    space = Box.unbounded((3,))
    actions = DiscreteSpace((), (3,), (0,))
    discrete = DecisionModel(ModelConfig(width=8, blocks=1), space, actions, Scaling.identity(space))
    with pytest.raises(InvalidInput, match="the objective critic needs continuous actions"):
        build_objective("critic", discrete)
