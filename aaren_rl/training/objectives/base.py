"""The contract of objectives, and objectives by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, ClassVar, NamedTuple

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


def check_result(result: Any, objective: Objective, carries: bool = False) -> None:
    """Checks what an objective returned for a segment.

    Args:
        result: to check.
        objective: that returned it.
        carries: the next segment begins with the state after this one.

    Raises:
        InvalidInput: it is no `Loss` of scalars, a metric has the name of one of the run's, or the state to carry is
            missing.
    """
    name = type(objective).__name__
    if not isinstance(result, Loss):
        raise InvalidInput(
            f"{name}.forward returned a {type(result).__name__}; expected Loss(loss, metrics, state), as "
            "self.result(loss, metrics, hidden, segment, state) makes it"
        )
    scalars = {"loss": result.loss, **{f"metric {metric!r}": value for metric, value in result.metrics.items()}}
    for what, value in scalars.items():
        if not isinstance(value, Tensor) or value.ndim:
            given = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise InvalidInput(
                f"the {what} of {name} is {given}; expected a scalar tensor, as segment.mean_over_counted(values) gives"
            )
    for metric in result.metrics:
        if metric in ("loss", "learning_rate") or metric.startswith("gradient_norm"):
            raise InvalidInput(f"an objective has a metric {metric!r}, which the run logs itself; name it otherwise")
    if carries and result.state is None:
        raise InvalidInput(
            f"{name} returned no state, and this --context carries it to the next segment; return the one that the "
            "model gave for the segment"
        )


def check_gradients(loss: Tensor, objective: Objective) -> None:
    """Checks that something can be trained by a loss.

    Raises:
        InvalidInput: it has no gradients.
    """
    if not loss.requires_grad:
        raise InvalidInput(
            f"the loss of {type(objective).__name__} has no gradients; compute it outside of torch.no_grad(), and of "
            "tensors that are not detached"
        )


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
        InvalidInput: the name is taken by another class, an option has no default or no annotation, or the class is no
            objective: it does not subclass `Objective`, or has no `forward(segment, state)`.
    """

    def add(objective: type[Objective]) -> type[Objective]:
        _require_objective(objective)
        require_free_name("an objective", name, objective, _OBJECTIVES)
        _FORM.options_of(objective)
        _OBJECTIVES[name] = objective
        return objective

    return add


def _require_objective(objective: Any) -> None:
    if not isinstance(objective, type) or not issubclass(objective, Objective):
        raise InvalidInput(f"{objective!r} is no objective; expected a subclass of {Objective.__module__}.Objective")
    try:
        signature(objective.forward).bind(None, None, None)
        has_forward = objective.forward is not Objective.forward
    except TypeError:
        has_forward = False
    if not has_forward:
        raise InvalidInput(
            f"{objective.__name__} has no forward(self, segment, state=None), which gives the loss on a segment; write "
            "one"
        )


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
    form = _OBJECTIVES[parsed.name]
    objective = form(model, **parsed.options)
    if getattr(objective, "model", None) is not model:
        raise InvalidInput(
            f"{form.__name__} has no model; let its __init__ call super().__init__(model) first, and leave self.model "
            "as it is"
        )
    return objective
