"""The contract of objectives, and objectives by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from aaren_rl.data.segment import Segment
from aaren_rl.errors import InvalidInput, require_free_name
from aaren_rl.model import DecisionModel
from aaren_rl.model.trunk import TrunkState
from aaren_rl.spec import WrittenForm, options_of_constructor


class Loss(NamedTuple):
    """What an objective says of a segment.

    Attributes:
        loss: scalar to minimise.
        metrics: further scalars by name, logged as "train/<name>"; they need no gradients.
        state: the model's state after the segment.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor]
    state: TrunkState


def check_metrics(result: Loss) -> None:
    """Checks that an objective's metrics do not take the names of the run's.

    Raises:
        InvalidInput: one does.
    """
    for name in result.metrics:
        if name in ("loss", "learning_rate") or name.startswith("gradient_norm"):
            raise InvalidInput(f"an objective has a metric {name!r}, which the run logs itself; name it otherwise")


def check_networks(objective: Objective) -> None:
    """Checks that every parameter of an objective belongs to one network, whose optimiser trains it.

    Raises:
        InvalidInput: a parameter belongs to no network, or to two.
    """
    for name, _ in objective.named_parameters(recurse=False):
        raise InvalidInput(
            f"{type(objective).__name__} has the parameter {name!r} outside of any network, so nothing would train it; "
            "put it into a module of its own"
        )
    owners: dict[nn.Parameter, str] = {}
    for network, module in objective.networks().items():
        for name, parameter in module.named_parameters():
            if parameter in owners:
                raise InvalidInput(
                    f"networks {owners[parameter]!r} and {network!r} of {type(objective).__name__} share the parameter "
                    f"{name!r}; give each its own, or hold the shared part outside of the modules' attributes"
                )
            owners[parameter] = network


class Objective(nn.Module):
    """What an update minimises, with whatever networks that needs besides the model.

    Every child module is a network: `model`, and those that a subclass adds in its constructor. Each network with
    trainable parameters gets an optimiser of its own and its gradient is clipped by itself; all are saved with the run,
    and only `model` goes into the agent. A network without gradients, such as a target network, has
    `requires_grad_(False)` and changes in `after_update`. Counters and the like are buffers: plain attributes are not
    saved.

    Args:
        model: the decision model to train.
    """

    needs_next_observations: ClassVar[bool] = False
    """True if segments must have `next_observations`."""

    learns_from_later_steps: ClassVar[bool] = False
    """True if segments of a single counted step have nothing to learn from."""

    def __init__(self, model: DecisionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, segment: Segment, state: TrunkState | None = None) -> Loss:
        """The loss on a segment.

        Args:
            segment: with actions; padding and steps that do not count must not enter the loss.
            state: the model's state before the segment; None for none.
        """
        raise NotImplementedError

    def result(
        self, loss: Tensor, metrics: Mapping[str, Tensor], hidden: Tensor, segment: Segment, state: TrunkState
    ) -> Loss:
        """The loss, with that of the return in reach where the model predicts it.

        Args:
            loss: of everything else.
            metrics: as for `Loss`.
            hidden: what `DecisionModel.hidden` gave for the segment.
            segment: as for `forward`.
            state: after the segment.
        """
        if self.model.reach is None:
            return Loss(loss, metrics, state)
        reach = self.model.reach_loss(hidden, segment)
        return Loss(loss + reach, {**metrics, "reach_loss": reach}, state)

    def after_update(self) -> None:
        """Changes networks and buffers that are not trained by gradients, in place; called after every update."""

    def networks(self) -> dict[str, nn.Module]:
        """The networks that are trained by gradients, by name."""
        return {
            name: child for name, child in self.named_children() if any(p.requires_grad for p in child.parameters())
        }


_OBJECTIVES: dict[str, type[Objective]] = {}

_FORM: WrittenForm[Objective] = WrittenForm(
    "objective",
    "expected NAME or NAME(OPTION=VALUE, ...), as imitation or critic(weight=0.5)",
    lambda objective: options_of_constructor(objective, 1),
)


def register_objective(name: str) -> Callable[[type[Objective]], type[Objective]]:
    """Class decorator that offers an objective under a name; a class that is defined anew replaces itself.

    Parameters of its constructor after the model are its options, written as `name(option=value)`.

    Raises:
        InvalidInput: the name is taken by another class, or an option has no default or no annotation.
    """

    def add(objective: type[Objective]) -> type[Objective]:
        require_free_name("an objective", name, objective, _OBJECTIVES)
        _FORM.options_of(objective)
        _OBJECTIVES[name] = objective
        return objective

    return add


def objective_names() -> list[str]:
    """The registered names, sorted."""
    return sorted(_OBJECTIVES)


def get_objective(spec: str) -> type[Objective]:
    """The class of an objective.

    Args:
        spec: its written form, as "imitation" or "critic(weight=0.5)".

    Raises:
        InvalidInput: bad syntax, an unknown name or option, or a value of a wrong type.
    """
    return _OBJECTIVES[_FORM.read(spec, _OBJECTIVES).name]


def build_objective(spec: str, model: DecisionModel) -> Objective:
    """Builds an objective.

    Args:
        spec: its written form.
        model: to train.

    Raises:
        InvalidInput: as `get_objective`, an option is out of range, or the objective does not go with the model.
    """
    parsed = _FORM.read(spec, _OBJECTIVES)
    return _OBJECTIVES[parsed.name](model, **parsed.options)
