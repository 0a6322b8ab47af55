"""What has to hold on a GPU too; skipped where there is none."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from aaren_rl.agents import DecisionAgent
from aaren_rl.checkpoint import AgentCard
from aaren_rl.cuda_graph import Captured
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.model import DecisionModel, ModelConfig, Scaling
from aaren_rl.ops.prefix_attention import prefix_attention
from aaren_rl.training.ensemble import train_together
from aaren_rl.training.run import Trainer, TrainingConfig

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


@pytest.fixture
def make_trainer(tmp_path):
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(400, 4)).astype(np.float32)
    ends = np.zeros(8, dtype=np.bool_)
    data = Trajectories(observations, np.tanh(observations[:, :2]), np.ones(400), np.arange(0, 401, 50), ends, ~ends)
    scaling = Scaling(*data.observation_statistics(), -np.ones(2, np.float32), np.ones(2, np.float32))

    def make(name, updates, model_seed=0, layout="interleaved", dropout=0.0, **changes):
        torch.manual_seed(model_seed)
        model = DecisionModel(ModelConfig(width=32, blocks=1, dropout=dropout, layout=layout), scaling)
        settings = {"warmup": 1, "learning_rate": 1e-3, "evaluate_every": 50, "log_every": 50, **changes}
        config = TrainingConfig(updates=updates, **settings)
        return Trainer(model, data, config, AgentCard("none", "none", "bundled", (1.0,)), tmp_path / name, "cuda")

    return make


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("compiled", ["auto", "no"])
@pytest.mark.parametrize("context", [20, "episode", "packed", "carry:20"])
def test_training_learns_and_resumes(make_trainer, precision, compiled, context):
    changes = {"precision": precision, "compile": compiled, "context": context, "average": 0.9}
    first = make_trainer("run", 50, **changes)
    assert first.captured
    before = float(first.model.loss(*first.sampler.sample()))
    first.run(progress=False)
    second = make_trainer("run", 100, **changes)
    second.restore()
    assert second.update == 50
    second.run(progress=False)
    assert float(second.model.loss(*second.sampler.sample())) < 0.5 * before


@pytest.mark.parametrize("compiled", ["auto", "no"])
def test_recorded_updates_equal_called_ones(make_trainer, compiled):
    """The same batches, rates and averages, so nearly the same weights; recording must freeze none of them."""
    # Validations lie between replays.
    changes = {"precision": "float32", "compile": compiled, "warmup": 30, "average": 0.9, "evaluate_every": 15}
    recorded, called = (make_trainer(graphs, 40, graphs=graphs, **changes) for graphs in ("yes", "no"))
    for trainer in (recorded, called):
        trainer.run(progress=False)
    for ours, theirs in zip(recorded.model.parameters(), called.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)
    for ours, theirs in zip(recorded.acting.parameters(), called.acting.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)
    assert torch.equal(recorded.sampler.generator.get_state(), called.sampler.generator.get_state())


def test_a_recorded_update_draws_new_batches_and_new_dropout_every_time(make_trainer):
    trainer = make_trainer("noise", 1, dropout=0.5, learning_rate=1e-30, warmup=0, accumulate=2, clip=1e9)
    update = Captured(trainer._do_update, [trainer.sampler.generator], trainer.device)
    losses = [float(update()[0]) for _ in range(12)]
    assert len(set(losses)) == 12


def test_a_run_restored_after_recording_goes_on_as_one_that_was_not(make_trainer):
    changes = {"precision": "float32", "compile": "no", "average": 0.9}
    once, twice = (make_trainer(name, 20, **changes) for name in ("once", "twice"))
    for trainer in (once, twice):
        trainer.run(progress=False)
    twice.restore()
    for trainer in (once, twice):
        trainer.config = dataclasses.replace(trainer.config, updates=40)
        trainer.run(progress=False)
    for ours, theirs in zip(once.model.parameters(), twice.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)


def test_seeds_trained_together_equal_those_trained_alone(make_trainer):
    changes = {"precision": "float32", "compile": "no", "layout": "fused"}
    alone = [make_trainer(f"alone-{seed}", 40, model_seed=seed, seed=seed, **changes) for seed in range(3)]
    together = [make_trainer(f"together-{seed}", 40, model_seed=seed, seed=seed, **changes) for seed in range(3)]
    train_together(together, progress=False)
    for trainer, other in zip(alone, together, strict=True):
        trainer.run(progress=False)
        for ours, theirs in zip(other.model.parameters(), trainer.model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)


@pytest.mark.parametrize("rows", [None, 16])
def test_acting_on_the_gpu_equals_acting_on_the_cpu(make_trainer, rows):
    model = make_trainer("model", 1).model.cpu()
    card = AgentCard("none", "none", "bundled", (1.0,))
    agents = [DecisionAgent(copy.deepcopy(model), card, device) for device in ("cpu", "cuda")]
    rng = np.random.default_rng(1)
    for agent in agents:
        agent.reset(num_envs=rows, autoreset_mode=AutoresetMode.SAME_STEP)
    reward = None
    # More calls than it takes to record the step, and episodes that end in between.
    for _ in range(30):
        observation = rng.normal(size=4 if rows is None else (rows, 4))
        ended = False if rows is None or reward is None else rng.random(rows) < 0.1
        ours, theirs = (agent.act(observation, reward, ended) for agent in agents)
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
        reward = 1.0 if rows is None else np.ones(rows)
