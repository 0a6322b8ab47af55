"""Every file format that this package reads: valid samples, mutations of them, and what a reader must give."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aaren_rl import checkpoint
from aaren_rl.agents.agent import Agent
from aaren_rl.envs import sources
from aaren_rl.envs.behaviours import ActorBehaviour
from aaren_rl.envs.environment_choice import EnvironmentChoice
from aaren_rl.envs.sources import Dataset, Reading
from aaren_rl.experiments import config as run_config
from aaren_rl.experiments import evaluation
from aaren_rl.experiments.comparison import matrix, scores
from aaren_rl.experiments.fit import load
from aaren_rl.experiments.stress import samples
from aaren_rl.experiments.stress.mutations import Mutation, Rng, mutate_bytes, mutate_text, to_json, to_toml
from aaren_rl.experiments.stress.mutations_of_hdf5 import mutate_hdf5
from aaren_rl.experiments.stress.mutations_of_tensors import mutate_tensors
from aaren_rl.model import Scaling
from aaren_rl.training.log import METRICS, RunLog
from aaren_rl.training.run import EVALUATIONS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

STEPS = 10
"""Steps that an agent acts after it was loaded from a mutated folder."""


_GIVEN = Reading(EnvironmentChoice(samples.ENVIRONMENT))
"""Reads data with the environment that a user names."""


class WrongSuccess(Exception):
    """A reader took what it should have refused.

    Args:
        about: what it took, the same words for the same fault.
        detail: what differs from input to input.
    """

    def __init__(self, about: str, detail: str = "") -> None:
        super().__init__(about)
        self.about, self.detail = about, detail


@dataclass(frozen=True)
class Format:
    """A file format under attack.

    Attributes:
        name: of the file or of the data.
        share: of all inputs, in hundredths.
        write: writes a valid sample into a folder; there are two, of seeds 0 and 1.
        mutate: changes a sample, given a generator, its folder and that of the other one.
        read: reads a folder; raises an AarenError for a clear refusal, `WrongSuccess` for a success that it should
            not be.
    """

    name: str
    share: float
    write: Callable[[Path, int], None]
    mutate: Callable[[Rng, Path, Path], Mutation]
    read: Callable[[Path], object]


def _file(path: str, reseal: Callable[[Path], None] | None = None) -> Callable[[Rng, Path, Path], Mutation]:
    """Mutates one file of a folder; half of the time the digests are made to fit again."""

    def mutate(rng: Rng, folder: Path, other: Path) -> Mutation:
        file = folder / path
        content, beside = file.read_bytes(), (other / path).read_bytes()
        if file.suffix == ".json":
            changed, about = mutate_text(rng, content, beside, json.loads, to_json)
        elif file.suffix == ".toml":
            changed, about = mutate_text(rng, content, beside, tomllib.loads, to_toml)
        elif file.suffix == ".safetensors":
            changed, about = mutate_tensors(rng, content, beside)
        else:
            changed, about = mutate_bytes(rng, content, beside)
        file.write_bytes(changed)
        if reseal is not None and rng.random() < 0.7:
            about += ", digests made to fit"
            try:
                reseal(file.parent)
            except (ValueError, TypeError, AttributeError, RecursionError):
                about += " in vain"
        return Mutation(about, path)

    return mutate


def _reseal_agent(folder: Path, card: str = checkpoint.CARD, content: str = checkpoint.WEIGHTS) -> None:
    description = json.loads((folder / card).read_text())
    description["sha256"] = {content: checkpoint.digest((folder / content).read_bytes())}
    description["sha256"][card] = checkpoint.card_digest(description, content)
    (folder / card).write_text(json.dumps(description))


def _reseal_export(folder: Path) -> None:
    _reseal_agent(folder, checkpoint.EXPORTED_CARD, checkpoint.EXPORTED_GRAPH)


def _reseal_training(folder: Path) -> None:
    state = json.loads((folder / checkpoint.TRAINING_STATE).read_text())
    state["sha256"] = checkpoint.digest((folder / checkpoint.TRAINING_TENSORS).read_bytes())
    (folder / checkpoint.TRAINING_STATE).write_text(json.dumps(state))


def _mutate_d4rl(rng: Rng, folder: Path, other: Path) -> Mutation:
    return mutate_hdf5(rng, folder / "data.hdf5", other / "data.hdf5")


def _mutate_minari(rng: Rng, folder: Path, other: Path) -> Mutation:
    if rng.random() < 0.5:
        return mutate_hdf5(rng, folder / "data" / "main_data.hdf5", other / "data" / "main_data.hdf5")
    if rng.random() < 0.1:
        return plant_code(rng, folder)
    return _file("data/metadata.json")(rng, folder, other)


def plant_code(rng: Rng, folder: Path) -> Mutation:
    """Names code in a dataset's metadata: it makes a folder if it is run or imported."""
    file = folder / "data" / "metadata.json"
    metadata = json.loads(file.read_text())
    spec = json.loads(metadata["env_spec"])
    spec |= [
        {"entry_point": "os:mkdir", "kwargs": {"path": str(folder / CANARY)}},
        {"entry_point": f"{_write_module(folder)}:make", "kwargs": {}},
    ][int(rng.integers(2))]
    spec |= {"id": str(rng.choice(["Pendulum-v1", "Unheard-v0"])), "order_enforce": False, "disable_env_checker": True}
    metadata["env_spec"] = json.dumps(spec)
    removed = [name for name in ("observation_space", "action_space") if rng.random() < 0.7]
    for name in removed:
        metadata.pop(name, None)
    file.write_text(json.dumps(metadata))
    return Mutation("an entry point", f"metadata without {removed}")


