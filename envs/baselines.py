"""Behaviours as actors, to be evaluated like agents."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode

from aaren_rl.envs import behaviours
from aaren_rl.envs.behaviours import Behaviour, ExpertBehaviour, RandomBehaviour
from aaren_rl.envs.catalogue import Entry
from aaren_rl.envs.environments import EnvironmentSpec, box, make
from aaren_rl.errors import InvalidInput


class BehaviourActor:
    """Acts as one or several behaviours do; they are dealt out to the rows of the vector environment in turn.

    With several behaviours the episodes are shared out, while a dataset shares out the steps: mean returns differ.

    Args:
        policies: at least one.
        seed: of their noise.
    """

    def __init__(self, policies: list[Behaviour], seed: int = 0) -> None:
        self.policies, self.seed = policies, seed

    def reset(self, target_return: float | None, num_envs: int, autoreset_mode: AutoresetMode) -> None:
        """Starts noise and episodes anew; a behaviour asks for no return."""
        self._rng = np.random.default_rng(self.seed)
        self._episodes: list[list[npt.NDArray[Any]]] = [[] for _ in range(num_envs)]
        self._waits_for_reset = autoreset_mode == AutoresetMode.NEXT_STEP
        self._ended = np.zeros(num_envs, dtype=np.bool_)

    def act(
        self,
        observation: npt.NDArray[Any],
        reward: npt.NDArray[Any] | None,
        terminated: npt.NDArray[np.bool_],
        truncated: npt.NDArray[np.bool_],
    ) -> npt.NDArray[np.float32]:
        """Actions of each row's behaviour."""
        done = terminated | truncated
        # In NEXT_STEP mode an ended row shows its last observation before the first of the next episode.
        for row in np.flatnonzero(self._ended if self._waits_for_reset else done):
            self._episodes[row] = []
        self._ended = done
        for seen, now in zip(self._episodes, observation, strict=True):
            seen.append(now)
        count = len(self.policies)
        parts = [
            policy(self._episodes[i::count], self._rng) for i, policy in enumerate(self.policies[: len(observation)])
        ]
        actions = np.empty((len(observation), parts[0].shape[1]), dtype=np.float32)
        for i, part in enumerate(parts):
            actions[i::count] = part
        return actions


def random_actor(spec: EnvironmentSpec, seed: int = 0) -> BehaviourActor:
    """Uniformly random actions within the environment's bounds.

    Raises:
        InvalidInput: the environment's actions are not bounded.
    """
    return BehaviourActor([_random(spec)], seed)


def behaviour_policies(entry: Entry) -> list[Behaviour]:
    """The bundled behaviours that make an entry's data.

    Raises:
        InvalidInput: none are bundled for it.
    """
    if entry.scripted:
        return [_expert(entry.environments["bundled"])]
    if entry.behaviours is None:
        raise InvalidInput(
            f"no behaviour is bundled for {entry.name}; take the data from elsewhere with --source minari or d4rl, "
            "or train a behaviour with scripts/train_behaviour.py"
        )
    if not entry.behaviours:
        return [_random(entry.environments["bundled"])]
    return [behaviours.bundled(entry.task, snapshot) for snapshot in entry.behaviours]


def _random(spec: EnvironmentSpec) -> RandomBehaviour:
    env = make(spec)
    space = box(env.action_space)
    env.close()
    if not space.is_bounded():
        raise InvalidInput(f"{spec.id} has unbounded actions {space}; there are no uniformly random ones")
    return RandomBehaviour(space.low, space.high)


def _expert(spec: EnvironmentSpec) -> ExpertBehaviour:
    env = make(spec)
    act = env.get_wrapper_attr("expert_action")
    env.close()
    return ExpertBehaviour(act)
