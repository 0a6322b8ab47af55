"""What has to hold on a GPU too; skipped where there is none."""

import numpy as np
import pytest
import torch

from aaren_rl.checkpoint import AgentCard
from aaren_rl.model import DecisionModel, ModelConfig, Scaling
from aaren_rl.scan import prefix_attention
from aaren_rl.training import Trainer, TrainingConfig
from aaren_rl.trajectories import Trajectories

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.mark.parametrize("form", ["recurrent", "blockwise", "parallel", "chunked", "matrix"])
def test_every_scan_form_agrees_with_float64_on_the_cpu(form):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 2, 130, generator=generator) * 5
    values = torch.randn(3, 2, 130, 16, generator=generator)
    reset = torch.rand(3, 130, generator=generator) < 0.05
    expected, _ = prefix_attention(scores.double(), values.double(), reset=reset, form="recurrent")
    outputs, state = prefix_attention(scores.cuda(), values.cuda(), reset=reset.cuda(), form=form)
    assert {part.device.type for part in state} == {"cuda"}
    torch.testing.assert_close(outputs.cpu().double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_training_learns_and_resumes(tmp_path, precision):
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(400, 4)).astype(np.float32)
    ends = np.zeros(8, dtype=np.bool_)
    data = Trajectories(observations, np.tanh(observations[:, :2]), np.ones(400), np.arange(0, 401, 50), ends, ~ends)
    scaling = Scaling(*data.observation_statistics(), -np.ones(2, np.float32), np.ones(2, np.float32))

    def trainer(updates):
        torch.manual_seed(0)
        model = DecisionModel(ModelConfig(width=32, blocks=1, dropout=0.0), scaling)
        config = TrainingConfig(
            updates=updates, warmup=1, learning_rate=1e-3, precision=precision, evaluate_every=50, log_every=50
        )
        return Trainer(model, data, config, AgentCard("none", "none", "bundled", (1.0,)), tmp_path, "cuda")

    first = trainer(50)
    before = float(first.model.loss(*first.sampler.sample()))
    first.run(progress=False)
    second = trainer(100)
    second.restore()
    assert second.update == 50
    second.run(progress=False)
    assert float(second.model.loss(*second.sampler.sample())) < 0.5 * before