def _mutate_card(rng: Rng, folder: Path, other: Path) -> Mutation:
    if rng.random() > 0.04:
        return _file("agent/agent.json", _reseal_agent)(rng, folder, other)
    file = folder / "agent" / checkpoint.CARD
    description = json.loads(file.read_text())
    description["environment"]["id"] = f"{_write_module(folder)}:{samples.ENVIRONMENT}"
    file.write_text(json.dumps(description))
    _reseal_agent(file.parent)
    return Mutation("a package of an environment", "agent/agent.json")


CANARY = "canary"
"""Folder that planted code makes beside the file that names it."""


_MODULE = "planted_by_stress"


def _write_module(folder: Path) -> str:
    """Writes a module that shows that it was imported, and returns its name."""
    (folder / f"{_MODULE}.py").write_text(
        f"from pathlib import Path\nPath({str(folder / CANARY)!r}).mkdir()\ndef make(**kwargs): raise ValueError\n"
    )
    return _MODULE


def _read_d4rl(folder: Path) -> None:
    check_data(sources.load(folder / "data.hdf5", reading=_GIVEN, say=_nothing))


def _read_minari(folder: Path) -> None:
    """Reads it with the environment that it names, and with one that is given."""

    def read() -> None:
        for reading in (Reading(), _GIVEN):
            check_data(sources.load(folder, reading=reading, say=_nothing))

    without_running_code(folder, read)


def without_running_code(folder: Path, read: Callable[[], object]) -> None:
    """Reads a folder.

    Raises:
        WrongSuccess: code that its contents name was run, whatever reading gave.
    """
    # Where a package of that name would be found.
    sys.path.insert(0, str(folder))
    try:
        read()
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(_MODULE, None)
        if (folder / CANARY).exists():
            raise WrongSuccess("code that a file names was run")


def check_data(dataset: Dataset) -> None:
    """Checks that nothing in a dataset is NaN or infinite.

    Raises:
        WrongSuccess: something is.
    """
    data = dataset.trajectories
    _require_finite("the training data", dataclasses.asdict(data))
    _require_finite("the scaling", dataclasses.asdict(Scaling.of(data, dataset.return_scale)))
    _require_finite("the targets", {"target_returns": dataset.target_returns, "return_scale": dataset.return_scale})


def _read_agent(folder: Path) -> None:
    def read() -> None:
        act(load(folder / "agent"))
        evaluation.prepare(str(folder / "agent"), evaluation.Options(episodes=1))

    without_running_code(folder, read)


def _read_export(folder: Path) -> None:
    act(load(folder / "exported"))


def act(agent: Agent) -> None:
    """Lets an agent act some steps on ordinary observations.

    Raises:
        WrongSuccess: an action has another shape, is not finite or out of bounds.
    """
    rng = np.random.default_rng(0)
    space = agent.action_space
    low, high = space.bounds()
    agent.reset()
    reward = None
    for _ in range(STEPS):
        action = agent.act(rng.normal(size=agent.observation_space.shape).astype(np.float32), reward)
        if action.shape != space.shape or not np.isfinite(action).all():
            raise WrongSuccess("an action that is not finite, or of another shape")
        if (action < low - 1e-4).any() or (action > high + 1e-4).any():
            raise WrongSuccess("an action out of bounds")
        reward = float(rng.normal())


