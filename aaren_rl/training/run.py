"""Training of a decision model on trajectories, in a run folder that it can be resumed from."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from aaren_rl import checkpoint
from aaren_rl.checkpoint import AgentCard
from aaren_rl.cuda_graph import Captured
from aaren_rl.data.sampler import Context, Sampler, Weighting, hold_out
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.errors import AarenError, CheckpointError, InvalidInput
from aaren_rl.mixers import State, state_tensors
from aaren_rl.model import DecisionModel, ModelConfig
from aaren_rl.ops.prefix_attention import fused as fused_scan
from aaren_rl.training.log import RunLog

Precision = Literal["auto", "float32", "bf16"]
Switch = Literal["auto", "yes", "no"]


class Interrupted(AarenError):
    """Training was stopped by Ctrl-C or SIGTERM, after saving a checkpoint."""


class Diverged(AarenError):
    """The loss or its gradient is no longer a finite number."""


@dataclass(frozen=True)
class TrainingConfig:
    """The schedule; the defaults are the Decision Transformer's (Chen et al. 2021, appendix A, and released code).

    Save the averaged weights.
    """

    updates: int = 100_000
    """Optimiser updates."""
    batch_size: int = 64
    """Segments in a batch."""
    context: int | str = 20
    """What a segment is: a window of so many steps; "10+20", one of 20 after a burn-in of 10; "episode", a whole
    episode; "packed", as many episodes as fit into the length of the longest; "carry:20", the next 20 steps, from the
    state that those before left."""
    weighting: Weighting = "length"
    """Draw episodes in proportion to their length, or uniformly; "packed" and "carry" take all steps alike."""
    learning_rate: float = 1e-4
    """Peak learning rate of AdamW."""
    warmup: int = 10_000
    """Updates over which the learning rate rises linearly to its peak, where it stays."""
    weight_decay: float = 1e-4
    """AdamW's decoupled weight decay."""
    clip: float = 0.25
    """Largest norm of the gradient."""
    average: float = 0.995
    """Decay of the exponential moving average of the weights that acts (after the plain average of Polyak and Juditsky
    1992); 0 acts with the last weights. Returns swing from one update to the next, and the average swings less."""
    accumulate: int = 1
    """Batches whose gradients are averaged into one update."""
    held_out: float = 0.05
    """Share of the episodes kept from training for the validation loss."""
    precision: Precision = "auto"
    """Type of the matrix products; the parameters and the scan's sums stay in float32. auto takes bf16 where the device
    multiplies it faster."""
    compile: Switch = "auto"
    """Compile the loss with torch.compile; auto does so on a GPU with Triton."""
    graphs: Switch = "auto"
    """Record an update as a CUDA graph and replay it; auto does so on a GPU, where the mixer allows it."""
    seed: int = 0
    """Of the weights, the batches, dropout and the held-out episodes."""
    log_every: int = 100
    """Updates between two logged points."""
    evaluate_every: int = 10_000
    """Updates between two validations and, where an evaluation is given, roll-outs."""
    checkpoint_every: int = 5_000
    """Updates between two checkpoints; one is also kept of every evaluation that is the best so far."""

    def __post_init__(self) -> None:
        for name, kind in (("precision", Precision), ("compile", Switch), ("graphs", Switch)):
            if getattr(self, name) not in get_args(kind):
                raise InvalidInput(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(get_args(kind))}")
        at_least_one = ("updates", "batch_size", "accumulate", "log_every", "evaluate_every", "checkpoint_every")
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise InvalidInput(f"{name} is {getattr(self, name)}; expected a positive number")
        if Context.parse(self.context).kind in ("packed", "carry") and self.weighting == "uniform":
            raise InvalidInput(f"context {self.context} takes all steps alike; leave weighting at length")
        if not 0 <= self.average < 1:
            raise InvalidInput(f"average is {self.average}; expected a decay from 0 up to but not 1")
        if self.warmup < 0 or self.weight_decay < 0:
            raise InvalidInput("warmup and weight_decay must not be negative")


