"""TorchRL: a recurrent core as a module of tensordicts, and training data from its replay buffers."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.data import Unbounded
from torchrl.envs import TensorDictPrimer
from torchrl.modules.tensordict_module.rnn import recurrent_mode

from aaren_rl.core import RecurrentCore, pack, packed_size, unpack
from aaren_rl.data.spaces import Space
from aaren_rl.data.trajectories import Episode, Trajectories
from aaren_rl.errors import DataError, InvalidInput

STATE = "core_state"


class CoreModule(TensorDictModuleBase):  # type: ignore[misc]
    """A core that reads and writes tensordicts, as TorchRL's `LSTMModule` and `GRUModule` do.

    It steps the state that it finds under "core_state", and computes whole sequences within
    `torchrl.modules.set_recurrent_mode(True)`, where the last dimension of the batch is time. Episodes start where
    "is_init" says so, which TorchRL's transform `InitTracker` writes. Append `make_tensordict_primer()` to the
    environment's transforms, so that the state is kept from step to step.

    Args:
        core: to wrap; its state must not grow.
        in_key: key of its inputs, vectors.
        out_key: key of its outputs.

    Raises:
        InvalidInput: the state of a mixer grows.
    """

    def __init__(self, core: RecurrentCore, in_key: str = "observation", out_key: str = "features") -> None:
        super().__init__()
        if not core.fixed_size:
            raise InvalidInput(
                "the mixer's state grows with every step, and tensordicts keep states of one size; take a mixer of "
                "constant or windowed memory, as aaren or local"
            )
        self.core, self.size = core, packed_size(core)
        self.in_keys, self.out_keys = [in_key, STATE, "is_init"], [out_key, ("next", STATE)]

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """A transform that puts an empty state into the first tensordict of every episode."""
        return TensorDictPrimer({STATE: Unbounded(shape=(self.size,))}, expand_specs=True)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes outputs and the state after them.

        Args:
            tensordict: with inputs (..., input size), "is_init" (..., 1) and, except for the first step of all,
                "core_state" (..., size). Of a sequence the state before its first step alone is read, and the one after
                its last written; the others are 0.
        """
        in_key, out_key = self.in_keys[0], self.out_keys[0]
        shape = tensordict.shape
        sequence = bool(recurrent_mode())
        if sequence and not shape:
            raise InvalidInput("the tensordict has no batch, whose last dimension would be the time of the sequence")
        time = shape[-1] if sequence else 1
        x = tensordict.get(in_key).reshape(-1, time, self.core.input_size)
        starts = tensordict.get("is_init").reshape(-1, time)
        size = self.size
        kept = tensordict.get(STATE, None)
        rows = x.new_zeros(len(x), time, size) if kept is None else kept.reshape(-1, time, size)
        y, state = self.core(x, unpack(self.core, rows[:, 0]), starts)
        after = torch.cat([rows.new_zeros(len(x), time - 1, size), pack(state).unsqueeze(1)], 1)
        tensordict.set(out_key, y.reshape(*shape, -1))
        tensordict.set(("next", STATE), after.reshape(*shape, size))
        return tensordict


def trajectories_of(
    steps: TensorDictBase,
    observation_space: Space | gym.Space[Any] | None = None,
    action_space: Space | gym.Space[Any] | None = None,
    observation: str = "observation",
    action: str = "action",
    reward: str = "reward",
) -> Trajectories:
    """Episodes of TorchRL's steps, as a collector, a roll-out or a replay buffer (`buffer[:]`) holds them.

    Args:
        steps: one tensordict a step, (steps,) or (environments, time), in the order in which they were made. They have
            the keys below, and under "next" the observation after, the reward, "terminated", and "truncated" if any.
        observation_space: of the observations, Gymnasium's or ours; None for what they show.
        action_space: of the actions as they are, Gymnasium's or ours; None for what they show. With one,
            nothing counts as one-hot.
        observation: key of the observations, vectors.
        action: key of the actions; one-hot actions become choices.
        reward: key of the rewards.

    Returns:
        The episodes; the last one of each environment counts as cut off if the steps end within it.

    Raises:
        DataError: a key is missing, a step does not follow the one before, actions are bits or whole numbers whose
            meaning only a space could tell, or the arrays make no episodes.
    """
    steps = steps.detach()
    environments = steps.unsqueeze(0) if steps.ndim == 1 else steps.flatten(0, -2)
    for key in (observation, action, ("next", observation), ("next", reward), ("next", "terminated")):
        if key not in steps.keys(True):
            raise DataError(f"the steps lack the key {key!r}; they have {sorted(map(str, steps.keys(True)))}")
    if "is_init" in steps and not environments["is_init"][:, 0].all():
        raise DataError(
            "the steps begin within an episode, whose return would be wrong; leave those before its end out"
        )
    acted = environments[action]
    if action_space is None:
        acted = _choices(acted)
    episodes = [
        one for number, row in enumerate(environments) for one in _episodes(row, acted[number], observation, reward)
    ]
    return Trajectories.from_episodes(episodes, observation_space, action_space)


def _choices(acted: torch.Tensor) -> torch.Tensor:
    """One-hot actions, (environments, time, choices), as their numbers; others as they are."""
    if acted.is_floating_point() or acted.ndim < 3 or acted.shape[-1] == 1:
        if acted.dtype == torch.bool:
            raise DataError("the actions are bits; pass their action_space, as gymnasium.spaces.MultiBinary(1)")
        return acted
    whole = acted.long()
    if not ((whole == 0) | (whole == 1)).all() or not (whole.sum(-1) == 1).all():
        raise DataError("the actions are whole numbers and not one-hot; pass their action_space")
    return whole.argmax(-1)


def _episodes(row: TensorDictBase, acted: torch.Tensor, observation: str, reward: str) -> list[Episode]:
    """The episodes of the steps of one environment, (time,)."""
    observed, after = row[observation], row["next", observation]
    terminated = row["next", "terminated"].flatten()
    truncated = row["next", "truncated"].flatten() if ("next", "truncated") in row.keys(True) else terminated & False
    ended = terminated | truncated
    follows = (observed[1:] == after[:-1]).flatten(1).all(1) | ended[:-1]
    if not follows.all():
        step = int((~follows).nonzero()[0]) + 1
        raise DataError(
            f"step {step} does not follow the one before: its observation is another. Pass steps of several "
            "environments as (environments, time), and a replay buffer before it has begun to overwrite"
        )
    ends = ended.nonzero().flatten().tolist()
    ends = [*ends, len(row) - 1] if not ends or ends[-1] < len(row) - 1 else ends
    found, start = [], 0
    for end in ends:
        part = slice(start, end + 1)
        found.append(
            Episode(
                torch.cat([observed[part], after[end : end + 1]]).cpu().numpy(),
                acted[part].cpu().numpy(),
                row["next", reward][part].flatten().cpu().numpy(),
                terminated=bool(terminated[end]),
                truncated=not terminated[end],
            )
        )
        start = end + 1
    return found