def _read_run(folder: Path) -> None:
    """Restores the run and makes an update."""
    run = samples.make_run(folder / "run")
    run.restore()
    metrics = run.learner.update()
    _require_finite("the metrics of an update", {name: value.detach().numpy() for name, value in metrics.items()})
    _require_finite("the weights", {name: part.numpy() for name, part in run.learner.models[0].state_dict().items()})


def _read_config(folder: Path) -> None:
    run_config.load(folder / "run" / run_config.CONFIG)


def _read_log(folder: Path) -> None:
    with RunLog(folder / "run", 3):
        pass


def _read_comparison(folder: Path) -> None:
    whole = matrix.load(folder / "comparison.toml")
    runs = whole.runs(folder / "comparison")
    if len(runs) == 1:
        scores.collect(runs, {runs[0].agent: "command"})


def _read_behaviour(folder: Path) -> None:
    behaviour = ActorBehaviour.load(folder / "behaviour.npz")
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        action = behaviour([[rng.normal(size=3).astype(np.float32)]], rng)
        if action.shape != (1, 1) or not np.isfinite(action).all():
            raise WrongSuccess("an action that is not finite, or of another shape")


def _read_words(folder: Path) -> None:
    run_config.parse((folder / "words.txt").read_bytes().decode("utf-8", "surrogateescape").split("\n"))


def _mutate_words(rng: Rng, folder: Path, other: Path) -> Mutation:
    file = folder / "words.txt"
    words = file.read_text().split("\n")
    place = int(rng.integers(len(words)))
    odd = [
        "-1",
        "0",
        "nan",
        "inf",
        "1e30",
        "x" * 10_000,
        "",
        "--",
        "\x1b[31mred",
        "None",
        "--width",
        "--preset",
        "9" * 5_000,
    ]
    kind = str(rng.choice(["value", "remove", "bytes", "other"]))
    if kind == "value":
        words[place] = odd[int(rng.integers(len(odd)))]
    elif kind == "remove":
        del words[place]
    elif kind == "other":
        words += (other / "words.txt").read_text().split("\n")[: place + 1]
    content = "\n".join(words).encode()
    if kind == "bytes":
        content, _ = mutate_bytes(rng, content, content)
    file.write_bytes(content.replace(b"\x00", b"0"))
    return Mutation(f"{kind} of word {place}")


def _require_finite(what: str, parts: dict[str, Any]) -> None:
    for name, part in parts.items():
        values = np.asarray(part if part is not None else 0)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise WrongSuccess(f"{what} hold a NaN or an infinite value", name)


def _nothing(line: str) -> None:
    """Takes a line and says nothing."""


_CHECKPOINT = "run/checkpoints/000000004"

FORMATS = (
    Format("D4RL HDF5", 13, samples.write_d4rl, _mutate_d4rl, _read_d4rl),
    Format("Minari folder", 13, samples.write_minari, _mutate_minari, _read_minari),
    Format("agent.json", 11, samples.write_agent, _mutate_card, _read_agent),
    Format("model.safetensors", 11, samples.write_agent, _file("agent/model.safetensors", _reseal_agent), _read_agent),
    Format("training.json", 5, samples.write_run, _file(f"{_CHECKPOINT}/training.json", _reseal_training), _read_run),
    Format(
        "training.safetensors",
        9,
        samples.write_run,
        _file(f"{_CHECKPOINT}/training.safetensors", _reseal_training),
        _read_run,
    ),
    Format(
        "checkpoint's agent.json", 2, samples.write_run, _file(f"{_CHECKPOINT}/agent.json", _reseal_agent), _read_run
    ),
    Format("evaluations.json", 3, samples.write_run, _file(f"run/{EVALUATIONS}"), _read_run),
    Format("metrics.jsonl", 1, samples.write_run, _file(f"run/{METRICS}"), _read_log),
    Format("config.toml", 8, samples.write_run, _file(f"run/{run_config.CONFIG}"), _read_config),
    Format("comparison TOML", 5, samples.write_comparison, _file("comparison.toml"), _read_comparison),
    Format("result.json", 3, samples.write_comparison, _file(f"{samples.COMPARISON}/result.json"), _read_comparison),
    Format("behaviour npz", 4, samples.write_behaviour, _file("behaviour.npz"), _read_behaviour),
    Format("export.json", 5, samples.write_export, _file("exported/export.json", _reseal_export), _read_export),
    Format("agent.onnx", 6, samples.write_export, _file("exported/agent.onnx", _reseal_export), _read_export),
    Format("command line", 1, samples.write_words, _mutate_words, _read_words),
)
"""All formats; their shares sum up to 100."""
