"""What has to hold on a GPU too; skipped where there is none."""

import copy

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from aaren_rl.agents import DecisionAgent
from aaren_rl.checkpoint import AgentCard
from aaren_rl.cuda_graph import CudaGraph
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.hindsight import GoalRewards, Hindsight, Relabelling
from aaren_rl.data.spaces import Box
from aaren_rl.data.trajectories import Episode, Trajectories
from aaren_rl.errors import CheckpointError
from aaren_rl.model import DecisionModel, ModelConfig, Scaling
from aaren_rl.ops.prefix_attention import prefix_attention
from aaren_rl.training.config import TrainingConfig
from aaren_rl.training.ensemble import EnsembleLearner
from aaren_rl.training.learner import SingleLearner
from aaren_rl.training.run import Run

CARD = AgentCard(EnvironmentSpec("none"), "none", "bundled", (1.0,))

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.mark.parametrize("form", ["recurrent", "blockwise", "parallel", "chunked", "matrix", "fused"])
def test_every_scan_form_agrees_with_float64_on_the_cpu(form):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 2, 130, generator=generator) * 5
    values = torch.randn(3, 2, 130, 16, generator=generator)
    reset = torch.rand(3, 130, generator=generator) < 0.05
    expected, _ = prefix_attention(scores.double(), values.double(), reset=reset, form="recurrent")
    outputs, state = prefix_attention(scores.cuda(), values.cuda(), reset=reset.cuda(), form=form)
    assert {part.device.type for part in state} == {"cuda"}
    torch.testing.assert_close(outputs.cpu().double(), expected, rtol=1e-4, atol=1e-5)


def make_learner(updates, model_seed=0, layout="interleaved", dropout=0.0, device="cuda", mixer="aaren", **changes):
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(400, 4)).astype(np.float32)
    ends = np.zeros(8, dtype=np.bool_)
    data = Trajectories(observations, np.tanh(observations[:, :2]), np.ones(400), np.arange(0, 401, 50), ends, ~ends)
    torch.manual_seed(model_seed)
    config = ModelConfig(mixer=mixer, width=32, blocks=1, dropout=dropout, layout=layout)
    spaces = Box.unbounded((4,)), Box.bounded(-np.ones(2), np.ones(2))
    model = DecisionModel(config, *spaces, Scaling(*data.observation_statistics()))
    settings = {"warmup": 1, "learning_rate": 1e-3, "evaluate_every": 50, "log_every": 50, **changes}
    return SingleLearner(model, data, TrainingConfig(updates=updates, **settings), device)


def run(folder, learner):
    Run(learner, CARD, folder).run(progress=False)


def assert_close_models(ours, theirs):
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-4)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("compiled", ["auto", "no"])
@pytest.mark.parametrize("context", [20, "episode", "packed", "carry:20"])
def test_training_learns_and_resumes(tmp_path, precision, compiled, context):
    changes = {"precision": precision, "compile": compiled, "context": context, "average": 0.9}
    if context == "carry:20":
        # Every row of a batch carries an episode of its own.
        changes["batch_size"] = 7
    first = make_learner(50, **changes)
    assert first.cuda_graph
    before = first.model.loss(first.sampler.sample())[0].item()
    run(tmp_path, first)
    second = make_learner(100, **changes)
    resumed = Run(second, CARD, tmp_path)
    resumed.restore()
    assert second.updates == 50
    resumed.run(progress=False)
    assert second.model.loss(second.sampler.sample())[0].item() < 0.5 * before


