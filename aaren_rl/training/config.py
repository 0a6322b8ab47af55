"""The schedule of a training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from aaren_rl.data.context import Context
from aaren_rl.data.sampler import Weighting
from aaren_rl.errors import InvalidInput
from aaren_rl.training.objectives import get_objective

Precision = Literal["auto", "float32", "bf16"]
Switch = Literal["auto", "yes", "no"]
Decay = Literal["none", "cosine", "linear"]


@dataclass(frozen=True)
class TrainingConfig:
    """Schedule of a training.

    Defaults follow the Decision Transformer (Chen et al. 2021, appendix A, and released code), except that weights are
    averaged.

    Raises:
        InvalidInput: a value is out of range, or the context or the objective is unknown.
    """

    updates: int = 100_000
    """Number of optimiser updates."""
    batch_size: int = 64
    """Segments in a batch."""
    context: int | str = 20
    """How training segments are cut from episodes. 20: windows of 20 steps. "10+20": such windows after a burn-in of 10
    steps. "episode": whole episodes. "packed": as many episodes in a row as fit the longest. "carry:20": the next 20
    steps, from the state after the steps before."""
    weighting: Weighting = "length"
    """Draws episodes in proportion to their length, or uniformly; "packed" and "carry" need "length"."""
    objective: str = "imitation"
    """What is minimised: "imitation", "critic" or "advantage" (docs/scores.md), with options as "critic(weight=0.5)",
    or an objective of your own."""
    learning_rate: float = 1e-4
    """Peak learning rate of AdamW."""
    warmup: int = 10_000
    """Updates over which the learning rate rises linearly to its peak."""
    decay: Decay = "none"
    """Course of the learning rate from its peak to 0 at the last update; "none" stays at the peak. A resumed run with
    more updates takes the rate of the longer course at once, which is higher."""
    weight_decay: float = 1e-4
    """AdamW's decoupled weight decay."""
    clip: float = 0.25
    """Largest norm of a network's gradient."""
    average: float = 0.995
    """Decay of the exponential moving average of the weights that acts (after the plain average of Polyak and Juditsky
    1992); 0 acts with the last weights. Returns swing from one update to the next, and the average swings less."""
    accumulate: int = 1
    """Batches whose gradients are averaged into one update."""
    held_out: float = 0.05
    """Share of the episodes held out for the validation loss."""
    precision: Precision = "auto"
    """Type of matrix products; parameters and the scan's sums stay in float32. "auto" takes bf16 on GPUs that have it,
    and float32 on CPUs, so that figures hardly depend on the machine."""
    compile: Switch = "auto"
    """Compiles the loss with torch.compile; "auto" does so on a GPU with Triton."""
    cuda_graph: Switch = "auto"
    """Captures an update as a CUDA graph and replays it; "auto" does so on a GPU, where the mixer allows it."""
    seed: int = 0
    """Seed of the weights, the batches, dropout and the held-out episodes."""
    log_every: int = 100
    """Updates between two logged points."""
    evaluate_every: int = 10_000
    """Updates between two validations and, with an environment, roll-outs."""
    checkpoint_every: int = 5_000
    """Updates between two checkpoints; one is also written before every evaluation, and the best one kept."""

    def __post_init__(self) -> None:
        choices = {"precision": Precision, "compile": Switch, "cuda_graph": Switch, "decay": Decay}
        for name, allowed in choices.items():
            if getattr(self, name) not in get_args(allowed):
                raise InvalidInput(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(get_args(allowed))}")
        at_least_one = ("updates", "batch_size", "accumulate", "log_every", "evaluate_every", "checkpoint_every")
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise InvalidInput(f"{name} is {getattr(self, name)}; expected a positive number")
        get_objective(self.objective)
        if Context.parse(self.context).mode in ("packed", "carry") and self.weighting == "uniform":
            raise InvalidInput(f"context {self.context} takes all steps alike; leave weighting at length")
        if not 0 <= self.average < 1:
            raise InvalidInput(f"average is {self.average}; expected a decay from 0 up to but not 1")
        if self.warmup < 0 or self.weight_decay < 0:
            raise InvalidInput("warmup and weight_decay must not be negative")
