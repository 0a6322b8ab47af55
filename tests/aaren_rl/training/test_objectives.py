import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers import assert_close, assert_goes_on, assert_same
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_training import CARD, logged, make_data, make_learner, make_run, train, weights
from torch import nn

from aaren_rl.errors import CheckpointError, DataError, InvalidInput
from aaren_rl.model.decision_model import count_parameters
from aaren_rl.training.config import TrainingConfig
from aaren_rl.training.ensemble import EnsembleLearner
from aaren_rl.training.objectives import Loss, Objective, get_objective, objective_names, register_objective
from aaren_rl.training.run import Run

DISCOUNT, FOLLOW = 0.9, 0.1


@register_objective("test-values")
class WithValues(Objective):
    """Imitation, and beside it a value network that is trained towards rewards and the values of a target network."""

    needs_next_observations = True

    def __init__(self, model):
        super().__init__(model)
        self.value = nn.Sequential(nn.Linear(model.observation_space.size, 8), nn.Tanh(), nn.Linear(8, 1))
        self.target = copy.deepcopy(self.value).requires_grad_(False)

    def forward(self, segment, state=None):
        loss, state = self.model.loss(segment, state)
        following = self.target(segment.next_observations).squeeze(-1)  # (batch, time)
        aim = segment.rewards + DISCOUNT * torch.where(segment.terminated, 0.0, following)
        value = self.value(segment.observations).squeeze(-1)
        value_loss = segment.mean_over_counted((value - aim).square())
        metrics = {"value_loss": value_loss, "value/mean": segment.mean_over_counted(value)}
        return Loss(loss + value_loss, metrics, state)

    @torch.no_grad()
    def after_update(self):
        for target, value in zip(self.target.parameters(), self.value.parameters(), strict=True):
            target.lerp_(value, FOLLOW)


@register_objective("test-frozen-values")
class WithFrozenValues(WithValues):
    """The same, with a first layer of random features that are not trained."""

    def __init__(self, model):
        super().__init__(model)
        self.value[0].requires_grad_(False)


OBJECTIVES = ["test-values", "test-frozen-values"]


