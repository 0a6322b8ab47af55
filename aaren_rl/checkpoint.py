"""Folders of agents and of training states: safetensors and JSON, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor
from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from aaren_rl import __version__, folders
from aaren_rl.actor import AUTO, Target, target_as_number
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.reference import Reference, recorded_reference
from aaren_rl.data.segment import Segment
from aaren_rl.data.spaces import space_from_json
from aaren_rl.errors import AarenError, CheckpointError, InvalidInput
from aaren_rl.model import DecisionModel, Scaling, config_from_dict
from aaren_rl.model.weights_check import check_weights, first_not_finite

WEIGHTS, CARD = "model.safetensors", "agent.json"
TRAINING_TENSORS, TRAINING_STATE = "training.safetensors", "training.json"
FILES = frozenset({WEIGHTS, CARD, TRAINING_TENSORS, TRAINING_STATE})
"""Files of such a folder: the first two make an agent, resuming needs the others too."""

EXPORTED_GRAPH, EXPORTED_CARD = "agent.onnx", "export.json"
EXPORTED_HEADER, EXPORTED_SOURCE = "agent.h", "agent.c"
EXPORTED_PROGRAM = "agent.pt2"
EXPORTED = frozenset({EXPORTED_GRAPH, EXPORTED_CARD, EXPORTED_HEADER, EXPORTED_SOURCE, EXPORTED_PROGRAM})
"""Files in the folder of an exported agent."""

FORMAT = 5
"""Version of the folder's format; it rises with every change that older code cannot read."""


LARGEST = float(torch.finfo(torch.float32).max)
"""Greatest number of a card; agents count in float32."""


@dataclass(frozen=True)
class AgentCard:
    """Data, environment and targets of an agent, kept beside its weights.

    Attributes:
        environment: to act in; None if none is known.
        dataset_id: name of the training data.
        source: source of the data ("minari", "d4rl", "bundled", "arrays").
        target_returns: target returns of its environment, or "auto"; the first is the default.
        updates: number of optimiser updates.
        acting: default way of acting, as "stream" or "window:20" (`aaren_rl.agents.acting.Acting`).
        data_returns: quantiles of the returns in its data, from the lowest to the highest episode in equal steps of
            probability; empty if they are unknown.
        reference: returns for normalised scores that the data record of `environment`; None where they record none.

    Raises:
        InvalidInput: no target return is given.
    """

    environment: EnvironmentSpec | None
    dataset_id: str
    source: str
    target_returns: tuple[Target, ...]
    updates: int = 0
    acting: str = "stream"
    data_returns: tuple[float, ...] = ()
    reference: Reference | None = None

    def __post_init__(self) -> None:
        if not self.target_returns:
            raise InvalidInput("target_returns is empty; expected at least one target return")

    def to_json(self) -> dict[str, Any]:
        """The card in JSON's types."""
        saved = {field.name: getattr(self, field.name) for field in fields(self)}
        saved["environment"] = None if self.environment is None else self.environment.to_json()
        # The name is the reader's to give.
        reference = self.reference
        saved["reference"] = None if reference is None else {"random": reference.random, "expert": reference.expert}
        return saved

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> AgentCard:
        """Reads what `to_json` wrote, among other entries.

        Raises:
            KeyError: a field is missing.
            InvalidInput: one does not fit.
        """
        given = {field.name: saved[field.name] for field in fields(cls)}
        given["reference"] = recorded_reference(given["reference"] or {})
        given |= {name: tuple(given[name]) for name in ("target_returns", "data_returns")}
        if given["environment"] is not None:
            given["environment"] = EnvironmentSpec.from_json(given["environment"])
        return cls(**given)


def save_agent(folder: Path, model: DecisionModel, card: AgentCard) -> None:
    """Writes an agent folder, and replaces an earlier one of this name.

    Raises:
        CheckpointError: it cannot be written, or its weights are not finite; an earlier folder stays as it was.
    """
    with whole_folder(folder) as partial:
        write_agent(partial, model, card)


