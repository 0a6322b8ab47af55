"""Objectives: what an update minimises, by name."""

from aaren_rl.training.objectives.advantage import Advantage
from aaren_rl.training.objectives.base import (
    Loss,
    Objective,
    build_objective,
    check_gradients,
    check_networks,
    check_result,
    get_objective,
    objective_names,
    register_objective,
)
from aaren_rl.training.objectives.critic import Critic
from aaren_rl.training.objectives.imitation import Imitation

__all__ = [
    "Advantage",
    "Critic",
    "Imitation",
    "Loss",
    "Objective",
    "build_objective",
    "check_gradients",
    "check_networks",
    "check_result",
    "get_objective",
    "objective_names",
    "register_objective",
]
