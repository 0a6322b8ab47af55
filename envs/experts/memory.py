"""This project's own memory tasks, which hold their experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from aaren_rl.envs.experts.expert import Env, game_of


class Own:
    """Acts by the environment's own `expert_action`, from the observations of the episode so far."""

    def __init__(self, env: Env, rng: np.random.Generator) -> None:
        self.game = game_of(env)

    def reset(self, observation: Any, info: Mapping[str, Any]) -> None:
        """See `Policy`."""
        self.seen: list[Any] = []

    def act(self, observation: Any, info: Mapping[str, Any], taken: Any) -> Any:
        """See `Policy`."""
        self.seen.append(observation)
        return self.game.expert_action(self.seen)