def write_agent(folder: Path, model: DecisionModel, card: AgentCard) -> None:
    """Writes an agent's two files into a folder that exists.

    Raises:
        CheckpointError: its weights or its scaling are not finite.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if (name := first_not_finite(tensors)) is not None:
        raise CheckpointError(f"the agent is not saved: its weight {name} holds a NaN or an infinite value")
    weights = save(tensors)
    folders.write_file(folder / WEIGHTS, weights)
    description: dict[str, Any] = {
        "format": FORMAT,
        "aaren_rl": __version__,
        "model": asdict(model.config),
        "observation_space": model.observation_space.to_json(),
        "action_space": model.action_space.to_json(),
        **card.to_json(),
        "sha256": {WEIGHTS: digest(weights)},
    }
    description["sha256"][CARD] = card_digest(description, WEIGHTS)
    folders.write_file(folder / CARD, (json.dumps(description, indent=2) + "\n").encode())


def weights_digest(folder: Path) -> str | None:
    """Digest of the weights of an agent folder, as its agent.json records it; `load_agent` checks it.

    Raises:
        CheckpointError: agent.json cannot be read.
    """
    digests = read_json(folder / CARD).get("sha256")
    return digests.get(WEIGHTS) if isinstance(digests, dict) else None


def load_agent(folder: Path) -> tuple[DecisionModel, AgentCard]:
    """Reads an agent folder, on the CPU; also inside `torch.inference_mode()`, as a model that can be trained.

    Raises:
        CheckpointError: a file is missing, damaged, altered, or of another format; the weights are not finite, or
            act in values that are not; or the card asks for another model than the weights are of.
    """
    description = read_json(folder / CARD)
    if description.get("format") != FORMAT:
        found, version = (shortened(str(description.get(name))) for name in ("format", "aaren_rl"))
        raise CheckpointError(
            f"{folder / CARD} has format {found}, written by aaren-rl {version}; this version ({__version__}) reads "
            f"format {FORMAT} only: train the agent again, or load it with the version that wrote it"
        )
    digests = description.get("sha256")
    if not isinstance(digests, dict) or digests.get(CARD) != card_digest(description, WEIGHTS):
        raise CheckpointError(f"{folder / CARD} is not as it was saved; take it from its source again")
    # Without random numbers of the caller's, which a training under way counts on.
    with torch.inference_mode(False), torch.random.fork_rng([]):
        weights = read_tensors(folder / WEIGHTS, digests.get(WEIGHTS))
        with described_by(folder, CARD):
            observations, actions = (
                space_from_json(description[f"{name}_space"]) for name in ("observation", "action")
            )
            config = config_from_dict(description["model"])
            check_types(config)
            check_weights(config, observations, actions, weights)
            # The weights bring the scaling that counts.
            model = DecisionModel(config, observations, actions, Scaling.identity(observations))
            model.load_state_dict(weights)
            card = AgentCard.from_json(description)
            check_types(card)
            _try_step(model.eval(), card)
    return model, card


def _try_step(model: DecisionModel, card: AgentCard) -> None:
    """Makes a first step, since weights that are numbers may still overflow.

    Raises:
        InvalidInput: its action is not finite, or the card asks for "auto" of a model that does not predict it.
    """
    if AUTO in card.target_returns and not model.config.reach:
        raise InvalidInput(f"its target is {AUTO}, and the model does not predict the return in reach")
    observation = model.inputs.observation.examples(1, torch.Generator().manual_seed(0))
    target, first = torch.tensor([target_as_number(card.target_returns[0])]), torch.zeros(1, dtype=torch.long)
    now = Segment.of_one_step(observation, first, target, torch.zeros(1, *model.action_space.shape), torch.zeros(1))
    with torch.no_grad():
        acted, _ = model.step(now, model.initial_state(1))
    if not acted.isfinite().all():
        raise InvalidInput("the action of its first step is not finite")


@contextmanager
def described_by(folder: Path, card: str) -> Iterator[None]:
    """Turns whatever a card makes its readers raise into one error.

    Raises:
        CheckpointError: the block failed.
    """
    try:
        yield
    except Exception as error:
        reason = str(error) if isinstance(error, AarenError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"{folder} does not hold the agent that its {card} describes: {shortened(reason)}"
        ) from error


def check_types(settings: Any) -> None:
    """Checks that the fields of a dataclass have the types that it declares, and numbers in them are finite.

    Raises:
        InvalidInput: one has another type, or holds a NaN or a number beyond float32.
    """
    hints = typing.get_type_hints(type(settings))
    for name in settings.__dataclass_fields__:
        value = getattr(settings, name)
        try:
            check_type(value, hints[name], collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
            # To Python it is an integer.
            if isinstance(value, bool) and hints[name] is not bool:
                raise TypeCheckError("is a bool")
        except TypeCheckError as error:
            raise InvalidInput(f"{name} is {shortened(repr(value))}; {error}") from error
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float | int) and not abs(number) <= LARGEST:
                raise InvalidInput(f"{name} is {shortened(repr(value))}; expected finite numbers, as float32 has them")


def shortened(text: str) -> str:
    """Text of a file for an error: one line without control characters, and not all of it."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return plain if len(plain) <= 300 else f"{plain[:300]}..."


