"""Makes Minari datasets from roll-outs of behaviours and experts."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from minari.dataset.minari_storage import MinariStorage
from tqdm import tqdm

from aaren_rl import __version__
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.envs import baselines, experts, minari_writer
from aaren_rl.envs.catalogue import OWN_EXPERT, Entry
from aaren_rl.envs.environments import Description, describe
from aaren_rl.envs.players import ExpertPlayer, Player
from aaren_rl.envs.readers import minari
from aaren_rl.envs.recording_roll_out import Amount, RecordedEpisode, roll_out
from aaren_rl.envs.turns import one_at_a_time
from aaren_rl.errors import DataError, InvalidInput
from aaren_rl.folders import clean_up, whole_folder

STEPS = 200_000
"""Default number of steps of a dataset of bundled behaviours."""

EPISODES = 400
"""Default number of episodes of a dataset of an expert, whose episodes are good ones."""


@dataclass(frozen=True)
class Recipe:
    """What makes a dataset.

    Attributes:
        id: Minari id of the dataset.
        environment: where it is collected.
        players: who acts, each in an equal share of the data.
        amount: how much is collected where nothing else is asked for.
        made_by: the players in words.
        stream: name from which, with the seed, all randomness follows.
        evaluation: the environment to evaluate in that the data name; None for that of their collection.
    """

    id: str
    environment: EnvironmentSpec
    players: Sequence[Player]
    amount: Amount
    made_by: str
    stream: str
    evaluation: EnvironmentSpec | None = None


def recipe_of(entry: Entry) -> Recipe:
    """The recipe of an entry of the catalogue.

    Raises:
        InvalidInput: no behaviour is bundled for it.
    """
    players, amount = baselines.players_of(entry), Amount(STEPS, "steps")
    if entry.expert not in (None, OWN_EXPERT):
        amount = Amount(entry.episodes or EPISODES, "episodes")
    made_by = _made_by(entry, players)
    environment = entry.environments["bundled"]
    return Recipe(entry.bundled_id, environment, players, amount, made_by, entry.name, entry.evaluation)


def recipe_for(
    expert: str, environment: EnvironmentSpec, arguments: Mapping[str, Any], dataset_id: str | None = None
) -> Recipe:
    """The recipe of an expert in an environment that need not be in the catalogue.

    Args:
        expert: name of the expert.
        environment: any that it plays.
        arguments: of the expert.
        dataset_id: Minari id of the dataset; None for one that follows from environment and expert.

    Raises:
        InvalidInput: there is no such expert.
    """
    player = ExpertPlayer(experts.find(expert), arguments)
    dataset_id = dataset_id or f"aaren/{environment.registered_id}/{expert}-v0"
    stream = f"{environment} {player}"
    amount = Amount(EPISODES, "episodes")
    return Recipe(dataset_id, environment, [player], amount, f"{player} in {environment}", stream)


def collect(
    made_from: Entry | Recipe,
    steps: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
    say: Callable[[str], object] = print,
    episodes: int | None = None,
    announce: str | None = None,
) -> Path:
    """Makes a dataset from behaviours or experts, under the local Minari root.

    The folder takes its name only once it is whole; an interrupted run leaves nothing. Of several processes that make
    the same dataset at once, one does, and the others wait for it and take what it made.

    Args:
        made_from: entry of the catalogue, or a recipe.
        steps: least number of steps, in whole episodes; None, with no episodes either, for the recipe's amount.
        seed: the same seed gives the same data, where the environment draws from generators that can be seeded.
        overwrite: replace a dataset of this name.
        progress: show a progress bar.
        say: called with a line on what was made, or where another process makes the dataset or has made it.
        episodes: number of episodes, in place of steps.
        announce: line to say once the environment is made and the roll-out begins; None for none.

    Returns:
        The folder of the dataset.

    Raises:
        InvalidInput: no behaviour is bundled for the entry, an expert does not play the environment, or steps or
            episodes are below 1.
        DataError: another dataset exists already and may not be overwritten, or it cannot be written.
    """
    recipe = made_from if isinstance(made_from, Recipe) else recipe_of(made_from)
    amount = recipe.amount if steps is None else Amount(steps, "steps")
    if episodes is not None:
        amount = Amount(episodes, "episodes")
    folder = minari.local_folder(recipe.id)
    with _without_empty_folders(folder.parent), one_at_a_time(folder, say):
        clean_up(folder.parent)
        if folder.exists() and not overwrite:
            if not _holds(folder, _description(recipe, seed), amount):
                raise DataError(f"{recipe.id} exists already at {folder}; pass --overwrite to make it anew")
            say(f"data: {recipe.id} has been made already, with these {amount.unit} and this seed; it stands")
            return folder
        described = recordable(recipe.environment)
        evaluation = None if recipe.evaluation is None else recordable(recipe.evaluation).recorded
        if amount.unit == "steps":
            minari_writer.require_space(folder.parent, _least_size(described, amount.number))
        if announce is not None:
            say(announce)
        made = _roll_out(recipe, amount, seed, progress)
        with whole_folder(folder, DataError, replace=overwrite) as partial:
            minari_writer.write_dataset(
                partial,
                recipe.id,
                described,
                made,
                recipe.made_by,
                _description(recipe, seed),
                [episode.infos for episode in made],
                evaluation,
            )
            minari_writer.describe_namespaces(recipe.id, "Roll-outs of the behaviours bundled with aaren-rl.")
    say(f"data: {recipe.id}: {summary(made)}")
    return folder


@contextmanager
def _without_empty_folders(namespace: Path) -> Iterator[None]:
    """Removes a namespace's folder, and those above it in Minari's root, if a block fails and leaves them empty."""
    try:
        yield
    except BaseException:
        # One that is not empty stays, and so do those above it.
        with suppress(OSError):
            for path in (namespace, *namespace.parents):
                if path == minari.local_folder(""):
                    break
                path.rmdir()
        raise


def recordable(spec: EnvironmentSpec) -> Description:
    """What an environment says of itself, with a record that a file can hold.

    Raises:
        InvalidInput: it cannot be made, or has arguments that JSON does not hold.
    """
    described = describe(spec)
    recorded = described.recorded
    if recorded is None:
        return described
    if callable(recorded.entry_point):
        # Packages register functions too; readers take no more than the package from the name.
        entry = recorded.entry_point
        name = f"{entry.__module__}:{getattr(entry, '__qualname__', type(entry).__qualname__)}"
        recorded = dataclasses.replace(recorded, entry_point=name)
    if recorded.additional_wrappers:
        # Those that the id itself brings would be put on twice.
        own = describe(dataclasses.replace(spec, wrappers=())).recorded
        count = 0 if own is None else len(own.additional_wrappers)
        # Not all wrappers record their arguments; those of the spec are known.
        wrappers = [
            dataclasses.replace(wrapper, kwargs=wrapper.kwargs or dict(known.kwargs))
            for wrapper, known in zip(recorded.additional_wrappers[count:], spec.wrappers, strict=True)
        ]
        recorded = dataclasses.replace(recorded, additional_wrappers=tuple(wrappers))
    try:
        recorded.to_json()
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"{spec.id} cannot be recorded: {error}; give it arguments that JSON holds: numbers, texts, lists"
        ) from error
    return dataclasses.replace(described, recorded=recorded)


def _roll_out(recipe: Recipe, amount: Amount, seed: int, progress: bool) -> list[RecordedEpisode]:
    stream = (zlib.crc32(recipe.stream.encode()), seed)
    with tqdm(
        total=amount.number,
        unit=amount.unit[:-1],
        unit_scale=True,
        desc=recipe.id,
        mininterval=1.0,
        disable=not progress,
    ) as bar:
        return roll_out(recipe.environment, recipe.players, amount, stream, bar.update)


def summary(episodes: Sequence[RecordedEpisode]) -> str:
    """Returns and successes of episodes in a line: mean and standard deviation over the episodes."""
    returns = np.array([episode.rewards.sum(dtype=np.float64) for episode in episodes])
    steps = sum(len(episode.rewards) for episode in episodes)
    success = [bool(np.any(episode.infos["success"])) for episode in episodes if "success" in episode.infos]
    line = f"{len(episodes)} episodes, {steps} steps, returns {returns.mean():.4g} +- {returns.std():.4g}"
    return f"{line}, success {np.mean(success):.3f}" if success else line


def _holds(folder: Path, description: str, amount: Amount) -> bool:
    """True if a dataset's metadata say that it was made as described, with enough steps or episodes."""
    try:
        metadata = MinariStorage.read_raw_metadata(folder / "data")
    except (OSError, ValueError):
        return False
    if not isinstance(metadata, dict):
        return False
    found = metadata.get(f"total_{amount.unit}")
    return metadata.get("description") == description and isinstance(found, int) and found >= amount.number


def _least_size(described: Description, steps: int) -> int:
    numbers = described.observation_space.size + described.action_space.size
    pixels = sum(math.prod(image.shape) for image in described.observation_space.images().values())
    return steps * (4 * numbers + pixels)


def _made_by(entry: Entry, players: Sequence[Player]) -> str:
    if isinstance(players[0], ExpertPlayer):
        return str(players[0])
    return f"SAC after {', '.join(map(str, entry.behaviours))} steps" if entry.behaviours else "uniform random actions"


def _description(recipe: Recipe, seed: int) -> str:
    return f"Roll-out of the behaviours bundled with aaren-rl {__version__}: {recipe.made_by}; seed {seed}."
