"""Evaluates an agent folder, or a baseline by name: `python scripts/evaluate.py runs/hopper/last --episodes 100`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from aaren_rl.envs.evaluation import write_result
from aaren_rl.errors import InvalidInput
from aaren_rl.experiments import evaluation, target_sweep
from aaren_rl.experiments.command_line import Group, parse
from aaren_rl.experiments.console import describe, run, say


@dataclass(frozen=True)
class Arguments:
    """Evaluate an agent, or a baseline, by whole episodes."""

    agent: str
    """Folder of an agent or of an exported agent, as runs/<run>/last; name on the Hugging Face Hub, as user/repo or
    user/repo@revision; or a baseline, "random" or "behaviour"."""
    options: evaluation.Options = field(default_factory=evaluation.Options)
    targets: Literal["sweep"] | tuple[float, ...] | None = None
    """Evaluate at several target returns and draw the outcome; "sweep" takes quantiles of the data's returns."""
    video: bool = False
    """Record one episode as video.mp4 in the run's folder."""

    def __post_init__(self) -> None:
        if self.targets is not None and (self.options.target is not None or self.video):
            raise InvalidInput("--targets stands alone, without --target and --video")


GROUPS = (
    Group("environment", "Environment to act in.", ("env", "env_id", "env_kwargs", "horizon", "imports")),
    Group(
        "acting",
        "Way of acting and target return.",
        ("acting", "target", "targets", "renew", "temperature", "device", "run_code"),
    ),
    Group("protocol", "Episodes to play and to record.", ("episodes", "seed", "instances", "processes", "video")),
)


def main() -> None:
    """Entry point of `aaren-evaluate`."""
    run(lambda: evaluate(parse(Arguments, "evaluate", GROUPS, ["agent"])))


def evaluate(arguments: Arguments) -> None:
    """Evaluates, writes the result into the run's folder, and prints it."""
    candidate = evaluation.prepare(arguments.agent, arguments.options)
    if arguments.targets is not None:
        sweep = evaluation.sweep(candidate, arguments.targets)
        say(target_sweep.table(sweep.results))
        say(f"figures:    {sweep.figures}\nplot:       {sweep.plot}")
        return
    if arguments.video:
        say(f"video:      {evaluation.record(candidate)}")
    figures = evaluation.measure(candidate)
    say(describe(figures["checkpoint"], figures))
    say(f"result:     {write_result(candidate.folder, figures)}")


if __name__ == "__main__":
    main()
