"""The protocol between who acts (agents, behaviours) and who lets them act (roll-outs, evaluations)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from gymnasium.vector import AutoresetMode


AUTO: Literal["auto"] = "auto"

Target: TypeAlias = float | Literal["auto"]
"""Return to ask for, or "auto" for what is in reach, which agents with `ModelConfig.reach` predict."""


def target_as_number(target: Target) -> float:
    """A target as a number: "auto" is more than any return, of which an agent asks for what is in reach."""
    return float("inf") if target == AUTO else float(target)


class Actor(Protocol):
    """Acts in the rows of a vector environment; `DecisionAgent` and `BehaviourActor` are actors."""

    def reset(self, target_return: Target | None, num_envs: int, autoreset_mode: AutoresetMode) -> None:
        """Starts new episodes in all rows.

        Args:
            target_return: return to ask for; None for the actor's default.
            num_envs: rows.
            autoreset_mode: how the vector environment starts the next episode of a row.
        """
        ...

    def act(
        self,
        observation: npt.NDArray[Any],
        reward: npt.NDArray[Any] | None,
        terminated: npt.NDArray[np.bool_],
        truncated: npt.NDArray[np.bool_],
    ) -> npt.NDArray[Any]:
        """Chooses an action for each row, from what the vector environment just returned.

        Args:
            observation: (rows, *observation shape).
            reward: (rows,); None on the first call after `reset`.
            terminated: (rows,).
            truncated: (rows,).

        Returns:
            The actions, (rows, *action shape).
        """
        ...
