"""Several seeds trained as one batch."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from aaren_rl.cuda_graph import CudaGraph
from aaren_rl.data.segment import Segment
from aaren_rl.errors import InvalidInput
from aaren_rl.training.learner import SingleLearner
from aaren_rl.training.objectives import check_gradients, check_result
from aaren_rl.training.optimiser import autocast, clipped_together, learning_rate, make_optimiser, set_learning_rate
from aaren_rl.training.processes import ALONE
from aaren_rl.training.state_check import Expected


class EnsembleLearner:
    """The learner of several models that differ in their seed only; see `Learner`.

    Small models leave a GPU idle; there an update of all takes little longer than an update of one. On a CPU one after
    another is faster. The parameters are stacked, and those of the single learners become views of the stacks.

    Args:
        learners: of equal models, schedules and devices, all after the same number of updates.

    Raises:
        InvalidInput: they differ in more than their seeds, or cannot be trained as one batch.
    """

    def __init__(self, learners: Sequence[SingleLearner]) -> None:
        _check_alike(learners)
        first = learners[0]
        self.learners, self.config, self.device = learners, first.config, first.device
        self.models = [learner.acting for learner in learners]
        self.seeds = [learner.config.seed for learner in learners]
        self.data = {f"seed-{seed}": learner.data for seed, learner in zip(self.seeds, learners, strict=True)}
        self.processes = ALONE
        self.precision, self.compiled, self.cuda_graph = first.precision, False, first.cuda_graph
        self.parameters = _stacked([learner.objective for learner in learners])
        self.averages = _stacked([learner.acting for learner in learners]) if first.config.average else {}
        self.optimisers = {
            network: make_optimiser(self._of(network).values(), self.config, self.device)
            for network in first.objective.networks()
        }
        self._share_optimiser_states()
        longest = max(learner.sampler.longest for learner in learners)
        for learner in learners:
            learner.sampler.pad_to = longest
        self._graph: CudaGraph[dict[str, Tensor]] | None = None

    @property
    def updates(self) -> int:
        """See `Learner.updates`; those of every single learner."""
        return self.learners[0].updates

    @updates.setter
    def updates(self, updates: int) -> None:
        for learner in self.learners:
            learner.updates = updates

    @property
    def draws_on(self) -> torch.device:
        """See `Learner.draws_on`."""
        return self.learners[0].draws_on

    @property
    def steps_per_update(self) -> float:
        """See `Learner.steps_per_update`."""
        return self.learners[0].steps_per_update

    def update(self) -> dict[str, Tensor]:
        """See `Learner.update`; every metric has one value for each model."""
        self.learners[0].prepare_update()
        for optimiser in self.optimisers.values():
            set_learning_rate(optimiser, learning_rate(self.config, self.updates + 1))
        if self.cuda_graph:
            if self._graph is None:
                generators = [learner.sampler.generator for learner in self.learners]
                self._graph = CudaGraph(self._do_update, generators, self.device)
            metrics = self._graph()
        else:
            metrics = self._do_update()
        for learner in self.learners:
            learner.objective.after_update()
        self.updates += 1
        return metrics

    def _do_update(self) -> dict[str, Tensor]:
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        totals: dict[str, Tensor] = {}
        for _ in range(self.config.accumulate):
            segments = Segment.stacked([learner.sampler.sample() for learner in self.learners])
            fields = Segment(*(None if part is None else 0 for part in segments))  # type: ignore[arg-type]
            with autocast(self.device, self.precision):
                losses = torch.vmap(self._losses, in_dims=(0, 0, fields), randomness="different")
                found = losses(self.parameters, self._buffers(), segments)
            check_gradients(found["loss"], self.learners[0].objective)
            (found["loss"] / self.config.accumulate).sum().backward()  # type: ignore[no-untyped-call]
            for name, value in found.items():
                totals[name] = totals.get(name, 0.0) + value.detach() / self.config.accumulate
        for network, optimiser in self.optimisers.items():
            named = ((name.removeprefix(f"{network}."), part) for name, part in self._of(network).items())
            for group, parameters in clipped_together(network, named).items():
                totals[group] = _clip_each(parameters, self.config.clip)
            optimiser.step()
        with torch.no_grad():
            for name, average in self.averages.items():
                average.lerp_(self.parameters[f"model.{name}"], self.learners[0].blend)
        return totals

    def validate(self) -> list[dict[str, float]]:
        """See `Learner.validate`."""
        return [metrics for learner in self.learners for metrics in learner.validate()]

    def state_dict(self) -> dict[str, Tensor]:
        """See `Learner.state_dict`: those of the single learners, under their seeds."""
        return {
            f"seed-{seed}.{name}": value
            for seed, learner in zip(self.seeds, self.learners, strict=True)
            for name, value in learner.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See `Learner.load_state_dict`."""
        singles, expected = [], []
        for seed, learner in zip(self.seeds, self.learners, strict=True):
            prefix = f"seed-{seed}."
            own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            singles.append(own)
            expected.append(learner.expected_state(own).prefixed(prefix))
        # All of them before the first is loaded.
        functools.reduce(Expected.joined, expected).check(state)
        for learner, own in zip(self.learners, singles, strict=True):
            learner.load_state_dict(own)
        # The single optimisers hold new tensors now, which are stacked again.
        self._share_optimiser_states()
        self._graph = None

    def _losses(
        self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], segment: Segment
    ) -> dict[str, Tensor]:
        """Loss and metrics of one of the models."""
        result = torch.func.functional_call(self.learners[0].objective, {**parameters, **buffers}, (segment,))
        check_result(result, self.learners[0].objective)
        return {"loss": result.loss, **result.metrics}

    def _buffers(self) -> dict[str, Tensor]:
        """The objectives' buffers, stacked; those of the models are equal."""
        names = [name for name, _ in self.learners[0].objective.named_buffers() if not name.startswith("model.")]
        return {name: torch.stack([each.objective.get_buffer(name) for each in self.learners]) for name in names}

    def _of(self, network: str) -> dict[str, nn.Parameter]:
        """The stacked parameters of a network, trainable ones only."""
        return {
            name: parameter
            for name, parameter in self.parameters.items()
            if name.startswith(f"{network}.") and parameter.requires_grad
        }

    def _share_optimiser_states(self) -> None:
        """Takes over what the single optimisers hold, and lets them hold views of what is held here."""
        for network, optimiser in self.optimisers.items():
            for name, stacked in self._of(network).items():
                singles = [(each.optimisers[network], each.objective.get_parameter(name)) for each in self.learners]
                state = _stacked_moments([single.state[own] for single, own in singles], stacked)
                optimiser.state[stacked] = state
                for number, (single, own) in enumerate(singles):
                    views = {part: state[part][number] for part in ("exp_avg", "exp_avg_sq")}
                    single.state[own] = {"step": state["step"], **views}