def parameters(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def make(objective="test-values", **settings):
    return make_learner(objective=objective, **settings)


def test_objectives_have_names():
    assert {"imitation", *OBJECTIVES} <= set(objective_names())
    assert objective_names() == sorted(objective_names())
    assert get_objective("test-values") is WithValues
    with pytest.raises(InvalidInput, match=r"an objective named 'test-values' is registered already \(WithValues\)"):
        register_objective("test-values")(WithFrozenValues)
    # As a notebook does whose cell is run again.
    assert register_objective("test-values")(WithValues) is WithValues


def test_an_unknown_objective_is_refused_with_near_matches():
    with pytest.raises(InvalidInput, match="imitatoin.*imitation"):
        get_objective("imitatoin")
    with pytest.raises(InvalidInput, match="imitatoin.*imitation"):
        TrainingConfig(objective="imitatoin")


def test_imitation_is_the_loss_of_the_model():
    learner = make_learner(shape={"dropout": 0.0})
    segment = learner.sampler.sample()
    found = learner.objective(segment)
    expected, state = learner.model.loss(segment)
    assert_same("loss", found.loss, expected)
    assert_same("state", found.state, state)
    assert found.metrics == {}
    assert list(learner.objective.networks()) == ["model"]


def test_a_network_is_trained_towards_its_targets():
    """The loss, the gradient and the weights of the value network, as by hand."""
    learner = make(shape={"dropout": 0.0}, warmup=0, clip=1e9, average=0.9)
    value, target = copy.deepcopy(learner.objective.value), copy.deepcopy(learner.objective.target)
    segment = copy.deepcopy(learner.sampler).sample()
    assert segment.terminated.any()
    errors = []
    for row, step in segment.valid.nonzero().tolist():
        aim = segment.rewards[row, step]
        if not segment.terminated[row, step]:
            aim = aim + DISCOUNT * target(segment.next_observations[row, step])
        errors.append(value(segment.observations[row, step]) - aim)
    loss = torch.cat(errors).square().mean()
    loss.backward()
    metrics = learner.update()
    assert metrics["value_loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    norm = torch.stack([parameter.grad.norm() for parameter in value.parameters()]).norm().item()
    assert metrics["gradient_norm/value"].item() == pytest.approx(norm, rel=1e-5)
    optimiser = torch.optim.AdamW(value.parameters(), lr=1e-3, weight_decay=1e-4)
    optimiser.step()
    assert_close("value", parameters(learner.objective.value), parameters(value), rtol=0, atol=1e-5)


def test_a_target_network_follows_after_every_update():
    learner = make()
    for _ in range(3):
        before, values = parameters(learner.objective.target), parameters(learner.objective.value)
        learner.update()
        for name, value in parameters(learner.objective.value).items():
            assert not torch.equal(value, values[name]), name
            expected = before[name].lerp(value, FOLLOW)
            assert_same(name, parameters(learner.objective.target)[name], expected)


def test_networks_have_optimisers_and_clips_of_their_own():
    """What a second network learns leaves the model's updates as they are."""
    learner = make(shape={"dropout": 0.0}, clip=1e-3)
    plain = make_learner(shape={"dropout": 0.0}, clip=1e-3)
    assert set(learner.optimisers) == {"model", "value"}
    for _ in range(4):
        found, expected = learner.update(), plain.update()
        assert set(found) == {"loss", "gradient_norm", "gradient_norm/value", "value_loss", "value/mean"}
        assert found["gradient_norm"].item() == expected["gradient_norm"].item()
        assert (found["loss"] - found["value_loss"]).item() == pytest.approx(expected["loss"].item(), rel=1e-5)
    assert_same("model", parameters(learner.model), parameters(plain.model))
    for network in (learner.model, learner.objective.value):
        norm = torch.stack([p.grad.norm() for p in network.parameters() if p.grad is not None]).norm().item()
        assert norm == pytest.approx(1e-3, rel=1e-2)


def test_all_networks_are_saved_by_name():
    learner = make(average=0.9)
    learner.update()
    state = learner.state_dict()
    layers = [f"{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")]
    for name in layers:
        assert_same(name, state[f"objective.value.{name}"], parameters(learner.objective.value)[name])
        assert_same(name, state[f"objective.target.{name}"], parameters(learner.objective.target)[name])
    moments = {name for name in state if name.startswith("optimiser.") and not name.startswith("optimiser.model.")}
    assert moments == {
        f"optimiser.value.{name}.{part}" for name in layers for part in ("step", "exp_avg", "exp_avg_sq")
    }
    assert {name for name in state if "target" in name} == {f"objective.target.{name}" for name in layers}
    frozen = make("test-frozen-values")
    frozen.update()
    assert {name.split(".")[2] for name in frozen.state_dict() if name.startswith("optimiser.value")} == {"2"}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("context", [5, "episode", "packed", "carry:5"])
def test_a_learner_goes_on_from_its_state_dict(objective, context):
    assert_goes_on(partial(make, objective, context=context, average=0.9))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_resumed_run_equals_an_undisturbed_one(tmp_path, objective):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(whole, objective=objective, average=0.9)
    train(parts, objective=objective, average=0.9, updates=10)
    resumed = make_run(parts, objective=objective, average=0.9, model_seed=99)
    resumed.restore()
    resumed.run(progress=False)
    for name in ("training.safetensors", "model.safetensors"):
        ours, theirs = (folder / "checkpoints" / "000000020" / name for folder in (parts, whole))
        assert ours.read_bytes() == theirs.read_bytes(), name
    for name in ("train/loss", "train/value_loss", "train/gradient_norm/value", "validation/loss"):
        assert len(logged(parts, name)) >= 2
        assert logged(parts, name) == logged(whole, name), name


def test_an_agent_holds_the_model_alone(tmp_path):
    run = make_run(tmp_path, objective="test-values")
    (trained,) = run.run(progress=False)
    model = run.learner.model
    assert count_parameters(run.learner.objective) > count_parameters(model)
    for folder in (trained.last, tmp_path / "checkpoints" / "000000020"):
        assert load_file(folder / "model.safetensors").keys() == model.state_dict().keys()
    assert_same("last", weights(trained.last), {name: part.detach() for name, part in model.state_dict().items()})
    assert sorted(path.name for path in trained.last.iterdir()) == ["agent.json", "model.safetensors"]


def test_a_run_of_another_objective_is_not_resumed(tmp_path):
    train(tmp_path, updates=5)
    with pytest.raises(
        CheckpointError, match="objective is imitation there and test-values here; leave --objective out"
    ):
        make_run(tmp_path, objective="test-values").restore()


def test_metrics_of_an_objective_are_logged(tmp_path):
    learner = make()
    updates = [{name: value.item() for name, value in learner.update().items()} for _ in range(20)]
    train(tmp_path, objective="test-values")
    board = EventAccumulator(str(tmp_path)).Reload()
    for name in ("loss", "gradient_norm", "value_loss", "value/mean", "gradient_norm/value"):
        points = logged(tmp_path, f"train/{name}")
        means = {end: sum(each[name] for each in updates[end - 5 : end]) / 5 for end in (5, 10, 15, 20)}
        assert points == pytest.approx(means, rel=1e-5), name
        shown = {event.step: event.value for event in board.Scalars(f"train/{name}")}
        assert shown == pytest.approx(points, rel=1e-5), name


def test_metrics_are_means_over_accumulated_batches():
    learner = make(shape={"dropout": 0.0}, accumulate=2)
    objective, sampler = copy.deepcopy(learner.objective), copy.deepcopy(learner.sampler)
    parts = [objective(sampler.sample()).metrics["value_loss"].item() for _ in range(2)]
    assert learner.update()["value_loss"].item() == pytest.approx(sum(parts) / 2, rel=1e-5)


def test_data_must_have_final_observations_where_needed():
    data = replace(make_data(), final_observations=None)
    with pytest.raises(DataError, match="the observation after each episode's last action, which these data lack"):
        make(data=data)
    make_learner(data=data).update()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_seeds_trained_together_equal_seeds_trained_alone(tmp_path, objective):
    settings = {"objective": objective, "average": 0.9, "shape": {"dropout": 0.0}, "updates": 10, "accumulate": 2}
    alone, together = ([make(**settings, model_seed=seed, seed=seed, warmup=1) for seed in range(3)] for _ in range(2))
    finished = Run(EnsembleLearner(together), CARD, tmp_path / "together").run(progress=False)
    for seed, (learner, beside, result) in enumerate(zip(alone, together, finished, strict=True)):
        Run(learner, CARD, tmp_path / f"alone-{seed}").run(progress=False)
        ours, theirs = beside.state_dict(), learner.state_dict()
        for name, tensor in theirs.items():
            tolerance = 0.0 if name.startswith("random.") else 2e-5
            assert_close(name, ours[name], tensor, rtol=0, atol=tolerance)
        for name in ("train/value_loss", "train/value/mean", "train/gradient_norm/value"):
            expected = pytest.approx(logged(tmp_path / f"alone-{seed}", name), rel=1e-3, abs=1e-4)
            assert logged(result.last.parent, name) == expected, name
    first, second, _ = (learner.objective.target[2].weight for learner in together)
    assert not torch.allclose(first, second)


def test_seeds_resumed_together_keep_all_networks(tmp_path):
    def make_all(model_seed=0, **changes):
        settings = {"objective": "test-frozen-values", "average": 0.9, "shape": {"dropout": 0.0}, **changes}
        return [make(**settings, model_seed=model_seed + seed, seed=seed) for seed in range(2)]

    whole, resumed = make_all(), make_all(model_seed=99)
    Run(EnsembleLearner(whole), CARD, tmp_path / "whole").run(progress=False)
    Run(EnsembleLearner(make_all(updates=10)), CARD, tmp_path / "parts").run(progress=False)
    run = Run(EnsembleLearner(resumed), CARD, tmp_path / "parts")
    run.restore()
    run.run(progress=False)
    for learner, other in zip(resumed, whole, strict=True):
        assert_same("states", learner.state_dict(), other.state_dict())


@register_objective("test-target-model")
class WithTargetModel(Objective):
    """Imitation, and a slow copy of the model that judges in evaluation mode."""

    def __init__(self, model):
        super().__init__(model)
        self.slow = copy.deepcopy(model).requires_grad_(False).eval()

    def forward(self, segment, state=None):
        loss, state = self.model.loss(segment, state)
        return Loss(loss, {"slow_loss": self.slow.loss(segment)[0]}, state)


def test_a_target_keeps_the_mode_that_its_objective_gave_it():
    learner = make("test-target-model")
    assert learner.model.training
    assert not learner.objective.slow.training
    segment = learner.sampler.sample()
    first, second = (learner.objective(segment).metrics["slow_loss"] for _ in range(2))
    assert torch.equal(first, second)


@register_objective("test-loose-parameter")
class WithLooseParameter(WithValues):
    def __init__(self, model):
        super().__init__(model)
        self.temperature = nn.Parameter(torch.zeros(()))


@register_objective("test-shared-parameter")
class WithSharedParameter(WithValues):
    def __init__(self, model):
        super().__init__(model)
        self.critic = nn.Sequential(model.head, nn.Linear(2, 1))


def test_parameters_belong_to_one_network():
    with pytest.raises(InvalidInput, match="'temperature' outside of any network, so nothing would train it"):
        make("test-loose-parameter")
    with pytest.raises(InvalidInput, match="networks 'model' and 'critic' of WithSharedParameter share the parameter"):
        make("test-shared-parameter")


@register_objective("test-buffer")
class WithBuffer(Objective):
    """Imitation, divided by a running scale of its own size."""

    def __init__(self, model):
        super().__init__(model)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, segment, state=None):
        loss, state = self.model.loss(segment, state)
        return Loss(loss / self.scale, {"scale": self.scale.clone()}, state)

    @torch.no_grad()
    def after_update(self):
        self.scale.mul_(1 + self.model.head.linear.weight.abs().mean())


