"""Makes datasets from behaviours and experts: `python scripts/collect.py hopper-medium --steps 1000000`."""

from __future__ import annotations

import time
from dataclasses import dataclass

from aaren_rl.actor import Target
from aaren_rl.envs import catalogue
from aaren_rl.envs.collect import Recipe, collect, recipe_for, recipe_of
from aaren_rl.envs.environment_choice import EnvironmentChoice, parse_argument
from aaren_rl.envs.environments import import_packages
from aaren_rl.errors import InvalidInput
from aaren_rl.experiments.command_line import Group, parse
from aaren_rl.experiments.console import run, say
from aaren_rl.experiments.recording import Recording, record


@dataclass(frozen=True)
class Arguments:
    """Roll out bundled behaviours and scripted experts, and save the steps as local Minari datasets."""

    names: list[str]
    """Names of the catalogue, as hopper-medium; none with --expert or --agent."""
    steps: int | None = None
    """Least number of steps in each dataset, whose last episode is whole; default: 200000 of behaviours."""
    episodes: int | None = None
    """Number of episodes in each dataset, in place of steps; default: 400 of experts."""
    seed: int = 0
    """Seed of the environments and of the behaviours' noise."""
    overwrite: bool = False
    """Replace a dataset that exists."""
    expert: str | None = None
    """Scripted expert that acts in --env-id, as babyai."""
    expert_arguments: tuple[str, ...] = ()
    """Arguments of the expert as NAME=VALUE, with values in JSON, as noise=0.1."""
    dataset_id: str | None = None
    """Minari id of the expert's dataset, by default aaren/ENVIRONMENT/EXPERT-v0; or of the agent's, as mine/hopper-v0.
    """
    agent: str | None = None
    """Agent whose episodes to record in its environment, as runs/<run>/last or user/repo; default: 100 episodes."""
    target: Target | None = None
    """Target return of the agent; default: its own."""
    temperature: float = 0.0
    """Temperature of the agent's actions; 0 takes the most likely ones."""
    env_id: str | None = None
    """Gymnasium id of the expert's environment, or "package:Id"."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments of the environment as NAME=VALUE, with values in JSON."""
    horizon: int | None = None
    """Steps after which an episode is truncated; default: the limit of the id."""
    imports: tuple[str, ...] = ()
    """Packages to import first, which register environments."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.episodes is not None:
            raise InvalidInput("--steps and --episodes are two ways to say how much; leave one out")
        if self.agent is not None:
            self._check_agent()
        elif self.target is not None or self.temperature:
            raise InvalidInput("--target and --temperature go with --agent; leave them out")
        elif self.expert is None:
            for option in ("expert_arguments", "dataset_id", "env_id", "env_kwargs", "horizon"):
                if getattr(self, option):
                    raise InvalidInput(
                        f"--{option.replace('_', '-')} goes with --expert; name an expert, or leave it out"
                    )
            if not self.names:
                raise InvalidInput(
                    "nothing to collect; give names of the catalogue, --expert NAME --env-id ID, or --agent AGENT "
                    "--dataset-id ID"
                )
        elif self.names or self.env_id is None:
            raise InvalidInput(f"--expert {self.expert} goes with --env-id ID, and with no names of the catalogue")

    def _check_agent(self) -> None:
        for option in ("names", "expert", "steps", "env_id", "env_kwargs", "horizon"):
            if getattr(self, option):
                name = option if option == "names" else f"--{option.replace('_', '-')}"
                raise InvalidInput(f"--agent plays whole --episodes in its own environment; leave out {name}")
        if self.dataset_id is None:
            raise InvalidInput("an agent's dataset needs a name; pass --dataset-id, as mine/hopper-v0")


GROUPS = (
    Group("dataset", "Size and noise of each dataset.", ("steps", "episodes", "seed", "overwrite")),
    Group("expert", "Expert in an environment of any package.", ("expert", "expert_arguments", "dataset_id")),
    Group("agent", "Agent whose episodes to record.", ("agent", "target", "temperature")),
    Group("environment", "Environment of the expert.", ("env_id", "env_kwargs", "horizon", "imports")),
)


def main() -> None:
    """Entry point of `aaren-collect`."""
    run(lambda: collect_named(parse(Arguments, "collect", GROUPS, ["names"])))


def collect_named(arguments: Arguments) -> None:
    """Collects, and prints where each dataset lies."""
    if arguments.agent is not None and arguments.dataset_id is not None:
        import_packages(arguments.imports)
        count = 100 if arguments.episodes is None else arguments.episodes
        asked = count, arguments.target, arguments.temperature, arguments.seed
        folder = record(Recording(arguments.agent, arguments.dataset_id, *asked), arguments.overwrite)
        say(f"{arguments.dataset_id}: {folder}")
        return
    for recipe in _recipes(arguments):
        began = time.perf_counter()
        folder = collect(
            recipe, arguments.steps, arguments.seed, arguments.overwrite, say=say, episodes=arguments.episodes
        )
        say(f"{recipe.id}: {folder}, {time.perf_counter() - began:.0f} s")


def _recipes(arguments: Arguments) -> list[Recipe]:
    choice = EnvironmentChoice.of_options(arguments.env_id, arguments.env_kwargs, arguments.horizon, arguments.imports)
    if arguments.expert is None:
        return [recipe_of(entry) for entry in map(catalogue.find, arguments.names)]
    environment = choice.over(None)
    if environment is None:
        raise InvalidInput("an expert needs an environment; name one with --env-id")
    given = dict(parse_argument(text, "--expert-arguments") for text in arguments.expert_arguments)
    return [recipe_for(arguments.expert, environment, given, arguments.dataset_id)]


if __name__ == "__main__":
    main()
