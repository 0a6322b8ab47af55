"""A table of families of environments: whether their data load, train, evaluate and are scored here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.envs import catalogue
from aaren_rl.envs.collect import Recipe, collect, recipe_for, recipe_of
from aaren_rl.envs.download import minari_root
from aaren_rl.errors import AarenError
from aaren_rl.experiments.config import RunConfig
from aaren_rl.experiments.train import train
from aaren_rl.model import ModelConfig
from aaren_rl.training.config import TrainingConfig

STAGES = ("loads", "trains", "evaluates", "scored")
"""What a family is tried for, one after another."""


@dataclass(frozen=True)
class Family:
    """A set that stands for a family: made by a scripted expert or at random, in a real environment.

    Attributes:
        name: of the family.
        data: name of the catalogue; None for what `expert` plays in `environment`.
        environment: id of the environment.
        arguments: of the environment.
        expert: name of the expert.
        stands_for: public sets of the family.
    """

    name: str
    stands_for: str
    data: str | None = None
    environment: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    expert: str = "random"

    def recipe(self) -> Recipe:
        """How the set is made.

        Raises:
            InvalidInput: it cannot be made here.
        """
        if self.data is not None:
            return recipe_of(catalogue.find(self.data))
        spec = EnvironmentSpec(self.environment, dict(self.arguments))
        return recipe_for(self.expert, spec, {})

    def __str__(self) -> str:
        return self.data or f"{self.environment}, {self.expert}"


FAMILIES = (
    Family("Gymnasium MuJoCo", "Minari mujoco/*, D4RL gym", "hopper-medium"),
    Family("Gymnasium, discrete actions", "CartPole, LunarLander, Acrobot", "cartpole-mixed"),
    Family("Gymnasium, discrete observations", "Taxi, FrozenLake, CliffWalking", "taxi-expert"),
    Family("Gymnasium, tuple of discrete observations", "Blackjack", "blackjack-expert"),
    Family("Gymnasium, images", "CarRacing", "carracing-expert"),
    Family("point mazes", "Minari D4RL/pointmaze/*, D4RL maze2d", "pointmaze-umaze"),
    Family("ant mazes", "Minari D4RL/antmaze/*, D4RL antmaze", "antmaze-umaze"),
    Family("hands", "Minari D4RL/pen, door, hammer, relocate", None, "AdroitHandDoor-v1"),
    Family("kitchen", "Minari D4RL/kitchen/*", None, "FrankaKitchen-v1", {"tasks_to_complete": ["kettle"]}),
    Family("fetch", "Fetch tasks with goals", None, "FetchReach-v4"),
    Family("MiniGrid, symbols and text", "Minari minigrid/BabyAI-*", "babyai-go-to-red-ball"),
    Family("MiniGrid, memory", "MiniGrid-MemoryS*", "minigrid-memory-s7-expert"),
    Family("Atari", "Minari atari/*", None, "ALE/SpaceInvaders-v5", {"repeat_action_probability": 0.0}),
    Family("OGBench, mazes", "pointmaze, antmaze, humanoidmaze", None, "pointmaze-medium-v0", {}, "pointmaze"),
    Family("OGBench, manipulation", "cube, scene, puzzle", None, "cube-single-v0", {}, "ogbench-arm"),
    Family("popgym", "42 tasks", "popgym-repeat-previous-easy"),
    Family("Meta-World", "50 tasks", None, "Meta-World/MT1", {"env_name": "reach-v3"}, "metaworld"),
    Family("memory tasks of this project", "T-maze, memory chain", "memory-chain-expert"),
)
"""One set for each family of the public collections."""


@dataclass(frozen=True)
class Trial:
    """What a family showed.

    Attributes:
        family: that was tried.
        passed: the stages that it passed.
        reason: why it did not pass the next one; empty if it passed all.
        figures: of its evaluation.
    """

    family: Family
    passed: tuple[str, ...]
    reason: str
    figures: Mapping[str, Any]


def try_family(
    family: Family, folder: Path, episodes: int, updates: int, seed: int, say: Callable[[str], object]
) -> Trial:
    """Makes a family's set, trains an agent on it and evaluates it.

    Args:
        family: to try.
        folder: of the datasets and the run; one try at a time.
        episodes: of the set.
        updates: of the training.
        seed: of everything.
        say: called with lines on what is done.
    """
    passed: list[str] = []
    try:
        with minari_root(folder / "datasets"):
            data = collect(family.recipe(), seed=seed, episodes=episodes, progress=False, say=say)
            config = RunConfig(
                env=str(data),
                run=folder / "runs" / data.parent.name / data.name,
                device="cpu",
                episodes=EVALUATED,
                check_episodes=0,
                instances=EVALUATED,
                model=ModelConfig(width=32, blocks=2, dropout=0.0),
                training=TrainingConfig(
                    updates=updates, batch_size=16, learning_rate=1e-3, warmup=10, seed=seed, evaluate_every=updates
                ),
            )
            figures = _run(config, say, passed)
    except AarenError as error:
        return Trial(family, tuple(passed), " ".join(str(error).split()), {})
    if figures["normalized_score"] is None and figures["success_rate"] is None:
        return Trial(family, tuple(passed), "no reference returns, and nothing reports success", figures)
    return Trial(family, (*passed, "scored"), "", figures)


EVALUATED = 4
"""Episodes of an evaluation."""


def _run(config: RunConfig, say: Callable[[str], object], passed: list[str]) -> dict[str, Any]:
    """The result of a run; what it passed is noted as it goes."""

    def note(line: str) -> None:
        say(line)
        for start, stage in (("model:", "loads"), ("trained ", "trains")):
            if line.startswith(start) and stage not in passed:
                passed.append(stage)

    outcome = train(config, None, (), note, False)
    figures: dict[str, Any] = json.loads((Path(outcome["agents"][0]).parent / "result.json").read_text())
    passed.append("evaluates")
    return figures


def as_markdown(trials: list[Trial]) -> str:
    """The trials as a table."""
    lines = [
        "| family | stands for | set | loads | trains | evaluates | scored | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for trial in trials:
        cells = ["yes" if stage in trial.passed else "no" for stage in STAGES]
        family = trial.family
        lines.append(f"| {' | '.join([family.name, family.stands_for, str(family), *cells, _remark(trial)])} |")
    return "\n".join(lines)


def _remark(trial: Trial) -> str:
    if not trial.figures:
        return trial.reason.replace("|", "/")
    figures, words = trial.figures, []
    if figures["normalized_score"] is not None:
        words.append(f"score ({figures['reference']})")
    if figures["success_rate"] is not None:
        words.append("success rate")
    return " and ".join(words) or trial.reason
