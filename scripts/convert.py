"""Writes data of other formats as Minari datasets: `python scripts/convert.py cube-single-play-v0.npz mine/cube-v0`."""

from __future__ import annotations

import time
from dataclasses import dataclass

from aaren_rl.envs.environment_choice import EnvironmentChoice
from aaren_rl.experiments.command_line import Group, parse
from aaren_rl.experiments.console import run, say
from aaren_rl.experiments.converting import convert


@dataclass(frozen=True)
class Arguments:
    """Convert data of D4RL, OGBench, robomimic, LeRobot, RLDS, d3rlpy or npz files to a local Minari dataset."""

    source: str
    """File, folder, or name of the catalogue."""
    new_id: str
    """Id of the new dataset, as mine/cube-v0."""
    part: str | None = None
    """Part to convert: a mask of robomimic's file, or a split of RLDS; by default all, and of RLDS train."""
    without_videos: bool = False
    """Leave out the videos of LeRobot's data."""
    last_steps: bool = False
    """Keep the actions and rewards of the last steps of RLDS, which has none there by its definition."""
    overwrite: bool = False
    """Replace a dataset of this id."""
    env_id: str | None = None
    """Environment to record; by default the one that the data name, and none with none."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments of the environment, as NAME=VALUE with a value in JSON."""
    horizon: int | None = None
    """Steps after which an episode is truncated; needed for D4RL's data without timeouts."""
    imports: tuple[str, ...] = ()
    """Packages that register environments, to be imported first."""


GROUPS = (
    Group("data", "What is converted.", ("part", "without_videos", "last_steps", "overwrite")),
    Group("environment", "What is recorded of the environment.", ("env_id", "env_kwargs", "horizon", "imports")),
)


def main() -> None:
    """Entry point of `aaren-convert`."""
    run(lambda: convert_named(parse(Arguments, "convert", GROUPS, ["source", "new_id"])))


def convert_named(arguments: Arguments) -> None:
    """Converts, and prints where the dataset lies."""
    began = time.perf_counter()
    choice = EnvironmentChoice.of_options(arguments.env_id, arguments.env_kwargs, arguments.horizon, arguments.imports)
    folder = convert(
        arguments.source,
        arguments.new_id,
        choice,
        arguments.part,
        not arguments.without_videos,
        arguments.overwrite,
        arguments.last_steps,
    )
    say(f"{arguments.new_id}: {folder}, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
