"""Training on goals seen in hindsight: reproducible, resumable, and exact about what it asks of the device."""

import numpy as np
import pytest
import torch

from aaren_rl.data.hindsight import GoalRewards, Hindsight, Relabelling
from aaren_rl.data.spaces import Box
from aaren_rl.data.trajectories import Episode, Trajectories
from aaren_rl.errors import CheckpointError, InvalidInput
from aaren_rl.model import DecisionModel, ModelConfig, Scaling
from aaren_rl.training.config import TrainingConfig
from aaren_rl.training.learner import SingleLearner

SPARSE = GoalRewards(lambda achieved, desired: -(np.abs(achieved - desired).max(-1) > 1).astype(np.float64), hit=0.0)


def make_data(seed=0):
    rng = np.random.default_rng(seed)
    episodes = []
    for length in (6, 9, 4, 12, 7, 10, 5, 8):
        points = rng.normal(size=(length + 1, 2)).cumsum(0)
        goals = np.tile(rng.normal(size=2), (length + 1, 1))
        observations = {"observation": points, "achieved_goal": points, "desired_goal": goals}
        episodes.append(Episode(observations, rng.uniform(-1, 1, (length, 1)), np.zeros(length)))
    return Trajectories.from_episodes(episodes)


def make_learner(relabelling, data=None, **schedule):
    data = make_data() if data is None else data
    torch.manual_seed(0)
    model = DecisionModel(
        ModelConfig(blocks=1, width=16, dropout=0.1),
        data.observation_space,
        Box.bounded(-np.ones(1), np.ones(1)),
        Scaling(*data.observation_statistics()),
    )
    small = {"updates": 20, "batch_size": 4, "context": 5, "warmup": 2, "held_out": 0.25, **schedule}
    return SingleLearner(model, data, TrainingConfig(**small), relabelling=relabelling)


@pytest.mark.parametrize("rewards", [GoalRewards(distance=1.0), SPARSE], ids=["distance", "computed"])
@pytest.mark.parametrize("context", [5, "packed", "carry:4"])
def test_a_relabelled_training_resumes_bit_for_bit(context, rewards):
    relabelling = Relabelling(Hindsight(0.7, 0.6, 0.2, 0.2), rewards)
    whole = make_learner(relabelling, context=context)
    for _ in range(3):
        whole.update()
    saved = whole.state_dict()
    losses = [whole.update()["loss"].item() for _ in range(3)]
    resumed = make_learner(relabelling, context=context)
    resumed.load_state_dict(saved)
    resumed.updates = 3
    assert [resumed.update()["loss"].item() for _ in range(3)] == losses
    assert whole.validate() == resumed.validate()
    theirs = resumed.state_dict()
    for name, ours in whole.state_dict().items():
        assert torch.equal(ours, theirs[name]), name
    assert ("carried.goal" in theirs) == (context == "carry:4")


def test_a_state_without_goals_does_not_resume_one_with_them():
    saved = make_learner(None, context="carry:4").state_dict()
    with pytest.raises(CheckpointError, match=r"carried\.goal"):
        make_learner(Relabelling(Hindsight(), SPARSE), context="carry:4").load_state_dict(saved)


def test_validation_is_relabelled_alike_each_time():
    relabelled, plain = make_learner(Relabelling(Hindsight(1.0), SPARSE)), make_learner(None)
    assert relabelled.validate() == relabelled.validate()
    assert relabelled.validate() != plain.validate()


def test_an_environments_rewards_are_in_no_cuda_graph():
    # Without a GPU only the request is seen; the check comes before anything is moved there.
    learner = make_learner(Relabelling(Hindsight(), SPARSE))
    learner.cuda_graph = True
    assert learner._uncaptured("rewards are computed") is False
    learner.config = TrainingConfig(cuda_graph="yes")
    with pytest.raises(InvalidInput, match="no CUDA graph; pass --cuda-graph auto"):
        learner._uncaptured("rewards are computed")
