"""What is interrupted: commands and functions that write, how to go on with each, and what must be left of them."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import tomli_w

from aaren_rl import checkpoint
from aaren_rl.agents import DecisionAgent
from aaren_rl.envs import catalogue
from aaren_rl.envs.readers import minari
from aaren_rl.experiments.console import run
from aaren_rl.experiments.fit import load
from aaren_rl.experiments.stress.operation import Main, Operation, listed, unless

DATA = "hopper-medium"
"""Dataset of all operations; its behaviours are bundled."""

STEPS = 600
"""Steps of a dataset that is collected."""

MODEL = {"width": 16, "blocks": 1}
SCHEDULE = {"updates": 60, "batch_size": 4, "log_every": 5, "evaluate_every": 20, "checkpoint_every": 2}
"""Many short checkpoints, so that many moments fall into a saving."""


class Collecting(Operation):
    """Rolls behaviours out, over a dataset of the same name."""

    name, share = "collecting", 15

    def prepare(self, folder: Path) -> None:
        """See `Operation.prepare`."""
        shutil.copytree(self.world.datasets, folder / "minari")

    def begin(self, folder: Path) -> Main:
        """See `Operation.begin`."""
        call = self.world.command("collect", DATA, "--steps", STEPS, "--overwrite")

        def collect() -> None:
            os.environ["MINARI_DATASETS_PATH"] = str(folder / "minari")
            call()

        return collect

    def damage(self, folder: Path) -> str | None:
        """See `Operation.damage`."""
        return super().damage(folder) or unless(lambda: self.result(folder), "the dataset")

    def result(self, folder: Path) -> str:
        """See `Operation.result`."""
        found = folder / "minari" / catalogue.find(DATA).bundled_id
        data = minari.read_folder(found).trajectories
        return checkpoint.digest(*(np.ascontiguousarray(part).data for part in (data.observations, data.actions)))


class Training(Operation):
    """Trains an agent, and goes on from its checkpoints."""

    name, share = "training", 30
    words: ClassVar[tuple[object, ...]] = ()

    def begin(self, folder: Path) -> Main:
        """See `Operation.begin`."""
        settings = {**MODEL, **SCHEDULE, "episodes": 1, "check_episodes": 1, "device": "cpu", "source": "bundled"}
        words = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]
        return self._call("--env", DATA, *words, *self.words, "--run", "run")

    def again(self, folder: Path) -> Main:
        """See `Operation.again`."""
        saved = [path for path in listed(folder / "run", "**/checkpoints/*") if ".partial-" not in path.name]
        return self._call("--resume", "run") if saved else self.begin(folder)

    def _call(self, *words: object) -> Main:
        call = self.world.command("train", *words)

        def train() -> None:
            os.environ["MINARI_DATASETS_PATH"] = str(self.world.datasets)
            call()

        return train

    def damage(self, folder: Path) -> str | None:
        """See `Operation.damage`."""
        for card in listed(folder, "run/**/agent.json"):
            # A partial folder may hold anything.
            if not any(".partial-" in part for part in card.parts):
                found = unless(partial(checkpoint.load_agent, card.parent), f"the agent {card.parent.name}")
                if found is not None:
                    return found
        return super().damage(folder)

    def result(self, folder: Path) -> str:
        """See `Operation.result`."""
        files = sorted(folder.glob(f"run/**/last/{checkpoint.WEIGHTS}"))
        return " ".join(checkpoint.digest(file.read_bytes()) for file in files)

    def together(self, folder: Path, statuses: list[int]) -> str | None:
        """See `Operation.together`."""
        if statuses.count(0) > 1:
            return "both trained in one run folder and succeeded"
        return super().together(folder, statuses)


class TrainingSeeds(Training):
    """Trains two seeds, one after another."""

    name, share = "training-seeds", 10
    words = ("--seeds", 2)


class Saving(Operation):
    """Saves two agents in turn under one name."""

    name, share = "saving", 20

    def prepare(self, folder: Path) -> None:
        """See `Operation.prepare`."""
        shutil.copytree(self.world.run / "last", folder / "agent")

    def begin(self, folder: Path) -> Main:
        """See `Operation.begin`."""

        def save() -> None:
            one, other = (DecisionAgent.load(self.world.run / "last", renew=renew) for renew in (0, 1))
            with_other_weights = other.model.head
            for parameter in with_other_weights.parameters():
                parameter.data += 1
            for _ in range(20):
                other.save(folder / "agent")
                one.save(folder / "agent")

        # Errors and Ctrl-C end it as they end every command.
        return lambda: run(save)

    def damage(self, folder: Path) -> str | None:
        """See `Operation.damage`."""
        return super().damage(folder) or unless(lambda: load(folder / "agent"), "the agent")

    def result(self, folder: Path) -> str:
        """See `Operation.result`."""
        return checkpoint.digest((folder / "agent" / checkpoint.WEIGHTS).read_bytes())


class Evaluating(Operation):
    """Evaluates an agent into the folder of its run, which has a result."""

    name, share = "evaluating", 12

    def prepare(self, folder: Path) -> None:
        """See `Operation.prepare`."""
        shutil.copytree(self.world.run, folder / "run", ignore=shutil.ignore_patterns("checkpoints"))

    def begin(self, folder: Path) -> Main:
        """See `Operation.begin`."""
        return self.world.command("evaluate", "run/last", "--episodes", 2)

    def damage(self, folder: Path) -> str | None:
        """See `Operation.damage`."""
        first = (self.world.run / "result.json").read_bytes()
        if first not in [file.read_bytes() for file in folder.glob("run/result*.json")]:
            return "the result from before is gone"
        return unless(lambda: [checkpoint.read_json(file) for file in folder.glob("run/result*.json")], "a result")

    def result(self, folder: Path) -> str:
        """See `Operation.result`."""
        return str(checkpoint.read_json(folder / "run" / "result.json")["returns"])

    def together(self, folder: Path, statuses: list[int]) -> str | None:
        """See `Operation.together`."""
        results = len(list(folder.glob("run/result*.json")))
        if results != 1 + statuses.count(0):
            return f"{statuses.count(0)} evaluations succeeded beside a result from before, {results} results lie there"
        return super().together(folder, statuses)


class Exporting(Operation):
    """Exports an agent over an earlier export."""

    name, share = "exporting", 7

    def prepare(self, folder: Path) -> None:
        """See `Operation.prepare`."""
        for name in ("last", "last-onnx"):
            shutil.copytree(self.world.run / name, folder / name)

    def begin(self, folder: Path) -> Main:
        """See `Operation.begin`."""
        return self.world.command("export", "last")

    def damage(self, folder: Path) -> str | None:
        """See `Operation.damage`."""
        return super().damage(folder) or unless(lambda: load(folder / "last-onnx"), "the export")

    def result(self, folder: Path) -> str:
        """See `Operation.result`."""
        card = checkpoint.read_json(folder / "last-onnx" / checkpoint.EXPORTED_CARD)
        return str(card["state_start"])


class Comparing(Operation):
    """Trains the two runs of a comparison, each in its process, and writes the table."""

    name, share = "comparing", 6

    def prepare(self, folder: Path) -> None:
        """See `Operation.prepare`."""
        settings = {"device": "cpu", "source": "bundled", "episodes": 1, "check_episodes": 1}
        table = {"model": MODEL, "training": SCHEDULE, **settings}
        file = {"datasets": [DATA], "seeds": [0, 1], "settings": table, "agents": {"small": {}}}
        (folder / "comparison.toml").write_text(tomli_w.dumps(file))

    def begin(self, folder: Path) -> Main:
        """See `Operation.begin`."""
        call = self.world.command("compare", "comparison.toml", "--out", "run", "--jobs", 2)

        def compare() -> None:
            os.environ["MINARI_DATASETS_PATH"] = str(self.world.datasets)
            call()

        return compare

    def damage(self, folder: Path) -> str | None:
        """See `Operation.damage`."""
        return super().damage(folder) or Training(self.world).damage(folder)

    def result(self, folder: Path) -> str:
        """See `Operation.result`."""
        checkpoint.read_json(folder / "run" / "table.json")
        return Training(self.world).result(folder)


OPERATIONS: tuple[type[Operation], ...] = (
    Collecting,
    Training,
    TrainingSeeds,
    Saving,
    Evaluating,
    Exporting,
    Comparing,
)
"""Everything that writes what one would keep; their shares sum up to 100."""