def test_buffers_of_seeds_trained_together_are_their_own():
    settings = {"objective": "test-buffer", "shape": {"dropout": 0.0}}
    alone, together = ([make_learner(model_seed=seed, seed=seed, **settings) for seed in (0, 1)] for _ in range(2))
    ensemble = EnsembleLearner(together)
    for _ in range(4):
        losses = ensemble.update()["loss"]
        for number, learner in enumerate(alone):
            assert_close("loss", losses[number], learner.update()["loss"], rtol=1e-4, atol=1e-6)
    scales = [learner.objective.scale for learner in together]
    assert not torch.equal(*scales)
    for ours, learner in zip(scales, alone, strict=True):
        assert_close("scale", ours, learner.objective.scale, rtol=1e-4, atol=0)


@register_objective("test-taken-name")
class WithTakenName(Objective):
    def forward(self, segment, state=None):
        loss, state = self.model.loss(segment, state)
        return Loss(loss, {"loss": 100 * loss}, state)


def test_metrics_do_not_take_the_names_of_the_run():
    with pytest.raises(InvalidInput, match="a metric 'loss', which the run logs itself; name it otherwise"):
        make("test-taken-name").update()


@register_objective("test-rare-metric")
class WithRareMetric(Objective):
    """A metric in every fifth update."""

    def __init__(self, model):
        super().__init__(model)
        self.register_buffer("updates", torch.zeros(()))

    def forward(self, segment, state=None):
        loss, state = self.model.loss(segment, state)
        return Loss(loss, {} if self.updates % 5 else {"rare": torch.tensor(10.0)}, state)

    def after_update(self):
        self.updates += 1