@dataclass(frozen=True)
class Evaluation:
    """Returns of an evaluation during training."""

    mean_return: float
    score: float | None = None


@dataclass(frozen=True)
class Trained:
    """What a finished run left.

    Attributes:
        last: folder of the agent after the last update.
        best: folder of the agent that evaluated best during training, None if nothing was evaluated.
        best_update: the update of that agent.
        seconds: time spent in updates, the time before a resume included.
    """

    last: Path
    best: Path | None
    best_update: int | None
    seconds: float


class Trainer:
    """One run: a model, its optimiser, its batches and a folder.

    The folder holds `checkpoints/<update>` (an agent folder with what resuming needs besides), `metrics.jsonl`,
    TensorBoard's event files, and at the end the agent folders `last` and `best`.

    Args:
        model: to train, on the CPU.
        trajectories: to train on.
        config: the schedule.
        card: goes into every agent folder.
        folder: of the run.
        device: to train on.
        evaluate: called with the model at every evaluation.

    Raises:
        InvalidInput: an episode is longer than the model's learned timestep embedding, or a state that grows is to be
            carried from segment to segment.
    """

    def __init__(
        self,
        model: DecisionModel,
        trajectories: Trajectories,
        config: TrainingConfig,
        card: AgentCard,
        folder: Path,
        device: torch.device | str = "cpu",
        evaluate: Callable[[DecisionModel], Evaluation] | None = None,
    ) -> None:
        longest = int(trajectories.lengths.max())
        if model.config.timesteps == "learned" and longest > model.config.max_steps:
            raise InvalidInput(
                f"the longest episode has {longest} steps, the learned timestep embedding holds "
                f"{model.config.max_steps}; pass --max-steps {longest}, or --timesteps none or sinusoidal"
            )
        self.config, self.card, self.folder, self.evaluate = config, card, folder, evaluate
        self.device = torch.device(device)
        self.model = model.to(self.device).train()
        self.acting = copy.deepcopy(self.model).eval() if config.average else self.model
        self.precision, self.compiled, self.captured = _means(config, self.device, self.model.config)
        train_on, held_out = hold_out(trajectories.episodes, config.held_out, config.seed)
        self.sampler = Sampler(
            trajectories, train_on, config.batch_size, config.context, config.weighting, self.device, config.seed
        )
        if self.device.type == "cuda":
            # To look at the lengths drawn would hold up the GPU, and shapes that change could not be recorded.
            self.sampler.pad_to = self.sampler.longest
        self.validation = self.sampler.over(trajectories, held_out) if len(held_out) else None
        self.optimiser = make_optimiser(self.model.parameters(), config, self.device)
        # What the segments before left to those that follow them; None where segments stand alone.
        self.carried: tuple[State, ...] | None = None
        if self.sampler.context.kind == "carry":
            if not self.model.fixed_size:
                raise InvalidInput(
                    f"--context {config.context} carries a state of constant size; that of mixer "
                    f"{model.config.mixer!r} grows; pass another --context or --mixer aaren"
                )
            self.carried = self.model.initial_state(config.batch_size)
        self._loss = torch.compile(self.model.loss_and_state) if self.compiled else self.model.loss_and_state
        # How far the average goes to the new weights; a tensor, so that a recorded update reads what it is by then.
        self.blend = torch.zeros((), device=self.device)
        self._update_once: Callable[[], tuple[Tensor, Tensor]] = self._do_update
        self.data = {
            "episodes": trajectories.episodes,
            "steps": trajectories.steps,
            "sha256": checkpoint.digest(trajectories.rewards.tobytes() + trajectories.offsets.tobytes()),
            "seed": config.seed,
            "held_out": config.held_out,
            "device": self.device.type,
        }
        self.update = 0
        self.seconds = 0.0
        self.best_update: int | None = None
        self.best_return = -np.inf

    def run(self, progress: bool = True) -> Trained:
        """Trains from where the run stands to the last update.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; a checkpoint of the last whole update was saved.
            CheckpointError: a checkpoint could not be written; earlier ones are still there.
            InvalidInput: the folder holds another run.
            Diverged: the loss or its gradient is not finite; checkpoints from before are still there.
        """
        if self.captured:
            # Recorded anew by every run, since restoring replaces tensors that a recording would keep to.
            self._update_once = Captured(self._do_update, [self.sampler.generator], self.device)
        with stop_signal() as stop, contextlib.closing(self.running(stop, progress)) as running:
            try:
                next(running)
                while True:
                    self.prepare_update()
                    running.send(self._update_once())
            except StopIteration as finished:
                trained: Trained = finished.value
                return trained

    def running(self, stop: threading.Event, progress: bool = True) -> Generator[None, tuple[Tensor, Tensor], Trained]:
        """All of a run but the updates themselves: asks for one with every yield and is sent its loss and norm.

        Returns:
            What the finished run left; it raises as `run`.
        """
        config = self.config
        if self.update == 0 and checkpoints(self.folder):
            raise InvalidInput(f"{self.folder} holds a run already; resume it, or give the new run another folder")
        log = RunLog(self.folder, self.update)
        bar = tqdm(total=config.updates, initial=self.update, unit="update", mininterval=1.0, disable=not progress)
        losses = torch.zeros((), device=self.device)
        norms = torch.zeros((), device=self.device)
        saved = -1
        since, began, paused = self.update, time.perf_counter(), 0.0
        with contextlib.closing(log), bar:
            while self.update < config.updates and not stop.is_set():
                loss, norm = yield
                self.update += 1
                losses += loss
                norms += norm
                bar.update()
                if self.update % config.log_every == 0 or self.update == config.updates:
                    self._check_finite(losses, norms)
                    count, elapsed = self.update - since, time.perf_counter() - began - paused
                    point = {
                        "loss": losses.item() / count,
                        "gradient_norm": norms.item() / count,
                        "learning_rate": self._learning_rate(self.update),
                        "updates_per_second": count / elapsed,
                        "steps_per_second": count * self._steps_per_update() / elapsed,
                    }
                    self.seconds += elapsed
                    log.write(self.update, point)
                    bar.set_postfix(loss=f"{point['loss']:.4f}")
                    losses.zero_()
                    norms.zero_()
                    since, began, paused = self.update, time.perf_counter(), 0.0
                at_evaluation = self.update % config.evaluate_every == 0 or self.update == config.updates
                if at_evaluation or self.update % config.checkpoint_every == 0:
                    self._check_finite(losses, norms)
                    started = time.perf_counter()
                    if at_evaluation:
                        log.write(self.update, self._evaluate())
                    self.save()
                    saved = self.update
                    checking = time.perf_counter() - started
                    log.write(self.update, {"seconds_checking": checking})
                    # What checking costs is not training.
                    paused += checking
            if stop.is_set() and saved != self.update:
                self._check_finite(losses, norms)
                self.save()
        if self.update < config.updates or stop.is_set():
            raise Interrupted(
                f"stopped after update {self.update}, its checkpoint is saved; go on with --resume {self.folder}"
            )
        return self._finish()

    def _check_finite(self, losses: Tensor, norms: Tensor) -> None:
        """Stops before weights that are not finite could replace a good checkpoint."""
        if not bool(torch.isfinite(losses + norms)):
            raise Diverged(
                f"the loss or its gradient is not finite at update {self.update}; go on from the last checkpoint with "
                f"--resume {self.folder} and a lower --learning-rate"
            )

    def prepare_update(self) -> None:
        """Sets what the next update reads and differs from update to update."""
        set_learning_rate(self.optimiser, self.learning_rate)
        # A short memory at first, so that the average does not start from the untrained weights.
        self.blend.fill_(1 - min(self.config.average, (2 + self.update) / (11 + self.update)))

    def _do_update(self) -> tuple[Tensor, Tensor]:
        config = self.config
        self.optimiser.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for _ in range(config.accumulate):
            with autocast(self.device, self.precision):
                loss, after = self._loss(*self.sampler.sample(), state=self.carried)
            (loss / config.accumulate).backward()  # type: ignore[no-untyped-call]
            total += loss.detach() / config.accumulate
            if self.carried is not None:
                for kept, now in zip(state_tensors(self.carried), state_tensors(after), strict=True):
                    kept.copy_(now.detach())
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self.optimiser.step()
        if self.acting is not self.model:
            with torch.no_grad():
                for average, now in zip(self.acting.parameters(), self.model.parameters(), strict=True):
                    average.lerp_(now, self.blend)
        return total, norm

    @property
    def learning_rate(self) -> float:
        """Of the next update."""
        return self._learning_rate(self.update + 1)

    def _learning_rate(self, update: int) -> float:
        return self.config.learning_rate * min(1.0, update / max(1, self.config.warmup))

    def _steps_per_update(self) -> float:
        return self.sampler.steps_per_segment * self.config.batch_size * self.config.accumulate

    def _evaluate(self) -> dict[str, float]:
        self.acting.eval()
        point: dict[str, float] = {}
        if self.validation is not None:
            with torch.inference_mode():
                # Compiling again for inference would cost more than it saves, so the plain loss is taken.
                batches = self.validation.sweep(20_000)
                parts = [(self.acting.loss(*batch).item(), int(batch.counted.sum())) for batch in batches]
            point["validation_loss"] = sum(loss * steps for loss, steps in parts) / sum(steps for _, steps in parts)
        if self.evaluate is not None:
            evaluation = self.evaluate(self.acting)
            point["evaluation_return"] = evaluation.mean_return
            if evaluation.score is not None:
                point["evaluation_score"] = evaluation.score
            if evaluation.mean_return > self.best_return:
                self.best_return, self.best_update = evaluation.mean_return, self.update
        self.model.train()
        return point

    def save(self) -> Path:
        """Writes a checkpoint of the run as it stands, and drops those that are neither the newest nor the best.

        Raises:
            CheckpointError: it cannot be written; earlier ones are still there.
        """
        folder = self._checkpoint(self.update)
        with checkpoint.whole_folder(folder) as partial:
            checkpoint.write_agent(partial, self.acting, self._card_now())
            tensors = {"rng": torch.get_rng_state(), "sampler": self.sampler.generator.get_state()}
            if self.device.type == "cuda":
                tensors["rng_cuda"] = torch.cuda.get_rng_state(self.device)
            if self.carried is not None:
                tensors["cursor"] = self.sampler.cursor.cpu()
                tensors |= {f"carried.{i}": part.cpu() for i, part in enumerate(state_tensors(self.carried))}
            tensors |= {f"weights.{name}": weight.cpu() for name, weight in self.model.state_dict().items()}
            for index, parts in self.optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser.{index}.{name}": part.cpu() for name, part in parts.items()}
            content = save(tensors)
            checkpoint.write_file(partial / checkpoint.TRAINING_TENSORS, content)
            state = {
                "update": self.update,
                "seconds": self.seconds,
                "best_update": self.best_update,
                "best_return": self.best_return if self.best_update is not None else None,
                "data": self.data,
                "sha256": checkpoint.digest(content),
            }
            checkpoint.write_file(partial / checkpoint.TRAINING_STATE, (json.dumps(state, indent=2) + "\n").encode())
        for other in checkpoints(self.folder):
            if int(other.name) not in (self.update, self.best_update):
                shutil.rmtree(other)
        return folder

    def restore(self) -> None:
        """Goes back to the newest checkpoint of the run's folder.

        Raises:
            CheckpointError: there is none, it is damaged, or it was made with another model or other data.
        """
        checkpoint.clean_up(self.folder / "checkpoints")
        found = checkpoints(self.folder)
        if not found:
            raise CheckpointError(f"{self.folder} has no checkpoint to resume from; start the run without --resume")
        newest = found[-1]
        state = checkpoint.read_json(newest / checkpoint.TRAINING_STATE)
        tensors = checkpoint.read_tensors(newest / checkpoint.TRAINING_TENSORS, state.get("sha256"))
        model, _ = checkpoint.load_agent(newest)
        if model.config != self.model.config:
            raise CheckpointError(f"{newest} holds {model.config}; asked to resume {self.model.config}")
        if state.get("data") != self.data:
            raise CheckpointError(f"{newest} was trained on {state.get('data')}; asked to go on with {self.data}")
        try:
            self.acting.load_state_dict(model.state_dict())
            weights: dict[str, Tensor] = {}
            optimiser = self.optimiser.state_dict()
            for name, tensor in tensors.items():
                kind, _, rest = name.partition(".")
                if kind == "weights":
                    weights[rest] = tensor
                elif kind == "optimiser":
                    index, _, part = rest.partition(".")
                    optimiser["state"].setdefault(int(index), {})[part] = tensor
            self.model.load_state_dict(weights)
            self.optimiser.load_state_dict(optimiser)
            torch.set_rng_state(tensors["rng"])
            self.sampler.generator.set_state(tensors["sampler"])
            if self.carried is not None:
                self.sampler.cursor.copy_(tensors["cursor"])
                for i, kept in enumerate(state_tensors(self.carried)):
                    kept.copy_(tensors[f"carried.{i}"])
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(tensors["rng_cuda"], self.device)
            self.update, self.seconds = state["update"], state["seconds"]
            self.best_update = state["best_update"]
            self.best_return = -np.inf if self.best_update is None else state["best_return"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{newest} does not hold a run that can be resumed: {error!r}") from error
        if self.update > self.config.updates:
            raise CheckpointError(
                f"{newest} is beyond the {self.config.updates} updates asked for; pass more --updates"
            )

    def _finish(self) -> Trained:
        last = self.folder / "last"
        checkpoint.save_agent(last, self.acting, self._card_now())
        best = None
        if self.best_update is not None:
            best = self.folder / "best"
            checkpoint.save_agent(best, *checkpoint.load_agent(self._checkpoint(self.best_update)))
        return Trained(last, best, self.best_update, self.seconds)

    def _card_now(self) -> AgentCard:
        return replace(self.card, updates=self.update)

    def _checkpoint(self, update: int) -> Path:
        return self.folder / "checkpoints" / f"{update:09d}"


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    return sorted(path for path in (folder / "checkpoints").glob("[0-9]*") if path.is_dir())


def make_optimiser(parameters: Iterable[Tensor], config: TrainingConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW in one operation for all parameters; on a GPU its learning rate is a tensor, so that it can be recorded."""
    on_gpu = device.type == "cuda"
    rate = torch.tensor(config.learning_rate, device=device) if on_gpu else config.learning_rate
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=config.weight_decay, fused=True, capturable=on_gpu)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Matrix products in the precision. Weights are cast where they are used, once, so that a recording does it too."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate in place where it is a tensor."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _means(
    config: TrainingConfig, device: torch.device, shape: ModelConfig
) -> tuple[Literal["float32", "bf16"], bool, bool]:
    """What "auto" stands for on this device: the precision, whether to compile, whether to record graphs."""
    on_gpu = device.type == "cuda"
    precision = config.precision
    if precision == "auto":
        fast = torch.cuda.get_device_capability(device) >= (8, 0) if on_gpu else _multiplies_bf16()
        precision = "bf16" if fast else "float32"
    compiled = on_gpu and fused_scan.available() if config.compile == "auto" else config.compile == "yes"
    captured = on_gpu and shape.recordable if config.graphs == "auto" else config.graphs == "yes"
    if captured and not shape.recordable:
        raise InvalidInput(f"updates of mixer {shape.mixer!r} cannot be recorded as CUDA graphs; pass --graphs auto")
    if captured and not on_gpu:
        raise InvalidInput("CUDA graphs were asked for and the device is a CPU; pass --graphs auto")
    return precision, compiled, captured


def _multiplies_bf16() -> bool:
    """Whether this CPU has instructions for products of bf16; others only emulate them."""
    capability = torch.backends.cpu.get_cpu_capability()
    amx, avx = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("amx_tile", "avx512_bf16"))
    return capability.startswith("AVX512") and any(known is not None and bool(known()) for known in (amx, avx))


@contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, so that an update is never cut in two; a second one stops at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def ask(number: int, frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
