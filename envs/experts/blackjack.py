"""Blackjack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from aaren_rl.envs.experts.expert import Env

STICK, HIT = 0, 1


class Blackjack:
    """Takes cards as the usual basic strategy without splits and doubles does."""

    def __init__(self, env: Env, rng: np.random.Generator) -> None:
        pass

    def reset(self, observation: Any, info: Mapping[str, Any]) -> None:
        """See `Policy`."""

    def act(self, observation: Any, info: Mapping[str, Any], taken: Any) -> int:
        """See `Policy`."""
        total, dealer, has_ace = observation
        if has_ace:
            enough = 18 if 2 <= dealer <= 8 else 19
        elif 2 <= dealer <= 6:
            enough = 12 if dealer >= 4 else 13
        else:
            enough = 17
        return STICK if total >= enough else HIT