@contextmanager
def whole_folder(folder: Path, files: frozenset[str] = FILES) -> Iterator[Path]:
    """Yields a folder to write into, which takes the given name once all is written.

    Args:
        folder: name of the folder.
        files: names of all files that an earlier folder of that name may hold.

    Raises:
        CheckpointError: it cannot be written, on a full disk for instance, or the name belongs to something other than
            a saved folder. Whatever had the name stays as it was.
    """
    check_replaceable(folder.resolve(), files)
    with folders.whole_folder(folder, CheckpointError) as partial:
        yield partial


def check_replaceable(folder: Path, files: frozenset[str] = FILES) -> None:
    """Checks that a folder holds no files but these, which are lost when it is replaced.

    Raises:
        CheckpointError: the name belongs to something else.
    """
    if folder.exists() and (not folder.is_dir() or not {path.name for path in folder.iterdir()} <= files):
        expected = "an exported agent's" if files is EXPORTED else "an agent"
        raise CheckpointError(f"{folder} exists and is not {expected} folder; it is left alone, give another name")


def digest(*parts: bytes | memoryview) -> str:
    """SHA-256 digest, by which altered files are recognised."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        CheckpointError: the file is missing or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        expected = " and ".join(
            {CARD: (CARD, WEIGHTS), EXPORTED_CARD: (EXPORTED_CARD, EXPORTED_GRAPH)}.get(path.name, [path.name])
        )
        last = path.parent / "last"
        hint = f"; did you mean {last}?" if (last / path.name).exists() else ""
        raise CheckpointError(f"{path} is missing; expected a folder with {expected}{hint}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a JSON object")
    return content


def read_tensors(path: Path, sha256: str | None) -> dict[str, Tensor]:
    """Reads a safetensors file and checks it against its recorded digest.

    Raises:
        CheckpointError: the file is missing, damaged or not the one that was written.
    """
    try:
        content = path.read_bytes()
        if digest(content) != sha256:
            raise CheckpointError(
                f"{path} is not the file that was saved: its sha256 is {digest(content)}, the one recorded {sha256}; "
                "take it from its source again"
            )
        return load(content)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; the folder is incomplete") from error
    # The last four: a dtype or a shape in the header that torch does not have.
    except (OSError, safetensors.SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def card_digest(description: dict[str, Any], *contents: str) -> str:
    """Digest of the contents of an agent.json or export.json, with the digests of the files `contents` beside it.

    It leaves out itself, and evaluations, which are added later.
    """
    digests = description.get("sha256")
    said = {name: value for name, value in description.items() if name != "evaluation"}
    said["sha256"] = {name: digests.get(name) for name in contents} if isinstance(digests, dict) else None
    return digest(json.dumps(said, sort_keys=True).encode())