@pytest.mark.parametrize("mixer", ["gated-aaren", "gated-deltanet", "lru", "mamba2", "mlstm", "rotary-linear"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_recurrences_learn_in_captured_updates(tmp_path, mixer, precision):
    learner = make_learner(100, mixer=mixer, precision=precision, context="packed")
    assert learner.cuda_graph
    before = learner.model.loss(learner.sampler.sample())[0].item()
    run(tmp_path, learner)
    assert learner.model.loss(learner.sampler.sample())[0].item() < 0.5 * before


@pytest.mark.parametrize("context", [20, "carry:20"])
@pytest.mark.parametrize(("begun", "then"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_goes_on_on_a_device_of_another_type(tmp_path, begun, then, context):
    changes = {"context": context, "average": 0.9, "batch_size": 7}
    first = make_learner(50, device=begun, dropout=0.1, **changes)
    before = first.model.loss(first.sampler.sample())[0].item()
    run(tmp_path, first)
    second, lines = make_learner(100, device=then, dropout=0.1, **changes), []
    resumed = Run(second, CARD, tmp_path, say=lines.append)
    resumed.restore()
    (line,) = lines
    assert f"the run was on {begun} until update 50 and goes on on {then}: not bit for bit" in line
    ours, theirs = second.state_dict(), first.state_dict()
    for name in ours.keys() - {"random.cuda", "random.sampler"}:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0)
    resumed.run(progress=False)
    assert second.model.loss(second.sampler.sample())[0].item() < 0.5 * before


@pytest.mark.parametrize("change", [lambda part: part[:8], lambda part: part.float()])
def test_a_random_state_of_the_gpu_that_does_not_fit_is_refused(change):
    learner = make_learner(1)
    learner.update()
    state = learner.state_dict()
    for name in ("random.cuda", "random.sampler"):
        with pytest.raises(CheckpointError, match=f"{name} is .*expected uint8 of shape"):
            make_learner(1).load_state_dict({**state, name: change(state[name])})


@pytest.mark.parametrize("compiled", ["auto", "no"])
def test_captured_updates_equal_called_ones(tmp_path, compiled):
    """The same batches, rates and averages, so nearly the same weights; a capture must freeze none of them."""
    # Validations lie between replays.
    changes = {"precision": "float32", "compile": compiled, "warmup": 30, "average": 0.9, "evaluate_every": 15}
    captured, called = (make_learner(40, cuda_graph=switch, **changes) for switch in ("yes", "no"))
    assert (captured.cuda_graph, called.cuda_graph) == (True, False)
    run(tmp_path / "captured", captured)
    run(tmp_path / "called", called)
    assert_close_models(captured.model, called.model)
    assert_close_models(captured.acting, called.acting)
    assert torch.equal(captured.sampler.generator.get_state(), called.sampler.generator.get_state())


def test_a_captured_update_draws_new_batches_and_dropout():
    learner = make_learner(1, dropout=0.5, learning_rate=1e-30, warmup=0, accumulate=2, clip=1e9)
    update = CudaGraph(learner._do_update, [learner.sampler.generator], learner.device)
    losses = [float(update()["loss"]) for _ in range(12)]
    assert len(set(losses)) == 12


def test_a_run_restored_after_a_capture_goes_on_as_another(tmp_path):
    changes = {"precision": "float32", "compile": "no", "average": 0.9}
    once, twice = (make_learner(20, **changes) for _ in range(2))
    runs = [Run(learner, CARD, tmp_path / name) for name, learner in {"once": once, "twice": twice}.items()]
    for each in runs:
        each.run(progress=False)
    runs[1].restore()
    for learner in (once, twice):
        assert learner.updates == 20
        for _ in range(20):
            learner.update()
    assert_close_models(once.model, twice.model)
    assert_close_models(once.acting, twice.acting)


def test_seeds_trained_together_equal_those_trained_alone(tmp_path):
    changes = {"precision": "float32", "compile": "no", "layout": "fused"}
    alone, together = ([make_learner(40, model_seed=seed, seed=seed, **changes) for seed in range(3)] for _ in range(2))
    run(tmp_path / "together", EnsembleLearner(together))
    for seed, (learner, other) in enumerate(zip(alone, together, strict=True)):
        run(tmp_path / f"alone-{seed}", learner)
        assert_close_models(other.model, learner.model)


def test_seeds_resumed_together_equal_an_undisturbed_run(tmp_path):
    def make_all(updates, first_seed):
        changes = {"precision": "float32", "compile": "no", "layout": "fused", "average": 0.9, "evaluate_every": 20}
        learners = [make_learner(updates, model_seed=first_seed + seed, seed=seed, **changes) for seed in range(2)]
        return EnsembleLearner(learners)

    whole, resumed = make_all(40, 0), make_all(40, 99)
    run(tmp_path / "whole", whole)
    run(tmp_path / "parts", make_all(20, 0))
    parts = Run(resumed, CARD, tmp_path / "parts")
    parts.restore()
    parts.run(progress=False)
    for ours, theirs in zip(resumed.models, whole.models, strict=True):
        assert_close_models(ours, theirs)


@pytest.mark.parametrize("rows", [None, 16])
def test_acting_on_the_gpu_equals_acting_on_the_cpu(rows):
    model = make_learner(1, device="cpu").model
    agents = [DecisionAgent(copy.deepcopy(model), CARD, device) for device in ("cpu", "cuda")]
    rng = np.random.default_rng(1)
    for agent in agents:
        agent.reset(num_envs=rows, autoreset_mode=AutoresetMode.SAME_STEP)
    reward = None
    # More calls than it takes to capture the step, and episodes that end in between.
    for _ in range(30):
        observation = rng.normal(size=4 if rows is None else (rows, 4))
        ended = False if rows is None or reward is None else rng.random(rows) < 0.1
        ours, theirs = (agent.act(observation, reward, ended) for agent in agents)
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
        reward = 1.0 if rows is None else np.ones(rows)


@pytest.mark.parametrize("context", [5, "packed", "carry:4"])
def test_relabelled_updates_are_the_same_in_a_cuda_graph(context):
    rng, episodes = np.random.default_rng(0), []
    for length in (6, 9, 4, 12, 7, 10, 5, 8):
        points, goals = rng.normal(size=(length + 1, 2)).cumsum(0), np.tile(rng.normal(size=2), (length + 1, 1))
        observations = {"observation": points, "achieved_goal": points, "desired_goal": goals}
        episodes.append(Episode(observations, rng.uniform(-1, 1, (length, 1)), np.zeros(length)))
    data = Trajectories.from_episodes(episodes)
    losses = []
    for graph in ("yes", "no"):
        torch.manual_seed(0)
        spaces = data.observation_space, Box.bounded(-np.ones(1), np.ones(1))
        model = DecisionModel(ModelConfig(blocks=1, width=16, dropout=0.0), *spaces, Scaling.of(data))
        settings = {"context": context, "batch_size": 4, "held_out": 0.0, "compile": "no", "precision": "float32"}
        relabelling = Relabelling(Hindsight(0.7, 0.5, 0.25, 0.25), GoalRewards(distance=1.0))
        config = TrainingConfig(updates=20, cuda_graph=graph, **settings)
        learner = SingleLearner(model, data, config, "cuda", relabelling)
        losses.append([learner.update()["loss"].item() for _ in range(12)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
