"""A decision model's step in NumPy: on a CPU, torch would spend most of so small a step on calling its operations."""

from __future__ import annotations

import numpy as np
from torch import nn

from aaren_rl.data.bounds import SCALED_BOUND
from aaren_rl.model.condition import NumpyCondition
from aaren_rl.model.heads import NumpyHead
from aaren_rl.model.inputs_stepper import ACTION, NumpyInputs
from aaren_rl.model.reach import NumpyReach
from aaren_rl.model.trunk_stepper import NumpyTrunk
from aaren_rl.ops.numpy_layers import Array
from aaren_rl.stepping.model_stepper import ModelStepper


class NumpyModelStepper:
    """Computes what `ModelStepper` computes, by the NumPy forms of its parts; `NumpyStep.of(step)` makes one.

    Args:
        inputs: makes tokens.
        trunk: makes hidden vectors of them.
        condition: modulates those by the return-to-go; None where it is a token, or no input.
        reach: bounds what is asked for; None for no bound.
        return_scale: what returns are divided by.
        head: makes actions of those.
        mixed: column of a row of state at which the mixers' states start.
    """

    def __init__(
        self,
        inputs: NumpyInputs,
        trunk: NumpyTrunk,
        condition: NumpyCondition | None,
        reach: NumpyReach | None,
        return_scale: float,
        head: NumpyHead,
        mixed: int,
    ) -> None:
        self.inputs, self.trunk, self.head, self.mixed = inputs, trunk, head, mixed
        self.condition, self.reach, self.return_scale = condition, reach, return_scale

    @classmethod
    def of(cls, step: ModelStepper) -> NumpyModelStepper | None:
        """The step in NumPy; None if one of its parts has no such form."""
        inputs, trunk = step.inputs.to_numpy(), step.trunk.to_numpy()
        if inputs is None or trunk is None:
            return None
        condition, norm = None, trunk.norm
        reach = None if step.reach is None else step.reach.to_numpy(norm)
        if step.condition is not None:
            # The condition folds the norm, so the head folds one that scales by 1.
            condition = step.condition.to_numpy(norm)
            norm = nn.LayerNorm(norm.normalized_shape, device=norm.weight.device)
        head = step.head.to_numpy(norm)
        return (
            None if head is None else cls(inputs, trunk, condition, reach, float(step.return_scale), head, step.mixed)
        )

    def __call__(
        self, observation: Array, reward: Array, state: Array, noise: Array | None = None
    ) -> tuple[Array, Array]:
        """See `ModelStepper.forward`; observations, rewards and actions are float32, the state is float64."""
        after = np.empty_like(state)
        tokens, live, return_to_go, timestep = self.inputs(observation, reward, state)  # (batch * tokens, width)
        hidden = self.trunk(tokens, state[:, self.mixed :], after[:, self.mixed :], live)  # (batch, width)
        if self.condition is not None:
            asked = return_to_go / self.return_scale  # (batch, 1)
            if self.reach is not None:
                asked = np.minimum(asked, self.reach(hidden))
            hidden = self.condition(hidden, np.clip(asked, -SCALED_BOUND, SCALED_BOUND).astype(np.float32))
        action = self.head(hidden, noise)
        after[:, :1], after[:, 1:2] = return_to_go, timestep
        after[:, ACTION : self.mixed] = action.reshape(len(action), -1)
        return action, after
