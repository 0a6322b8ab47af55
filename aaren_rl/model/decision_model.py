"""The decision model: inputs, trunk and head in a row."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aaren_rl.data.segment import Segment
from aaren_rl.data.spaces import Space
from aaren_rl.errors import InvalidInput
from aaren_rl.model.condition import ReturnCondition
from aaren_rl.model.config import ModelConfig
from aaren_rl.model.heads import Prediction, head_of
from aaren_rl.model.inputs import Inputs
from aaren_rl.model.reach import ReturnReach
from aaren_rl.model.scaling import Scaling
from aaren_rl.model.trunk import Trunk, TrunkState


class DecisionModel(nn.Module):
    """A Decision Transformer (Chen et al. 2021, arXiv 2106.01345, section 3) over a swappable mixer.

    `inputs` turns what is known before each action into tokens, `trunk` mixes them over time, and `head` predicts the
    action. Tokens stand in the order in which things become known while acting, so `act` over a trajectory and `step`
    along it are one function. `forward` is the same, but for models that predict the return in reach (`config.reach`):
    it takes all returns as they are given, as training does.

    Observations, actions, rewards and returns are in the environment's units outside; they are scaled inside.

    Args:
        config: the model's shape.
        observation_space: of the environment.
        action_space: of the environment; its Boxes are bounded.
        scaling: of observations, returns and rewards.
    """

    def __init__(self, config: ModelConfig, observation_space: Space, action_space: Space, scaling: Scaling) -> None:
        super().__init__()
        self.config, self.observation_space, self.action_space = config, observation_space, action_space
        self.inputs = Inputs(config, observation_space, action_space, scaling)
        self.trunk = Trunk(config)
        self.head = head_of(action_space, config.width, config.head)
        self.trunk.initialise()
        behind = config.return_to_go and config.condition == "norm"
        self.condition = ReturnCondition(config.width) if behind else None
        self.reach = ReturnReach(config.width, scaling) if config.reach else None

    def forward(self, segment: Segment, state: TrunkState | None = None) -> tuple[Prediction, TrunkState]:
        """Predicts the actions of all steps of a segment, in parallel over time.

        Args:
            segment: (batch, time); what is predicted at padding has no meaning.
            state: the state after the steps before these, as returned here or by `step`; None for none.

        Returns:
            The prediction, whose `mode` is the actions (batch, time, *action shape), and the state after the last step.

        Raises:
            InvalidInput: a field that the model needs is missing, or one has a wrong shape.
        """
        hidden, state = self.hidden(segment, state)
        return self.predict(hidden, segment), state

    def hidden(self, segment: Segment, state: TrunkState | None = None) -> tuple[Tensor, TrunkState]:
        """What the trunk knows before each action, (batch, time, width), and the state after the last step.

        Raises:
            InvalidInput: as `forward`.
        """
        tokens, reset, valid = self.inputs(segment)  # (batch, time * tokens per step, width)
        return self.trunk(tokens, state, reset, valid)  # type: ignore[no-any-return]

    def predict(self, hidden: Tensor, segment: Segment) -> Prediction:
        """The actions of what `hidden` gave for a segment, and of its returns-to-go if these stand behind the trunk."""
        if self.condition is not None:
            assert segment.returns_to_go is not None  # the inputs have checked
            hidden = self.condition(hidden, self.inputs.scaled_return(segment.returns_to_go))
        return self.head(hidden, segment)  # type: ignore[no-any-return]

    def loss(self, segment: Segment, state: TrunkState | None = None) -> tuple[Tensor, TrunkState]:
        """`head_loss`, with `reach_loss` where the model has one, and the state after the last step.

        Raises:
            InvalidInput: as `forward`, or the segment has no actions.
        """
        hidden, state = self.hidden(segment, state)
        loss = self.head_loss(hidden, segment)
        return (loss if self.reach is None else loss + self.reach_loss(hidden, segment)), state

    def head_loss(self, hidden: Tensor, segment: Segment) -> Tensor:
        """The head's mean loss over the counted steps; arguments as for `predict`.

        Raises:
            InvalidInput: the segment has no actions.
        """
        if segment.actions is None:
            raise InvalidInput("the segment has no actions; a loss needs actions to compare the prediction with")
        return segment.mean_over_counted(self.predict(hidden, segment).loss(segment.actions))

    def reach_loss(self, hidden: Tensor, segment: Segment) -> Tensor:
        """Mean loss of the return in reach over the counted steps, of a model that predicts it.

        Args:
            hidden: what `hidden` gave for the segment; it gets no gradient.
            segment: with returns-to-go.
        """
        assert self.reach is not None
        assert segment.returns_to_go is not None  # the inputs have checked
        return segment.mean_over_counted(self.reach.loss(hidden, self.inputs.scaled_return(segment.returns_to_go)))

    def act(self, segment: Segment, state: TrunkState | None = None) -> tuple[Prediction, TrunkState]:
        """As `forward`, but asks for no more than is in reach, where the model predicts that.

        Args:
            segment: as for `forward`; `returns_to_go` is what is left of the targets, infinity for "auto".
            state: as for `forward`.
        """
        hidden, state = self.hidden(segment, state)
        if self.reach is not None:
            assert segment.returns_to_go is not None  # the inputs have checked
            in_reach = self.reach(hidden) * self.inputs.return_scale
            segment = segment._replace(returns_to_go=torch.minimum(segment.returns_to_go, in_reach))
        return self.predict(hidden, segment), state

    def step(self, now: Segment, state: TrunkState, noise: Tensor | None = None) -> tuple[Tensor, TrunkState]:
        """Predicts the action of the next step: `act` on a segment of one step.

        Args:
            now: the step, from `Segment.of_one_step`.
            state: from `initial_state`, or as returned by the step before.
            noise: what the head's `draw` returned, times the temperature, (batch, noise size); None for the most likely
                action.

        Returns:
            The action (batch, *action shape) and the new state.
        """
        prediction, state = self.act(now, state)
        action = prediction.mode if noise is None else prediction.sampled(noise.unsqueeze(1))
        return action.squeeze(1), state

    @property
    def fixed_size(self) -> bool:
        """True if the state has the same size at every step."""
        return all(mixer.memory != "growing" for mixer in self.trunk.mixers())

    def initial_state(self, batch_size: int) -> TrunkState:
        """The state before the first step of an episode."""
        return self.trunk.initial_state(batch_size)

    def reset_state(self, state: TrunkState, rows: Tensor) -> TrunkState:
        """The state with the rows marked in `rows`, (batch,) bool, back at the start of an episode."""
        return self.trunk.reset_state(state, rows)


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
