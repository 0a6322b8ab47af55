"""A small training for the tests, which is run as a script to be interrupted."""

import sys
from pathlib import Path

import numpy as np
import torch

from aaren_rl.checkpoint import AgentCard, load_agent
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.spaces import Box
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.model import DecisionModel, ModelConfig, Scaling
from aaren_rl.training.config import TrainingConfig
from aaren_rl.training.learner import SingleLearner
from aaren_rl.training.log import read_metrics
from aaren_rl.training.run import Interrupted, Run

CARD = AgentCard(EnvironmentSpec("Hopper-v5"), "made-up/tiny-v0", "bundled", (10.0,))
LONG = {"checkpoint_every": 20, "evaluate_every": 60}
"""Schedule of the run that is interrupted."""


def make_data(seed=0, episodes=12):
    """Episodes whose actions follow from the observation, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    lengths = rng.permutation(np.arange(4, 4 + episodes))
    observations, rewards = rng.normal(size=(lengths.sum(), 3)), rng.normal(size=lengths.sum())
    terminated = np.arange(episodes) % 2 == 0
    return Trajectories(
        observations,
        np.tanh(observations[:, :2]),
        rewards,
        np.concatenate([[0], np.cumsum(lengths)]),
        terminated,
        ~terminated,
        final_observations=rng.normal(size=(episodes, 3)),
    )


def make_learner(data=None, model_seed=0, shape=None, **schedule):
    """A learner of a small model with dropout; the schedule's defaults are small too."""
    data = make_data() if data is None else data
    torch.manual_seed(model_seed)
    config = ModelConfig(**{"blocks": 1, "width": 16, "dropout": 0.2, "layout": "interleaved", **(shape or {})})
    actions = Box.bounded(-np.ones(2), np.ones(2))
    scaling = Scaling(*data.observation_statistics())
    model = DecisionModel(config, Box.unbounded((3,)), actions, scaling)
    small = {"updates": 20, "batch_size": 4, "context": 5, "warmup": 5, "learning_rate": 1e-3, "held_out": 0.2}
    often = {"log_every": 5, "evaluate_every": 10, "checkpoint_every": 5, "average": 0.0}
    return SingleLearner(model, data, TrainingConfig(**{**small, **often, **schedule}))


def error_in_bandit(objective):
    """Mean squared error of the best actions after training on random ones, without returns.

    Rewards ask for 0.5, and for the opposite of an observation's sign. Random actions are cloned as 0.
    """
    rng = np.random.default_rng(0)
    observations, actions = rng.normal(size=(800, 3)), rng.uniform(-1, 1, (800, 2))
    best = np.stack([np.full(800, 0.5), -0.5 * np.sign(observations[:, 0])], 1)
    rewards, ends = 1 - np.square(actions - best).sum(1), np.ones(400, dtype=bool)
    data = Trajectories(observations, actions, rewards, np.arange(401) * 2, ends, ~ends)
    shape = {"condition": "norm", "dropout": 0.0, "return_to_go": False, "layout": "fused", "width": 32}
    schedule = {"batch_size": 64, "context": 2, "learning_rate": 3e-3, "clip": 10.0}
    learner = make_learner(data, shape=shape, objective=objective, **schedule)
    learner.model.inputs.return_scale.fill_(2.0)
    for _ in range(600):
        learner.update()
    segment = learner.sampler.sample()
    with torch.no_grad():
        acted = learner.model.eval()(segment)[0].mode
    wanted = torch.stack([torch.full(acted.shape[:2], 0.5), -0.5 * segment.observations[..., 0].sign()], -1)
    return (acted - wanted).square().mean().item()


def make_run(folder, evaluate=None, callbacks=(), **settings):
    """A run of such a learner."""
    return Run(make_learner(**settings), CARD, Path(folder), evaluate, callbacks)


def train(folder, **settings):
    """What a whole run of such a learner leaves."""
    (trained,) = make_run(folder, **settings).run(progress=False)
    return trained


def weights(folder):
    """Weights of an agent folder, by name."""
    return load_agent(folder)[0].state_dict()


def logged(folder, name):
    """What a run logged under a name, by update."""
    return {point["update"]: point[name] for point in read_metrics(folder) if name in point}


def checkpoints(folder):
    """Updates of the checkpoints in a run's folder."""
    return sorted(int(path.name) for path in (folder / "checkpoints").glob("[0-9]*"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        make_run(sys.argv[1], updates=int(sys.argv[2]), **LONG).run(progress=False)
    except Interrupted:
        sys.exit(3)
