"""Learners: what an update is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from aaren_rl import checkpoint
from aaren_rl.cuda_graph import CudaGraph
from aaren_rl.data.context import Context
from aaren_rl.data.hindsight import Relabelling
from aaren_rl.data.sampler import Sampler, hold_out
from aaren_rl.data.segment import Segment
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.errors import InvalidInput
from aaren_rl.mixers import state_tensors
from aaren_rl.model import DecisionModel
from aaren_rl.model.trunk import TrunkState
from aaren_rl.training.config import TrainingConfig
from aaren_rl.training.objectives import Loss, build_objective, check_gradients, check_networks, check_result
from aaren_rl.training.optimiser import (
    autocast,
    clipped_together,
    learning_rate,
    make_optimiser,
    resolve_auto,
    set_learning_rate,
)
from aaren_rl.training.processes import ALONE, LostProcess, Processes
from aaren_rl.training.shared_loss import SharedLoss
from aaren_rl.training.state_check import Expected, device_type_of

VALIDATION_STEPS = 20_000
"""Steps of held-out episodes that a validation looks at, about."""


class Learner(Protocol):
    """One or several models in training: what an update is, and all that has to be saved to go on with it.

    Attributes:
        models: those that act, one for each seed.
        seeds: of the models.
        config: the schedule.
        device: where everything lies.
        updates: made so far.
        data: what identifies the data; resuming checks it.
        processes: that train together.
    """

    models: list[DecisionModel]
    seeds: list[int]
    config: TrainingConfig
    device: torch.device
    updates: int
    data: dict[str, Any]
    processes: Processes

    @property
    def draws_on(self) -> torch.device:
        """Where batches are drawn: the CPU for data on disk, else the device."""
        ...

    @property
    def steps_per_update(self) -> float:
        """Steps of episodes that an update trains each model on, on average."""
        ...

    def update(self) -> dict[str, Tensor]:
        """Makes one update.

        Returns:
            Its metrics on the device, scalars or one value for each model: "loss" and "gradient_norm" of the model, and
            what the objective adds. The next update may overwrite them.

        Raises:
            LostProcess: another process ended; the learner is as it was before.
        """
        ...

    def validate(self) -> list[dict[str, float]]:
        """Metrics on held-out episodes, of each model; empty where none are held out."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """All that goes on from update to update, by name; called in all processes at once."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what `state_dict` gave, on a device of either type.

        Raises:
            CheckpointError: it does not fit; the message names the tensors, and nothing of it was taken over.
        """
        ...


class SingleLearner:
    """The learner of one model; see `Learner`.

    Args:
        model: to train, on the CPU.
        trajectories: to train on.
        config: the schedule.
        device: to train on.
        relabelling: gives segments other goals; None for none.
        processes: that train together; each takes its share of the rows of every batch.

    Raises:
        InvalidInput: an episode is longer than the model's learned timestep embedding, a state that grows is to be
            carried from segment to segment, there are fewer rows than processes, or an option does not go with the
            device or the relabelling.
        DataError: the objective needs next observations, and the data lack some, or they cannot be relabelled.
    """

    def __init__(
        self,
        model: DecisionModel,
        trajectories: Trajectories,
        config: TrainingConfig,
        device: torch.device | str = "cpu",
        relabelling: Relabelling | None = None,
        processes: Processes = ALONE,
    ) -> None:
        _check_lengths(model, trajectories)
        self.config, self.device, self.processes = config, torch.device(device), processes
        self.precision, self.compiled, self.cuda_graph = resolve_auto(config, self.device, model.config)
        if relabelling is not None and relabelling.rewards.compute is not None:
            self.cuda_graph = self._uncaptured("the environment computes the rewards of other goals on the CPU")
        if processes.count > 1:
            self.cuda_graph = self._uncaptured("several processes exchange gradients")
        if trajectories.storage.on_disk:
            self.cuda_graph = self._uncaptured("data on disk are drawn on the CPU")
        self.objective = build_objective(config.objective, model).to(self.device)
        check_networks(self.objective)
        if model.config.reach and relabelling is not None:
            raise InvalidInput(
                "the return in reach is clamped to the recorded returns, and hindsight relabelling makes others; leave "
                "out --reach or --goals"
            )
        one_step = Context.parse(config.context).steps == 1 and trajectories.lengths.max() > 1
        if self.objective.learns_from_later_steps and one_step:
            raise InvalidInput(
                f"objective {config.objective} learns values of steps from those after them, and segments of --context "
                f"{config.context} count one step; pass more"
            )
        # Other networks, such as targets, keep the mode that their objective gave them.
        for network in self.objective.networks().values():
            network.train()
        self.model = model
        self.acting = copy.deepcopy(model).eval() if config.average else model
        self.models, self.seeds, self.updates = [self.acting], [config.seed], 0
        train_on, held_out = hold_out(trajectories.episodes, config.held_out, config.seed)
        self.relabels = relabelling is not None
        self.sampler = self._make_sampler(trajectories, train_on, relabelling)
        self.validation = self.sampler.over(trajectories, held_out) if len(held_out) else None
        self.optimisers = {
            name: make_optimiser(network.parameters(), config, self.device)
            for name, network in self.objective.networks().items()
        }
        # The state that the segments before left to those that follow; None where segments stand alone.
        self.carried = self._initial_carried()
        loss = cast(nn.Module, torch.compile(self.objective)) if self.compiled else self.objective
        if processes.count > 1:
            loss = SharedLoss(self.objective, loss, self.carried is not None, processes)
        self._loss = loss
        self._metrics: tuple[str, ...] | None = None
        # How far the average goes to the new weights; a tensor, so that a captured update reads its present value.
        self.blend = torch.zeros((), device=self.device)
        self._graph: CudaGraph[dict[str, Tensor]] | None = None
        self.data = _identity(trajectories, config)
        # Data on disk are drawn on the CPU, which has other random numbers than a GPU.
        drawn = f"{self.data['sha256']}, drawn on a {self.sampler.device.type}"
        processes.check_same(drawn, "their data", "put the data on storage that all machines share")

    @property
    def draws_on(self) -> torch.device:
        """See `Learner.draws_on`."""
        return self.sampler.device

    @property
    def steps_per_update(self) -> float:
        """See `Learner.steps_per_update`."""
        return self.sampler.steps_per_segment * self.config.batch_size * self.config.accumulate

    def take(self, trajectories: Trajectories) -> None:
        """Draws segments of other episodes from the next update on; weights, moments and random numbers go on.

        The validation stays as it is. Resuming would ask for these data.

        Args:
            trajectories: of the same spaces.

        Raises:
            InvalidInput: segments are relabelled or carry their state, which belongs to the data before; or an episode
                is too long for the model.
        """
        if self.relabels or self.carried is not None:
            raise InvalidInput("segments with other goals, and those that carry a state, belong to the data before")
        _check_lengths(self.model, trajectories)
        generator = self.sampler.generator
        self.sampler = self._make_sampler(trajectories, np.arange(trajectories.episodes), None)
        # Those in memory are drawn on a GPU, those on disk never.
        if self.sampler.generator.device == generator.device:
            self.sampler.generator = generator
        self.data = _identity(trajectories, self.config)
        # A captured update reads the tensors of the data before.
        self._graph = None

    def _make_sampler(
        self, trajectories: Trajectories, episodes: np.ndarray, relabelling: Relabelling | None
    ) -> Sampler:
        config = self.config
        sampler = Sampler(
            trajectories,
            episodes,
            config.batch_size,
            config.context,
            config.weighting,
            self.device,
            config.seed,
            self.objective.needs_next_observations,
            relabelling,
        )
        if self.device.type == "cuda":
            # To look at the lengths drawn would hold up the GPU, and shapes that change could not be captured.
            sampler.pad_to = sampler.longest
        if self.processes.count > 1:
            sampler.share = self.processes.share(config.batch_size)
        return sampler

    def update(self) -> dict[str, Tensor]:
        """See `Learner.update`."""
        self.prepare_update()
        if self.cuda_graph:
            if self._graph is None:
                self._graph = CudaGraph(self._do_update, [self.sampler.generator], self.device)
            metrics = self._graph()
        else:
            metrics = self._do_update() if self.processes.count == 1 else self._update_together()
        # Not in the graph, of which only the work on the device is replayed.
        self.objective.after_update()
        self.updates += 1
        return metrics

    def prepare_update(self) -> None:
        """Sets what the next update reads and differs from update to update."""
        for optimiser in self.optimisers.values():
            set_learning_rate(optimiser, learning_rate(self.config, self.updates + 1))
        # A short memory at first, so that the average does not start from the untrained weights.
        self.blend.fill_(1 - min(self.config.average, (2 + self.updates) / (11 + self.updates)))
        if self.processes.count > 1:
            # Anew in every update, so that a checkpoint has those of all processes.
            entropy = (self.config.seed, self.processes.rank, self.updates)
            torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))

    def _update_together(self) -> dict[str, Tensor]:
        """An update with other processes; weights change after the last exchange, so all of it is made or nothing."""
        before = self._position()
        buffers = [(buffer, buffer.clone()) for buffer in self.objective.buffers()]
        try:
            return self._do_update()
        except LostProcess:
            self._go_to(before)
            for buffer, was in buffers:
                buffer.copy_(was)
            raise

    def _do_update(self) -> dict[str, Tensor]:
        config = self.config
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        totals: dict[str, Tensor] = {"loss": torch.zeros((), device=self.device)}
        for turn in range(config.accumulate):
            segment = self.sampler.sample()
            # Processes are averaged; each counts as many times as its share of the steps is above the average share.
            weight = self.sampler.share_of_counted * self.processes.count if self.processes.count > 1 else 1.0
            with self._exchanging(last=turn == config.accumulate - 1):
                with autocast(self.device, self.precision):
                    result: Loss = self._loss(segment, self.carried)
                if self.processes.count == 1:
                    check_result(result, self.objective, self.carried is not None)
                    check_gradients(result.loss, self.objective)
                (result.loss * weight / config.accumulate).backward()  # type: ignore[no-untyped-call]
            for name, value in {"loss": result.loss, **result.metrics}.items():
                totals[name] = totals.get(name, 0.0) + value.detach() * weight / config.accumulate
            self._carry(result.state)
        totals = self._mean_over_processes(totals)
        if self.model.reach is not None and self.model.reach.predict.weight.grad is None:
            raise InvalidInput(
                f"objective {self.config.objective} does not train the return in reach; let it return "
                "self.result(...), or leave out --reach"
            )
        for name, network in self.objective.networks().items():
            for group, parameters in clipped_together(name, network.named_parameters()).items():
                totals[group] = torch.nn.utils.clip_grad_norm_(parameters, config.clip)
            self.optimisers[name].step()
        if self.acting is not self.model:
            with torch.no_grad():
                for average, now in zip(self.acting.parameters(), self.model.parameters(), strict=True):
                    average.lerp_(now, self.blend)
        return totals

    def _mean_over_processes(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.processes.count == 1:
            return metrics
        names, advice = tuple(metrics), "give the metric in every update, as 0 or NaN where there is none"
        if self._metrics is None:
            self.processes.check_same(", ".join(names), "the metrics of their objective", advice)
            self._metrics = names
        if names != self._metrics:
            raise InvalidInput(
                f"the objective has the metrics {', '.join(names)}, and had {', '.join(self._metrics)} before, which "
                f"several processes cannot average; {advice}"
            )
        return self.processes.mean(metrics)

    def _exchanging(self, last: bool) -> AbstractContextManager[None]:
        """Encloses a loss and its gradient, which processes exchange after the last part of a batch."""
        return self._loss.exchanging(last) if isinstance(self._loss, SharedLoss) else nullcontext()

    def validate(self) -> list[dict[str, float]]:
        """See `Learner.validate`: the head's mean loss, whatever the objective."""
        if self.validation is None:
            return [{}]
        self.acting.eval()
        with torch.inference_mode():
            # Compiling again for inference would cost more than it saves, so the plain loss is taken.
            parts = [
                (self._head_loss(segment).item(), int(cast(Tensor, segment.counted).sum()))
                for segment in self.validation.sweep(VALIDATION_STEPS)
            ]
        self.model.train()
        return [{"loss": sum(loss * steps for loss, steps in parts) / sum(steps for _, steps in parts)}]

    def _head_loss(self, segment: Segment) -> Tensor:
        hidden, _ = self.acting.hidden(segment)
        return self.acting.head_loss(hidden, segment)

    def state_dict(self) -> dict[str, Tensor]:
        """See `Learner.state_dict`: `objective.`, `average.`, `optimiser.`, `random.`, `carried.`."""
        return self._state_dict(lambda part: self.processes.gathered(part, self.config.batch_size))

    def _state_dict(self, rows_of_all: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The state, with the carried rows of this process replaced by those of all."""
        state = _prefixed("objective", self.objective.state_dict())
        if self.acting is not self.model:
            state |= _prefixed("average", self.acting.state_dict())
        networks = self.objective.networks()
        for name, optimiser in self.optimisers.items():
            for parameter_name, parameter in _trainable(networks[name]):
                parts = {part: value for part, value in optimiser.state[parameter].items() if value is not None}
                state |= _prefixed(f"optimiser.{name}.{parameter_name}", parts)
        state |= self._position()
        for name in [name for name in state if _is_carried(name)]:
            state[name] = rows_of_all(state[name])
        # Copies, since a file takes no tensor twice, and networks may share buffers.
        return {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}

    def _position(self) -> dict[str, Tensor]:
        """Where random numbers, and the states of the rows of this process, stand."""
        state = {"random.cpu": torch.get_rng_state(), "random.sampler": self.sampler.generator.get_state()}
        if self.device.type == "cuda":
            state["random.cuda"] = torch.cuda.get_rng_state(self.device)
        if self.carried is not None:
            assert self.sampler.cursor is not None, "segments are carried"
            state["carried.cursor"] = self.sampler.cursor.clone()
            if self.sampler.carried_goal is not None:
                state["carried.goal"] = self.sampler.carried_goal.clone()
            state |= {f"carried.{i}": part.clone() for i, part in enumerate(state_tensors(self.carried))}
        return state

    def _go_to(self, position: Mapping[str, Tensor]) -> None:
        """Goes to what `_position` gave, on a device of either type."""
        self._load_random_states(position)
        if self.carried is None:
            return
        assert self.sampler.cursor is not None, "segments are carried"
        self.sampler.cursor.copy_(position["carried.cursor"])
        if self.sampler.carried_goal is not None:
            self.sampler.carried_goal.copy_(position["carried.goal"])
        for i, kept in enumerate(state_tensors(self.carried)):
            kept.copy_(position[f"carried.{i}"])

    def expected_state(self, saved: Mapping[str, Tensor]) -> Expected:
        """Tensors that `load_state_dict` takes.

        Args:
            saved: the tensors at hand, which tell a state from another type of device. Random states of another type
                than here are ignored.
        """
        # Their shapes count. Processes that load may not wait for each other.
        state = self._state_dict(lambda part: part.new_zeros(self.config.batch_size, *part.shape[1:]))
        required = {name: part for name, part in state.items() if not name.startswith("optimiser.")}
        ignored: frozenset[str] = frozenset()
        ignored |= {"random.cuda"} if self._from_other_device(saved) else frozenset()
        ignored |= {"random.sampler"} if self._drawn_elsewhere(saved) else frozenset()
        required = {name: part for name, part in required.items() if name not in ignored}
        groups = []
        for network, module in self.objective.networks().items():
            for name, parameter in _trainable(module):
                moments = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
                parts = {"step": torch.zeros(()), "exp_avg": moments, "exp_avg_sq": moments}
                groups.append(_prefixed(f"optimiser.{network}.{name}", parts))
        generators = {"cpu": torch.device("cpu"), "cuda": self.device, "sampler": self.draws_on}
        return Expected(required, tuple(groups), ignored, generators)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See `Learner.load_state_dict`."""
        self.expected_state(state).check(state)
        self.objective.load_state_dict(_unprefixed("objective", state))
        if self.acting is not self.model:
            self.acting.load_state_dict(_unprefixed("average", state))
        networks = self.objective.networks()
        for name, optimiser in self.optimisers.items():
            saved = optimiser.state_dict()
            saved["state"] = {
                number: _unprefixed(f"optimiser.{name}.{parameter_name}", state)
                for number, (parameter_name, _) in enumerate(_trainable(networks[name]))
            }
            optimiser.load_state_dict({**saved, "state": {k: v for k, v in saved["state"].items() if v}})
        rows = self.processes.share(self.config.batch_size)
        self._go_to({name: part[rows] if _is_carried(name) else part for name, part in state.items()})
        # The optimisers hold new tensors, which a captured update would not read.
        self._graph = None

    def _load_random_states(self, state: Mapping[str, Tensor]) -> None:
        torch.set_rng_state(state["random.cpu"])
        # Seeded by where the other device's numbers had come to, so that the run's first batches do not come again.
        seed = int(checkpoint.digest(state["random.sampler"].numpy().data)[:15], 16)
        if self._drawn_elsewhere(state):
            self.sampler.generator.manual_seed(seed)
        else:
            self.sampler.generator.set_state(state["random.sampler"])
        if self.device.type == "cuda" and self._from_other_device(state):
            torch.cuda.manual_seed(seed)
        elif self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random.cuda"], self.device)

    def _from_other_device(self, names: Collection[str]) -> bool:
        """True if a state was saved on a GPU and is to go on on a CPU, or the other way round."""
        return ("random.cuda" in names) != (self.device.type == "cuda")

    def _drawn_elsewhere(self, state: Mapping[str, Tensor]) -> bool:
        """True if batches were drawn on another type of device: on a GPU from memory and here from disk, say."""
        found = device_type_of(state["random.sampler"]) if "random.sampler" in state else None
        return found not in (None, self.draws_on.type)

    def _uncaptured(self, why: str) -> bool:
        """False: updates have no CUDA graph, for a reason.

        Raises:
            InvalidInput: a CUDA graph was asked for.
        """
        if self.cuda_graph and self.config.cuda_graph == "yes":
            raise InvalidInput(f"{why}, so updates have no CUDA graph; pass --cuda-graph auto")
        return False

    def _initial_carried(self) -> TrunkState | None:
        if self.sampler.context.mode != "carry":
            return None
        if not self.model.fixed_size:
            raise InvalidInput(
                f"--context {self.config.context} carries a state of constant size; that of mixer "
                f"{self.model.config.mixer!r} grows; pass another --context or --mixer aaren"
            )
        rows = self.processes.share(self.config.batch_size)
        return self.model.initial_state(rows.stop - rows.start)

    def _carry(self, after: TrunkState) -> None:
        if self.carried is not None:
            for kept, now in zip(state_tensors(self.carried), state_tensors(after), strict=True):
                kept.copy_(now.detach())


def _identity(trajectories: Trajectories, config: TrainingConfig) -> dict[str, Any]:
    """What data and split must have in common for a run to be resumed."""
    return {
        "episodes": trajectories.episodes,
        "steps": trajectories.steps,
        "sha256": trajectories.sha256,
        "seed": config.seed,
        "held_out": config.held_out,
    }


def _check_lengths(model: DecisionModel, trajectories: Trajectories) -> None:
    longest = int(trajectories.lengths.max())
    if model.config.timesteps == "learned" and longest > model.config.max_steps:
        raise InvalidInput(
            f"the longest episode has {longest} steps, the learned timestep embedding holds "
            f"{model.config.max_steps}; pass --max-steps {longest}, or --timesteps none or sinusoidal"
        )


def _trainable(network: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters of a network that its optimiser has, in the optimiser's order."""
    return [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]


def _is_carried(name: str) -> bool:
    """True for tensors of the carried state, which have a row for each row of the batch; all draw the others."""
    group, _, number = name.partition(".")
    return group == "carried" and number.isdecimal()


def _prefixed(prefix: str, state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in state.items()}


def _unprefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) + 1 :]: value for name, value in state.items() if name.startswith(f"{prefix}.")}
