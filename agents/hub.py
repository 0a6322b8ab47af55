"""Agents on the Hugging Face Hub: found by name, and put there with a model card."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, snapshot_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

from aaren_rl import __version__, checkpoint, folders
from aaren_rl.agents import model_card
from aaren_rl.agents.decision_agent import DecisionAgent
from aaren_rl.agents.exported_agent import ExportedAgent
from aaren_rl.agents.hub_errors import ERRORS, advice, no_connection, reason
from aaren_rl.checkpoint import CARD, EXPORTED_CARD, WEIGHTS
from aaren_rl.errors import CheckpointError, InvalidInput

ADDRESS = re.compile(
    r"(?!(runs|agents|results)/)(?P<repo>[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*)"
    r"(@(?P<revision>(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*))?"
)
"""Name of an agent on the Hub, as user/repo or user/repo@revision; no folder in which this project writes."""

TIMEOUT = 10.0
"""Seconds to wait for the Hub's answer to which commit a revision is."""


@dataclass(frozen=True)
class AgentFolder:
    """Where the files of an agent lie.

    Attributes:
        folder: that holds them.
        name: of the agent, for names of files and folders.
        beside: folder for what is made of the agent, as results and exports.
        address: on the Hub, as user/repo@commit; None for a folder of this machine.
    """

    folder: Path
    name: str
    beside: Path
    address: str | None = None

    @property
    def exported(self) -> bool:
        """True for an exported agent. One of the Hub never is: other files may lie in the cache from elsewhere."""
        return self.address is None and (self.folder / EXPORTED_CARD).exists()


def find(agent: str | Path, say: Callable[[str], object]) -> AgentFolder:
    """Finds an agent: a folder of this machine or, where there is none of that name, a repository on the Hub.

    Of a repository only agent.json and model.safetensors are downloaded, into huggingface_hub's cache, where other
    files of it may lie. Without a network, a copy that was downloaded before is taken, with a warning.

    Args:
        agent: folder, or name on the Hub, as user/repo or user/repo@revision. A Path is always a folder, and so are
            names in runs/, agents/ and results/.
        say: takes the line that names the commit, if the agent comes from the Hub.

    Returns:
        Its folder, which need not exist if the name cannot be one on the Hub.

    Raises:
        CheckpointError: neither here nor on the Hub is such an agent, or the Hub cannot be reached.
    """
    match = _address(agent)
    if match is None:
        folder = Path(agent).resolve()
        return AgentFolder(folder, folder.name, folder.parent)
    repo, revision = match["repo"], match["revision"]
    folder = _download(str(agent), repo, revision)
    if not (folder / CARD).exists():
        raise CheckpointError(f"{repo} on the Hugging Face Hub holds no agent of aaren-rl: it has no {CARD}")
    address = f"{repo}@{folder.name}"
    say(f"agent:      {address} of the Hugging Face Hub ({HfApi().endpoint})")
    beside = Path("runs", "hub", repo if revision is None else f"{repo}@{revision}")
    return AgentFolder(folder, repo.rpartition("/")[2], beside, address)


def _address(agent: str | Path) -> re.Match[str] | None:
    """The parts of a name on the Hub; None for what is a folder."""
    return None if isinstance(agent, Path) or Path(agent).exists() else ADDRESS.fullmatch(agent)


def _download(given: str, repo: str, revision: str | None) -> Path:
    """The folder of a snapshot, named by its commit."""
    api = HfApi(library_name="aaren-rl", library_version=__version__)
    where = f"the Hugging Face Hub ({api.endpoint})"
    try:
        # The commit, so that a push in between changes nothing. The download alone would hide a Hub out of reach.
        commit = api.model_info(repo, revision=revision, timeout=TIMEOUT).sha
        folder = _snapshot(repo, commit)
        _remember(folder, revision or "main")
        return folder
    except HFValidationError as error:
        raise CheckpointError(f"{given} is no folder here, and no name that the Hugging Face Hub takes") from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{repo} on the Hugging Face Hub has no revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{given} is no folder here, and {where} has no {repo} that you may read; "
            "check the name, or log in with `hf auth login` if it is private or gated"
        ) from error
    except ERRORS as error:
        if no_connection(error):
            return _copy_of_before(given, repo, revision, f"{where} cannot be reached ({reason(error)})", error)
        raise CheckpointError(
            f"{given} is no folder here, and {repo} of {where} could not be downloaded: "
            f"{reason(error)}{advice(error, 'read')}"
        ) from error


def _snapshot(repo: str, revision: str | None, **options: Any) -> Path:
    return Path(snapshot_download(repo, revision=revision, allow_patterns=[CARD, WEIGHTS], **options))


def _remember(folder: Path, revision: str) -> None:
    """Notes in the cache which commit a revision is, as huggingface_hub does for downloads that are not by commit."""
    note = folder.parents[1] / "refs" / revision
    if revision != folder.name and not (note.exists() and note.read_text("utf-8") == folder.name):
        note.parent.mkdir(parents=True, exist_ok=True)
        folders.replace_file(note, folder.name)


