"""Updates of several kinds, for all processes of `torchrun several_processes.py FOLDER [RANK THAT FAILS]`."""

import sys
from pathlib import Path

import numpy as np
import torch
from helpers import on_disk
from safetensors.torch import save_file
from tiny_training import CARD

from aaren_rl.checkpoint import digest
from aaren_rl.data.hindsight import GoalRewards, Hindsight, Relabelling
from aaren_rl.data.spaces import Box
from aaren_rl.data.trajectories import Episode, Trajectories
from aaren_rl.model import DecisionModel, ModelConfig, Scaling
from aaren_rl.training.config import TrainingConfig
from aaren_rl.training.follower import Follower
from aaren_rl.training.learner import SingleLearner
from aaren_rl.training.processes import ALONE, process_group
from aaren_rl.training.run import Run

UPDATES = 3

CASES = {
    "windows": {},
    "uneven": {"batch_size": 7},
    "accumulated": {"accumulate": 3},
    "episodes": {"context": "episode"},
    "packed": {"context": "packed"},
    "carried": {"context": "carry:4"},
    "critic": {"objective": "critic"},
    "unused parameters": {"mixer": "none"},
    "hindsight": {"goals": True},
    "disk": {"on_disk": True},
    "carried hindsight on disk": {"goals": True, "context": "carry:4", "on_disk": True},
    "carried hindsight": {"goals": True, "context": "carry:4"},
}


def make_data():
    rng = np.random.default_rng(0)
    episodes = []
    for length in (6, 9, 4, 12, 7, 10, 5, 8, 3, 11):
        points = rng.normal(size=(length + 1, 2)).cumsum(0)
        goals = np.tile(rng.normal(size=2), (length + 1, 1))
        observations = {"observation": points, "achieved_goal": points, "desired_goal": goals}
        episodes.append(Episode(observations, rng.uniform(-1, 1, (length, 1)), rng.normal(size=length)))
    return Trajectories.from_episodes(episodes)


def make_learner(case, folder, processes=ALONE):
    settings = dict(CASES[case])
    goals = Relabelling(Hindsight(0.7, 0.6, 0.2, 0.2), GoalRewards(distance=1.0)) if settings.pop("goals", 0) else None
    config = ModelConfig(mixer=settings.pop("mixer", "aaren"), blocks=2, width=16, dropout=0.0)
    torch.manual_seed(0)
    data = make_data()
    if settings.pop("on_disk", False):
        data = on_disk(data, folder / f"{case} {processes.rank}")
    scaling = Scaling(*data.observation_statistics())
    model = DecisionModel(config, data.observation_space, Box.bounded(-np.ones(1), np.ones(1)), scaling)
    schedule = {"updates": 20, "batch_size": 8, "context": 5, "warmup": 2, "held_out": 0.2, **settings}
    return SingleLearner(model, data, TrainingConfig(**schedule), relabelling=goals, processes=processes)


def train_cases(folder, cases):
    with process_group(torch.device("cpu")) as processes:
        for case in cases:
            learner = make_learner(case, folder, processes)
            metrics = [learner.update() for _ in range(UPDATES)]
            state = learner.state_dict()
            for name in metrics[0]:
                state[f"metrics.{name}"] = torch.stack([of_update[name] for of_update in metrics])
            # Weights stay equal without being exchanged.
            weights = torch.cat([parameter.detach().flatten() for parameter in learner.objective.parameters()])
            processes.check_same(digest(weights.numpy().data), "their weights")
            if processes.leads:
                save_file(state, folder / f"{case}.safetensors")


def fail(folder, rank):
    """A run in which one process fails in its fourth update."""
    with process_group(torch.device("cpu")) as processes:
        learner = make_learner("windows", folder, processes)
        drawn, sample = iter(range(100)), learner.sampler.sample

        def failing():
            if next(drawn) == 3 and processes.rank == rank:
                raise MemoryError("no memory")
            return sample()

        learner.sampler.sample = failing
        if processes.leads:
            Run(learner, CARD, folder / "run").run(progress=False)
        else:
            Follower(learner, CARD, folder / "run").follow()


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 2:
        fail(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        # In two groups of processes, one after the other.
        train_cases(Path(sys.argv[1]), list(CASES)[::2])
        train_cases(Path(sys.argv[1]), list(CASES)[1::2])