def _check_alike(learners: Sequence[SingleLearner]) -> None:
    if not learners:
        raise InvalidInput("no learners to train together; expected at least one")
    first = learners[0]
    if first.carried is not None:
        raise InvalidInput("learners that carry a state from segment to segment are trained one after another")
    if not first.model.config.cuda_graph:
        raise InvalidInput(
            f"learners of mixer {first.model.config.mixer!r} are not trained together; train them one after another"
        )
    if first.device.type == "cpu" and first.model.config.dropout:
        raise InvalidInput("on a CPU learners with dropout are not trained together; train them one after another")
    seeds = [learner.config.seed for learner in learners]
    if len(set(seeds)) < len(seeds):
        raise InvalidInput(f"learners trained together have the seeds {seeds}; expected each once")
    for learner in learners[1:]:
        buffers = zip(learner.objective.buffers(), first.objective.buffers(), strict=True)
        same = (
            learner.model.config == first.model.config
            and replace(learner.config, seed=0) == replace(first.config, seed=0)
            and (learner.updates, learner.device) == (first.updates, first.device)
            and all(torch.equal(ours, theirs) for ours, theirs in buffers)
        )
        if not same:
            raise InvalidInput(
                "learners trained together need equal models, schedules, data and devices and as many updates; "
                f"updates {[each.updates for each in learners]}"
            )


def _stacked(modules: Sequence[nn.Module]) -> dict[str, nn.Parameter]:
    """The modules' parameters by name, (modules, ...); those of the modules become views of them."""
    stacked = {}
    for name, parameter in modules[0].named_parameters():
        single = [module.get_parameter(name) for module in modules]
        together = torch.stack([each.detach() for each in single])
        stacked[name] = nn.Parameter(together, requires_grad=parameter.requires_grad)
        for number, each in enumerate(single):
            each.data = stacked[name].data[number]
    return stacked


def _stacked_moments(states: Sequence[Mapping[str, Tensor]], stacked: nn.Parameter) -> dict[str, Any]:
    """AdamW's state of a stacked parameter from those of the single ones; zeros before the first update."""
    if not all(states):
        zeros = torch.zeros_like(stacked), torch.zeros_like(stacked)
        return {"step": torch.zeros((), device=stacked.device), "exp_avg": zeros[0], "exp_avg_sq": zeros[1]}
    moments = {part: torch.stack([state[part] for state in states]) for part in ("exp_avg", "exp_avg_sq")}
    return {"step": states[0]["step"].clone(), **moments}


def _clip_each(parameters: Sequence[nn.Parameter], largest: float) -> Tensor:
    """Clips the gradient norm of each model by itself, as torch's clip_grad_norm_; the norms before, (models,)."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(len(parameters[0]), device=parameters[0].device)
    norms: Tensor = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    shares = (largest / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(shares.view(-1, *[1] * (gradient.ndim - 1)))
    return norms
