"""Rolls an agent out in a vector environment and counts whole episodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv

from aaren_rl.errors import InvalidInput


class Actor(Protocol):
    """What is rolled out; `DecisionAgent` is one."""

    def reset(self, target_return: float | None, num_envs: int, autoreset_mode: AutoresetMode) -> None:
        """Starts new episodes in all rows."""
        ...

    def act(
        self,
        observation: npt.NDArray[Any],
        reward: npt.NDArray[Any] | None,
        terminated: npt.NDArray[np.bool_],
        truncated: npt.NDArray[np.bool_],
    ) -> npt.NDArray[Any]:
        """Actions for all rows, from what the vector environment just returned."""
        ...


@dataclass(frozen=True)
class Episodes:
    """Whole episodes, in the order of the vector's rows.

    Attributes:
        returns: undiscounted, (episodes,).
        lengths: steps, (episodes,).
    """

    returns: npt.NDArray[np.float64]
    lengths: npt.NDArray[np.int64]


def roll_out(
    actor: Actor,
    envs: VectorEnv[Any, Any, Any],
    episodes: int,
    target_return: float | None = None,
    seed: int = 0,
    progress: Callable[[int], object] = lambda done: None,
) -> Episodes:
    """Runs whole episodes.

    Each row of the vector gets its share of the episodes before the start, so that short episodes do not come to count
    for more; every autoreset mode of Gymnasium gives the same returns.

    Args:
        actor: who acts; it is reset first.
        envs: the environments, of any `autoreset_mode`.
        episodes: how many in all.
        target_return: what to ask the actor for; None for its default.
        seed: row i is seeded with seed + i before its first episode.
        progress: called with the number of episodes done since the last call.

    Returns:
        The episodes.

    Raises:
        InvalidInput: no episodes are asked for.
    """
    if episodes < 1:
        raise InvalidInput(f"{episodes} episodes; expected at least 1")
    mode = AutoresetMode(envs.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP))
    rows = envs.num_envs
    share = np.full(rows, episodes // rows) + (np.arange(rows) < episodes % rows)
    returns: list[list[float]] = [[] for _ in range(rows)]
    lengths: list[list[int]] = [[] for _ in range(rows)]
    total, steps = np.zeros(rows), np.zeros(rows, dtype=np.int64)
    done = np.zeros(rows, dtype=np.bool_)
    terminated = truncated = done
    reward = None
    # A list of seeds, since a single one is spread in a way that differs between vector environments.
    observation, _ = envs.reset(seed=[seed + row for row in range(rows)])  # type: ignore[arg-type]
    actor.reset(target_return, rows, mode)
    while any(len(own) < wanted for own, wanted in zip(returns, share, strict=True)):
        action = actor.act(observation, reward, terminated, truncated)
        observation, reward, terminated, truncated, _ = envs.step(action)
        if mode == AutoresetMode.NEXT_STEP:
            # The step after an end only resets: its reward is no one's.
            total, steps = np.where(done, 0.0, total + reward), np.where(done, 0, steps + 1)
        else:
            total, steps = np.where(done, reward, total + reward), np.where(done, 1, steps + 1)
        done = terminated | truncated
        for row in np.flatnonzero(done):
            if len(returns[row]) < share[row]:
                returns[row].append(float(total[row]))
                lengths[row].append(int(steps[row]))
                progress(1)
        if mode == AutoresetMode.DISABLED and done.any():
            observation, _ = envs.reset(options={"reset_mask": done})
    return Episodes(
        np.array([value for own in returns for value in own]),
        np.array([value for own in lengths for value in own]),
    )
