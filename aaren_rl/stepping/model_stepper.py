"""One step of a decision model as a function of three arrays, for acting and for export."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from aaren_rl.data.bounds import SCALED_BOUND
from aaren_rl.data.segment import Observations
from aaren_rl.errors import InvalidInput
from aaren_rl.model import DecisionModel
from aaren_rl.model.inputs_stepper import RETURN_TO_GO


class ModelStepper(nn.Module):
    """Acts like `DecisionModel.step`, with everything constant folded into the weights beforehand.

    It is the steppers of the model's inputs, trunk, condition and head in a row. All that is carried from step to step
    is one row of float64 numbers for each environment: return-to-go, timestep, previous action, and the mixers' states.
    Later changes of the model's weights have no effect.

    Args:
        model: to act with.

    Raises:
        InvalidInput: the state of a mixer grows.
    """

    start: Tensor
    return_scale: Tensor

    def __init__(self, model: DecisionModel) -> None:
        super().__init__()
        if not model.fixed_size:
            raise InvalidInput(
                f"the state of mixer {model.config.mixer!r} grows with every token; a step of constant size needs "
                "mixers of constant memory or with a window, as aaren or local"
            )
        # A copy: what is folded stands still, so all of it has to.
        model = copy.deepcopy(model).eval()
        self.observation_space, self.action_space = model.observation_space, model.action_space
        with torch.no_grad():
            self.inputs = model.inputs.stepper()
            self.trunk = model.trunk.stepper(model.inputs.norm)
            self.condition, self.reach = model.condition, model.reach
            self.head = model.head.stepper()
        self.register_buffer("return_scale", model.inputs.return_scale.double())
        self.register_buffer("start", torch.cat([self.inputs.start(), *self.trunk.starts()]))
        self._sizes = [*self.inputs.sizes, *self.trunk.sizes]
        # Column of a row of state at which the mixers' states start.
        self.mixed = sum(self.inputs.sizes)

    def initial_state(self, target_return: Tensor) -> Tensor:
        """Rows of state, (batch, state size) float64, before episodes that ask for the returns given, (batch,)."""
        state = self.start.repeat(len(target_return), 1)
        state[:, RETURN_TO_GO] = target_return
        return state

    def forward(
        self, observation: Observations, reward: Tensor, state: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The next action, in the environment's units, like everything here.

        Args:
            observation: (batch, *observation shape), packed: a dict where there are images.
            reward: of the action before, (batch,); 0 at the first step of an episode. It is taken off the
                return-to-go in the state.
            state: (batch, state size) float64, from `initial_state` or as returned by the step before.
            noise: as `HeadStepper.forward` takes it; None for the most likely action.

        Returns:
            The action (batch, *action shape) and the new state.
        """
        pieces = torch.split(state, self._sizes, -1)
        counted, mixed = pieces[:3], pieces[3:]
        tokens, live, return_to_go, timestep = self.inputs(observation, reward, counted)  # (batch * tokens, width)
        hidden, mixed = self.trunk(tokens, mixed, live)  # (batch, width)
        if self.condition is not None:
            asked = return_to_go / self.return_scale  # (batch, 1)
            if self.reach is not None:
                asked = torch.minimum(asked, self.reach(hidden).unsqueeze(-1).double())
            hidden = self.condition(hidden, asked.clamp(-SCALED_BOUND, SCALED_BOUND).to(hidden.dtype).squeeze(-1))
        action = self.head(hidden, noise)
        previous = action if action.ndim == 2 else action.reshape(-1, self.inputs.action_size)  # (batch, action size)
        return action, torch.cat([return_to_go, timestep, previous.double(), *mixed], -1)
