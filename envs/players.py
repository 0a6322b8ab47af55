"""Who acts while data are collected: behaviours on batches of episodes, experts each in its own environment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np

from aaren_rl.envs.behaviours import Behaviour
from aaren_rl.envs.experts import Expert, Policy


@dataclass(frozen=True)
class ExpertPlayer:
    """An expert with its arguments.

    Attributes:
        expert: who plays.
        arguments: of the expert, by name.
    """

    expert: Expert
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def policy(self, env: gym.Env[Any, Any], seed: np.random.SeedSequence) -> Policy:
        """Its policy in an environment; raises InvalidInput where it does not play it."""
        return self.expert.policy(env, seed, **self.arguments)

    def __str__(self) -> str:
        given = ", ".join(f"{name}={json.dumps(value)}" for name, value in sorted(self.arguments.items()))
        return f"scripted expert {self.expert.name}" + (f" ({given})" if given else "")


Player: TypeAlias = Behaviour | ExpertPlayer