def test_a_metric_is_averaged_over_the_updates_that_have_it(tmp_path):
    train(tmp_path, objective="test-rare-metric", updates=10, log_every=10)
    assert logged(tmp_path, "train/rare") == {10: 10.0}


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda loss, state: loss, r"Flawed.forward returned a Tensor; expected Loss\(loss, metrics, state\)"),
        (lambda loss, state: (loss, {}, state), "Flawed.forward returned a tuple"),
        (
            lambda loss, state: Loss(loss.expand(3), {}, state),
            r"the loss of Flawed is of shape \(3,\)",
        ),
        (lambda loss, state: Loss(3.0, {}, state), "the loss of Flawed is a float; expected a scalar tensor"),
        (lambda loss, state: Loss(loss.detach(), {}, state), "the loss of Flawed has no gradients"),
        (lambda loss, state: Loss(loss, {"size": 3.0}, state), "the metric 'size' of Flawed is a float"),
        (lambda loss, state: Loss(loss, {"size": loss.expand(2)}, state), r"'size' of Flawed is of shape \(2,\)"),
        (lambda loss, state: Loss(loss, {}, None), "Flawed returned no state, and this --context carries it"),
    ],
)
def test_what_an_objective_returns_is_checked(returned, said):
    @register_objective("test-flawed")
    class Flawed(Objective):
        def forward(self, segment, state=None):
            return returned(*self.model.loss(segment, state))

    context = "carry:5" if "carries" in said else 5
    with pytest.raises(InvalidInput, match=said):
        make("test-flawed", context=context).update()
    if "carries" not in said:
        with pytest.raises(InvalidInput, match=said):
            EnsembleLearner([make("test-flawed", shape={"dropout": 0.0})]).update()


def test_what_is_no_objective_is_refused():
    class WithoutForward(Objective):
        pass

    class WithoutState(Objective):
        def forward(self, segment):
            raise AssertionError

    for objective in (WithoutForward, WithoutState):
        with pytest.raises(InvalidInput, match=rf"{objective.__name__} has no forward\(self, segment, state=None\)"):
            register_objective("test-none")(objective)
    for other in (nn.Linear, lambda model: None):
        with pytest.raises(InvalidInput, match="is no objective; expected a subclass of aaren_rl.training.objectives"):
            register_objective("test-none")(other)
    assert "test-none" not in objective_names()

    @register_objective("test-without-model")
    class WithoutModel(Objective):
        forward = WithBuffer.forward

        def __init__(self, model):
            nn.Module.__init__(self)

    with pytest.raises(
        InvalidInput, match=r"WithoutModel has no model; let its __init__ call super\(\).__init__\(model\)"
    ):
        make("test-without-model")
