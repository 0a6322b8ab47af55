"""Meta-World: the policies that it ships, one for each task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from aaren_rl.data.trajectories import Floats
from aaren_rl.envs.experts.expert import Env, within


class MetaWorld:
    """The package's scripted policy of the environment's task."""

    def __init__(self, env: Env, rng: np.random.Generator) -> None:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
        from metaworld.policies import ENV_POLICY_MAP

        self.space = env.action_space
        self.policies = {made: ENV_POLICY_MAP[name] for name, made in ALL_V3_ENVIRONMENTS.items()}
        self.env = env

    def reset(self, observation: Any, info: Mapping[str, Any]) -> None:
        """See `Policy`."""
        self.policy = self.policies[type(self.env.unwrapped)]()

    def act(self, observation: Any, info: Mapping[str, Any], taken: Any) -> Floats:
        """See `Policy`."""
        return within(self.policy.get_action(observation))
