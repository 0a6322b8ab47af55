import pytest

from aaren_rl.errors import InvalidInput
from aaren_rl.training.config import TrainingConfig


@pytest.mark.parametrize(
    "changes",
    [
        {"updates": 0},
        {"batch_size": 0},
        {"context": 0},
        {"accumulate": 0},
        {"log_every": 0},
        {"evaluate_every": 0},
        {"checkpoint_every": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"clip": -1.0},
        {"warmup": -1},
        {"weight_decay": -1.0},
        {"average": 1.0},
        {"precision": "float16"},
        {"compile": "maybe"},
        {"cuda_graph": True},
    ],
)
def test_schedules_that_cannot_be_are_refused(changes):
    with pytest.raises(InvalidInput, match=next(iter(changes))):
        TrainingConfig(**changes)


@pytest.mark.parametrize("context", ["packed", "carry:5"])
def test_contexts_that_take_all_steps_have_no_weighting(context):
    with pytest.raises(InvalidInput, match="leave weighting at length"):
        TrainingConfig(context=context, weighting="uniform")
