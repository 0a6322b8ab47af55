"""A decision model's step in NumPy: on a CPU, torch would spend most of so small a step on calling its operations."""

from __future__ import annotations

import numpy as np

from aaren_rl.model.heads import NumpyHead
from aaren_rl.model.inputs_stepper import ACTION, NumpyInputs
from aaren_rl.model.trunk_stepper import NumpyTrunk
from aaren_rl.ops.numpy_layers import Array
from aaren_rl.stepping.model_stepper import ModelStepper


class NumpyModelStepper:
    """Computes what `ModelStepper` computes, by the NumPy forms of its parts; `NumpyStep.of(step)` makes one.

    Args:
        inputs: makes tokens.
        trunk: makes hidden vectors of them.
        head: makes actions of those.
        mixed: column of a row of state at which the mixers' states start.
    """

    def __init__(self, inputs: NumpyInputs, trunk: NumpyTrunk, head: NumpyHead, mixed: int) -> None:
        self.inputs, self.trunk, self.head, self.mixed = inputs, trunk, head, mixed

    @classmethod
    def of(cls, step: ModelStepper) -> NumpyModelStepper | None:
        """The step in NumPy; None if one of its parts has no such form."""
        inputs, trunk = step.inputs.to_numpy(), step.trunk.to_numpy()
        head = None if trunk is None else step.head.to_numpy(trunk.norm)
        if inputs is None or trunk is None or head is None:
            return None
        return cls(inputs, trunk, head, step.mixed)

    def __call__(
        self, observation: Array, reward: Array, state: Array, noise: Array | None = None
    ) -> tuple[Array, Array]:
        """See `ModelStepper.forward`; observations, rewards and actions are float32, the state is float64."""
        after = np.empty_like(state)
        tokens, live, return_to_go, timestep = self.inputs(observation, reward, state)  # (batch * tokens, width)
        hidden = self.trunk(tokens, state[:, self.mixed :], after[:, self.mixed :], live)  # (batch, width)
        action = self.head(hidden, noise)
        after[:, :1], after[:, 1:2] = return_to_go, timestep
        after[:, ACTION : self.mixed] = action.reshape(len(action), -1)
        return action, after
