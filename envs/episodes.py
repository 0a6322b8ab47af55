"""Episodes of a roll-out: counted, and recorded where that is wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aaren_rl.data.trajectories import Episode
from aaren_rl.envs.batches import row_of, stacked
from aaren_rl.envs.success import BY_INFO, Reached, Rule

Array = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Episodes:
    """Whole episodes, in the order of the vector's rows.

    Attributes:
        returns: undiscounted, (episodes,).
        lengths: steps, (episodes,).
        recorded: the episodes themselves, T + 1 observations each; empty unless `roll_out` records.
        success: whether the goal was reached (see `aaren_rl.envs.success`), (episodes,); None if no info ever said so
            or otherwise, and no rule does.
        success_rule: when an episode counts as a success, in words; None likewise.
    """

    returns: npt.NDArray[np.float64]
    lengths: npt.NDArray[np.int64]
    recorded: tuple[Episode, ...] = ()
    success: Flags | None = None
    success_rule: str | None = None


class Counter:
    """Returns, lengths and successes of the episodes of each row, up to the row's share.

    Args:
        share: episodes of each row, (rows,).
        rule: says when an episode is a success, where no info does; None for none.
    """

    def __init__(self, share: npt.NDArray[np.int64], rule: Rule | None = None) -> None:
        self.share, self.rule = share, rule
        self._returns: list[list[float]] = [[] for _ in share]
        self._lengths: list[list[int]] = [[] for _ in share]
        # By what infos say, and by the rule.
        self._successes: list[list[tuple[bool, bool]]] = [[] for _ in share]
        self._total, self.steps = np.zeros(len(share)), np.zeros(len(share), dtype=np.int64)
        self.ended = np.zeros(len(share), dtype=np.int64)
        self._reached, self._says_success = np.zeros((2, len(share)), dtype=np.bool_), False

    @property
    def rests(self) -> Flags:
        """Rows that have played their share, (rows,)."""
        return self.ended >= self.share

    def step(self, reward: Array, terminated: Flags, done: Flags, resets: Flags, goal: Reached) -> list[int]:
        """Adds a step to the rows that do not reset, and returns the rows in which an episode of the share ends.

        Args:
            reward: (rows,).
            terminated: rows in which an episode ends in a final state.
            done: rows in which an episode ends.
            resets: rows in which the step only reset.
            goal: whether it was reached, as infos say.
        """
        self._total, self.steps = self._total + np.where(resets, 0.0, reward), self.steps + ~resets
        counted = ~resets & ~self.rests
        self._reached[0] |= goal.reached & counted
        if self.rule is not None:
            self._reached[1] |= self.rule.reached(reward, terminated) & counted
        self._says_success |= bool((goal.says & counted).any())
        ended = np.flatnonzero(done & ~self.rests).tolist()
        for row in ended:
            self._returns[row].append(float(self._total[row]))
            self._lengths[row].append(int(self.steps[row]))
            self._successes[row].append((bool(self._reached[0, row]), bool(self._reached[1, row])))
        self._total[done], self.steps[done], self._reached[:, done] = 0.0, 0, False
        self.ended[ended] += 1
        return ended

    def episodes(self, recorder: Recorder | None) -> Episodes:
        """The episodes of all rows."""
        returns = np.array([value for row in self._returns for value in row])
        lengths = np.array([value for row in self._lengths for value in row])
        recorded = () if recorder is None else recorder.episodes()
        if not self._says_success and self.rule is None:
            return Episodes(returns, lengths, recorded)
        ways = np.array([both for row in self._successes for both in row], dtype=np.bool_)
        if self._says_success or self.rule is None:
            return Episodes(returns, lengths, recorded, ways[:, 0], BY_INFO)
        return Episodes(returns, lengths, recorded, ways[:, 1], self.rule.name)


class Recorder:
    """The episode under way in each row, and the whole ones.

    Args:
        observation: the first of each row, a batch of the environment's observations.
        rows: of the batch.
    """

    def __init__(self, observation: Any, rows: int) -> None:
        self._whole: list[list[Episode]] = [[] for _ in range(rows)]
        self._observations: list[list[Any]] = [[] for _ in range(rows)]
        self._actions: list[list[Any]] = [[] for _ in range(rows)]
        self._rewards: list[list[float]] = [[] for _ in range(rows)]
        self.start(observation, np.ones(rows, dtype=np.bool_))

    def start(self, observation: Any, rows: Flags) -> None:
        """Starts an episode in some rows with their first observation."""
        for row in np.flatnonzero(rows).tolist():
            # Copies, since environments and actors may write into their arrays again.
            self._observations[row] = [row_of(observation, row)]
            self._actions[row], self._rewards[row] = [], []

    def step(self, action: Any, reward: Array, observation: Any, rows: Flags) -> None:
        """Adds a step, and the observation after it, to some rows."""
        for row in np.flatnonzero(rows).tolist():
            self._observations[row].append(row_of(observation, row))
            self._actions[row].append(row_of(action, row))
            self._rewards[row].append(float(reward[row]))

    def end(self, rows: list[int], terminated: Flags, truncated: Flags) -> None:
        """Keeps the episodes of some rows, which are whole."""
        for row in rows:
            observations, actions = stacked(self._observations[row]), stacked(self._actions[row])
            ends = bool(terminated[row]), bool(truncated[row])
            self._whole[row].append(Episode(observations, actions, np.array(self._rewards[row]), *ends))

    def episodes(self) -> tuple[Episode, ...]:
        """The whole episodes, in the order of the rows."""
        return tuple(episode for row in self._whole for episode in row)
