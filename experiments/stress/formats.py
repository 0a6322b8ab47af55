"""Every file format that this package reads: valid samples, mutations of them, and its reader."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aaren_rl import checkpoint
from aaren_rl.experiments import config as run_config
from aaren_rl.experiments.stress import readers, samples
from aaren_rl.experiments.stress.mutations import Mutation, Rng, mutate_bytes, mutate_text, to_json, to_toml
from aaren_rl.experiments.stress.mutations_of_hdf5 import mutate_hdf5
from aaren_rl.experiments.stress.mutations_of_tensors import mutate_tensors
from aaren_rl.training.evaluations import EVALUATIONS
from aaren_rl.training.log import METRICS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


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
        {"entry_point": "os:mkdir", "kwargs": {"path": str(folder / readers.CANARY)}},
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


def _write_module(folder: Path) -> str:
    """Writes a module that shows that it was imported, and returns its name."""
    lines = ("from pathlib import Path", f"Path({str(folder / readers.CANARY)!r}).mkdir()", "make = dict")
    (folder / f"{readers.MODULE}.py").write_text("\n".join(lines))
    return readers.MODULE


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


_CHECKPOINT = "run/checkpoints/000000004"

_mutate_weights = _file("agent/model.safetensors", _reseal_agent)
_mutate_state = _file(f"{_CHECKPOINT}/training.json", _reseal_training)
_mutate_tensors = _file(f"{_CHECKPOINT}/training.safetensors", _reseal_training)
_mutate_checkpoint = _file(f"{_CHECKPOINT}/agent.json", _reseal_agent)
_mutate_result = _file(f"{samples.COMPARISON}/result.json")

FORMATS = (
    Format("D4RL HDF5", 13, samples.write_d4rl, _mutate_d4rl, readers.read_d4rl),
    Format("Minari folder", 13, samples.write_minari, _mutate_minari, readers.read_minari),
    Format("agent.json", 11, samples.write_agent, _mutate_card, readers.read_agent),
    Format(
        "model.safetensors",
        11,
        samples.write_agent,
        _file("agent/model.safetensors", _reseal_agent),
        readers.read_agent,
    ),
    Format("training.json", 5, samples.write_run, _mutate_state, readers.read_run),
    Format(
        "training.safetensors",
        9,
        samples.write_run,
        _mutate_tensors,
        readers.read_run,
    ),
    Format("checkpoint's agent.json", 2, samples.write_run, _mutate_checkpoint, readers.read_run),
    Format("evaluations.json", 3, samples.write_run, _file(f"run/{EVALUATIONS}"), readers.read_run),
    Format("metrics.jsonl", 1, samples.write_run, _file(f"run/{METRICS}"), readers.read_log),
    Format("config.toml", 8, samples.write_run, _file(f"run/{run_config.CONFIG}"), readers.read_config),
    Format("comparison TOML", 5, samples.write_comparison, _file("comparison.toml"), readers.read_comparison),
    Format("result.json", 3, samples.write_comparison, _mutate_result, readers.read_comparison),
    Format("behaviour npz", 4, samples.write_behaviour, _file("behaviour.npz"), readers.read_behaviour),
    Format("export.json", 5, samples.write_export, _file("exported/export.json", _reseal_export), readers.read_export),
    Format("agent.onnx", 6, samples.write_export, _file("exported/agent.onnx", _reseal_export), readers.read_export),
    Format("command line", 1, samples.write_words, _mutate_words, readers.read_words),
)
"""All formats; their shares sum up to 100."""
