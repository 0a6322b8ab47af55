"""Several runs that differ in their seed only, trained as one batch."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from aaren_rl.cuda_graph import Captured
from aaren_rl.data.sampler import Batch
from aaren_rl.errors import InvalidInput
from aaren_rl.model import DecisionModel
from aaren_rl.training.run import (
    Interrupted,
    Trained,
    Trainer,
    autocast,
    make_optimiser,
    set_learning_rate,
    stop_signal,
)


def train_together(trainers: Sequence[Trainer], progress: bool = True) -> list[Trained]:
    """Runs all trainers at once, each in its own folder, with one update of all their models at a time.

    Small models leave a GPU idle; there this takes little longer than one run. On a CPU one after another is faster.

    Args:
        trainers: of equal models, schedules and devices, all at the same update.
        progress: whether the first of them shows its progress.

    Raises:
        InvalidInput: they differ in more than their seeds.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint of each was saved.
        Diverged: as `Trainer.run`, by the first run that does.
    """
    together = _Together(trainers)
    generators = [trainer.sampler.generator for trainer in trainers]
    captured = trainers[0].captured
    update_all = Captured(together.update, generators, together.device) if captured else together.update
    halt = threading.Event()
    done: list[Trained] = []
    interrupted: list[Interrupted] = []
    with stop_signal() as stop, contextlib.ExitStack() as stack:
        runs = [trainer.running(halt, progress and trainer is trainers[0]) for trainer in trainers]
        for run in runs:
            stack.enter_context(contextlib.closing(run))
            try:
                next(run)
            except StopIteration as finished:
                done.append(finished.value)
        while len(done) + len(interrupted) < len(runs):
            together.prepare_update()
            losses, norms = update_all()
            # All runs must see the wish to stop after the same update.
            if stop.is_set():
                halt.set()
            for number, run in enumerate(runs):
                try:
                    run.send((losses[number], norms[number]))
                except StopIteration as finished:
                    done.append(finished.value)
                except Interrupted as stopped:
                    interrupted.append(stopped)
    if interrupted:
        raise interrupted[0]
    return done


class _Together:
    """The models of several trainers, stacked; each trainer's own tensors become views of the stacks."""

    def __init__(self, trainers: Sequence[Trainer]) -> None:
        if not trainers:
            raise InvalidInput("no runs to train together; expected at least one")
        first = trainers[0]
        if first.carried is not None:
            raise InvalidInput("runs that carry a state from segment to segment are trained one after another")
        if not first.model.config.recordable:
            raise InvalidInput(
                f"runs of mixer {first.model.config.mixer!r} are not trained together; run them one after another"
            )
        if first.device.type == "cpu" and first.model.config.dropout:
            raise InvalidInput("on a CPU runs with dropout are not trained together; run them one after another")
        for trainer in trainers[1:]:
            buffers = zip(trainer.model.buffers(), first.model.buffers(), strict=True)
            same = (
                trainer.model.config == first.model.config
                and replace(trainer.config, seed=0) == replace(first.config, seed=0)
                and (trainer.update, trainer.device) == (first.update, first.device)
                and all(torch.equal(ours, theirs) for ours, theirs in buffers)
            )
            if not same:
                raise InvalidInput(
                    "runs trained together need equal models, schedules, data and devices and the same update; "
                    f"updates {[trainer.update for trainer in trainers]}"
                )
        self.trainers, self.config, self.device = trainers, first.config, first.device
        self.parameters = _stacked([trainer.model for trainer in trainers])
        self.averages = _stacked([trainer.acting for trainer in trainers]) if first.config.average else {}
        self.optimiser = make_optimiser(self.parameters.values(), self.config, self.device)
        self._share_optimiser_state()
        self.loss = _Loss(first.model)
        longest = max(trainer.sampler.longest for trainer in trainers)
        for trainer in trainers:
            trainer.sampler.pad_to = longest

    def prepare_update(self) -> None:
        """Sets what differs from update to update, the same for all."""
        self.trainers[0].prepare_update()
        set_learning_rate(self.optimiser, self.trainers[0].learning_rate)

    def update(self) -> tuple[Tensor, Tensor]:
        """One update of all models; their losses and gradient norms, (models,)."""
        self.optimiser.zero_grad(set_to_none=True)
        total = torch.zeros(len(self.trainers), device=self.device)
        for _ in range(self.config.accumulate):
            samples = [trainer.sampler.sample() for trainer in self.trainers]
            batch = Batch(*(torch.stack(parts) for parts in zip(*samples, strict=True)))
            with autocast(self.device, self.trainers[0].precision):
                losses = torch.vmap(self._loss, randomness="different")(self.parameters, batch) / self.config.accumulate
            losses.sum().backward()  # type: ignore[no-untyped-call]
            total += losses.detach()
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
        # As torch's clip_grad_norm_, for each model by itself.
        shares = (self.config.clip / (norms + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(shares.view(-1, *[1] * (gradient.ndim - 1)))
        self.optimiser.step()
        with torch.no_grad():
            for name, average in self.averages.items():
                average.lerp_(self.parameters[name], self.trainers[0].blend)
        return total, norms

    def _loss(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        named = {f"model.{name}": parameter for name, parameter in parameters.items()}
        loss: Tensor = torch.func.functional_call(self.loss, named, (batch,))
        return loss

    def _share_optimiser_state(self) -> None:
        """Takes over what the trainers' optimisers hold, and lets them hold views of what is held here."""
        for name, stacked in self.parameters.items():
            own = [trainer.model.get_parameter(name) for trainer in self.trainers]
            states = [trainer.optimiser.state[one] for trainer, one in zip(self.trainers, own, strict=True)]
            state: dict[str, Any] = {}
            if all(states):
                state["step"] = states[0]["step"].clone()
                for part in ("exp_avg", "exp_avg_sq"):
                    state[part] = torch.stack([given[part] for given in states])
            else:
                state["step"] = torch.zeros((), device=self.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(stacked), torch.zeros_like(stacked)
            self.optimiser.state[stacked] = state
            for number, (trainer, one) in enumerate(zip(self.trainers, own, strict=True)):
                parts = {part: state[part][number] for part in ("exp_avg", "exp_avg_sq")}
                trainer.optimiser.state[one] = {"step": state["step"], **parts}


class _Loss(nn.Module):
    """The loss as a module's forward, which is what torch.func calls."""

    def __init__(self, model: DecisionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        """See `DecisionModel.loss`."""
        return self.model.loss(*batch)


def _stacked(models: Sequence[DecisionModel]) -> dict[str, nn.Parameter]:
    """The models' parameters by name, (models, ...); those of the models become views of them."""
    stacked = {}
    for name, _ in models[0].named_parameters():
        own = [model.get_parameter(name) for model in models]
        stacked[name] = nn.Parameter(torch.stack([parameter.detach() for parameter in own]))
        for number, parameter in enumerate(own):
            parameter.data = stacked[name].data[number]
    return stacked
