"""Behaviours as actors, which are evaluated like agents."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode

from aaren_rl.actor import Target
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.spaces import Box, gymnasium_space
from aaren_rl.envs import behaviours, experts
from aaren_rl.envs.batches import row_of, stacked
from aaren_rl.envs.behaviours import Behaviour, ExpertBehaviour, RandomBehaviour, SampledBehaviour
from aaren_rl.envs.catalogue import OWN_EXPERT, Entry
from aaren_rl.envs.environments import describe, make
from aaren_rl.envs.players import ExpertPlayer, Player
from aaren_rl.errors import InvalidInput


class BehaviourActor:
    """Acts as one or several behaviours; the rows of the vector environment take them in turn.

    Several behaviours have equal shares of the episodes, but equal shares of a dataset's steps: mean returns differ.

    Args:
        policies: at least one.
        seed: of their noise.
    """

    def __init__(self, policies: list[Behaviour], seed: int = 0) -> None:
        self.policies, self.seed = policies, seed

    def reset(self, target_return: Target | None, num_envs: int, autoreset_mode: AutoresetMode) -> None:
        """See `Actor`; the noise starts anew, and a behaviour takes no target return."""
        self._rng = np.random.default_rng(self.seed)
        self._episodes: list[list[Any]] = [[] for _ in range(num_envs)]
        self._waits_for_reset = autoreset_mode == AutoresetMode.NEXT_STEP
        self._ended = np.zeros(num_envs, dtype=np.bool_)

    def act(
        self,
        observation: Any,
        reward: npt.NDArray[Any] | None,
        terminated: npt.NDArray[np.bool_],
        truncated: npt.NDArray[np.bool_],
    ) -> Any:
        """See `Actor`."""
        done = terminated | truncated
        # In NEXT_STEP mode a row shows its last observation before the first of the next episode.
        for ended in np.flatnonzero(self._ended if self._waits_for_reset else done):
            self._episodes[ended] = []
        self._ended = done
        for row, seen in enumerate(self._episodes):
            seen.append(row_of(observation, row))
        count, rows = len(self.policies), len(self._episodes)
        actions: list[Any] = [None] * rows
        for i, policy in enumerate(self.policies[:rows]):
            actions[i::count] = policy(self._episodes[i::count], self._rng)
        return stacked(actions)


def random_actor(spec: EnvironmentSpec, seed: int = 0) -> BehaviourActor:
    """Uniformly random actions of the environment's space.

    Raises:
        InvalidInput: a part of the environment's actions is not bounded.
    """
    return BehaviourActor([_random(spec)], seed)


def players_of(entry: Entry) -> list[Player]:
    """Who makes an entry's data: an expert, or bundled behaviours.

    Raises:
        InvalidInput: no behaviour is bundled for it.
    """
    if entry.expert is not None:
        return [ExpertPlayer(experts.find(entry.expert), entry.expert_arguments)]
    return list(behaviour_policies(entry))


def behaviour_policies(entry: Entry) -> list[Behaviour]:
    """The bundled behaviours that make an entry's data, where they act from observations alone.

    Raises:
        InvalidInput: no behaviour is bundled for it, or the expert that makes its data looks at its environment.
    """
    if entry.expert == OWN_EXPERT:
        return [_expert(entry.environments["bundled"])]
    if entry.expert is not None:
        raise InvalidInput(
            f"the expert {entry.expert} looks at its environment, and plays only where data are made; the command "
            f"python scripts/collect.py {entry.name} --episodes 100 prints its returns"
        )
    if entry.behaviours is None:
        raise InvalidInput(
            f"no behaviour is bundled for {entry.name}; take the data from elsewhere with --source minari or d4rl, "
            "or train a behaviour with scripts/train_behaviour.py"
        )
    if not entry.behaviours:
        return [_random(entry.environments["bundled"])]
    return [behaviours.bundled(entry.task, snapshot) for snapshot in entry.behaviours]


def _random(spec: EnvironmentSpec) -> RandomBehaviour | SampledBehaviour:
    space = describe(spec).action_space
    for _, part, _ in space.parts():
        if isinstance(part, Box) and not part.is_bounded:
            raise InvalidInput(f"{spec.id} has actions in {space}; uniformly random actions need bounds")
    if not isinstance(space, Box):
        return SampledBehaviour(gymnasium_space(space))
    return RandomBehaviour(*(np.array(bound).reshape(space.shape) for bound in (space.low, space.high)))


def _expert(spec: EnvironmentSpec) -> ExpertBehaviour:
    env = make(spec)
    act = env.get_wrapper_attr("expert_action")
    env.close()
    return ExpertBehaviour(act)