def _copy_of_before(given: str, repo: str, revision: str | None, unreachable: str, error: Exception) -> Path:
    """The folder of the snapshot that was downloaded before, with a warning."""
    try:
        folder = _snapshot(repo, revision, local_files_only=True)
    except ERRORS:
        raise CheckpointError(
            f"{given} is no folder here, and {unreachable}, nor was such an agent downloaded before; check the name "
            "and the network"
        ) from error
    warnings.warn(
        f"{unreachable}; the agent is the copy of {repo} that was downloaded before, commit {folder.name}",
        RuntimeWarning,
        stacklevel=5,
    )
    return folder


def push_to_hub(
    agent: DecisionAgent | str | Path, repo: str, *, licence: str | None = None, private: bool = False
) -> str:
    """Puts an agent on the Hugging Face Hub, so that `aaren_rl.load("user/repo")` finds it.

    The repository gets agent.json and model.safetensors, a model card and, where the run of the agent's folder holds
    the result of this agent, result.json and a picture of its returns. An earlier agent there is replaced; the
    repository's history keeps it. Log in first, with `hf auth login` or the environment variable HF_TOKEN.

    Args:
        agent: folder of an agent, as runs/<run>/last, or an agent in memory, of which no result is known.
        repo: name of the repository, as user/repo; it is made if there is none.
        licence: of the agent, as the Hub names it, "mit" or "cc-by-4.0"; None for none, which the card says.
        private: makes the repository private, if there is none yet.

    Returns:
        The agent's address, user/repo@commit.

    Raises:
        InvalidInput: the name is none of a repository, one that is to be private exists and is public, or the agent
            is an exported one.
        CheckpointError: the agent cannot be read, or the Hub refuses it or cannot be reached; an earlier agent there
            stays as it was.
    """
    match = ADDRESS.fullmatch(repo)
    if match is None or match["revision"] is not None:
        raise InvalidInput(f"repo is {repo!r}; expected user/repo, the name of a repository on the Hugging Face Hub")
    _check_agent(agent)
    if licence is None:
        warnings.warn(
            f'{repo} gets no licence, which its card says; pass one if others may use the agent, as licence="mit"',
            RuntimeWarning,
            stacklevel=2,
        )
    with TemporaryDirectory() as place:
        made, own = Path(place), Path(place) / "agent"
        if isinstance(agent, DecisionAgent):
            agent.save(own)
            written = model_card.write(made, own, None, repo, licence)
        else:
            _copy(Path(agent), own)
            try:
                written = model_card.write(made, own, Path(agent), repo, licence)
            except CheckpointError as error:
                raise CheckpointError(str(error).replace(str(own), str(agent))) from error
        files = {CARD: own / CARD, WEIGHTS: own / WEIGHTS, **{name: made / name for name in written}}
        return f"{repo}@{_commit(repo, files, private)}"


def _check_agent(agent: object) -> None:
    """Checks that an agent can be put on the Hub.

    Raises:
        InvalidInput: it is an exported agent, a name on the Hub or something else.
    """
    exported = isinstance(agent, ExportedAgent)
    if isinstance(agent, str | Path):
        if _address(agent) is not None:
            raise InvalidInput(
                f"{agent} is no folder here; push_to_hub and --to hub take folders alone, as runs/RUN/last"
            )
        exported = (Path(agent) / EXPORTED_CARD).exists() and not (Path(agent) / CARD).exists()
    elif not exported and not isinstance(agent, DecisionAgent):
        raise InvalidInput(f"agent is a {type(agent).__name__}; expected the folder of an agent, or a DecisionAgent")
    if exported:
        name = agent if isinstance(agent, str | Path) else f"a {type(agent).__name__}"
        raise InvalidInput(f"{name} is an exported agent; push the folder of the agent that it was exported from")


def _copy(folder: Path, own: Path) -> None:
    """Copies an agent's two files, so that those that are checked are those that are pushed."""
    checkpoint.read_json(folder / CARD)
    own.mkdir()
    for name in (CARD, WEIGHTS):
        try:
            shutil.copyfile(folder / name, own / name)
        except FileNotFoundError as error:
            raise CheckpointError(f"{folder / name} is missing; the folder is incomplete") from error
        except OSError as error:
            raise CheckpointError(f"{folder / name} could not be copied to {own}: {error}") from error


def _commit(repo: str, files: dict[str, Path], private: bool) -> str:
    """Makes one commit of files, and removes those of an earlier agent that this one has not."""
    api = HfApi(library_name="aaren-rl", library_version=__version__)
    try:
        # First, since a repository that was made for a card that is refused would stay, and be empty.
        ModelCard.load(files[model_card.README]).validate()
        api.create_repo(repo, private=private or None, exist_ok=True)
        found = api.model_info(repo)
        if private and not found.private:
            raise InvalidInput(f"{repo} exists and is public; nothing was put there: make it private on the Hub first")
        present = {each.rfilename for each in found.siblings or ()}
        stale = sorted(present & set(model_card.FILES) - set(files))
        operations: list[Any] = [CommitOperationAdd(name, path) for name, path in files.items()]
        operations += [CommitOperationDelete(name) for name in stale]
        return api.create_commit(repo, operations, commit_message=f"Agent of aaren-rl {__version__}").oid
    except InvalidInput:
        raise
    except ERRORS as error:
        raise CheckpointError(
            f"the agent was not put on the Hugging Face Hub ({api.endpoint}) as {repo}: "
            f"{reason(error)}{advice(error, 'write')}"
        ) from error
