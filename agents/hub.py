"""Agents on the Hugging Face Hub: found by name, and put there with a model card."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from aaren_rl import __version__, checkpoint
from aaren_rl.agents import model_card
from aaren_rl.agents.decision_agent import DecisionAgent
from aaren_rl.checkpoint import CARD, WEIGHTS
from aaren_rl.errors import CheckpointError, InvalidInput

ADDRESS = re.compile(r"(?P<repo>[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*)(@(?P<revision>\S+))?")
"""Name of an agent on the Hub, as user/repo or user/repo@revision."""

TIMEOUT = 10.0
"""Seconds to wait for the Hub's answer to which commit a revision is."""

FAILURES: tuple[type[Exception], ...] = (OSError, *HfHubHTTPError.__bases__)
"""What the Hub's library raises where it cannot be reached; its HTTP library, and the base of its errors, changed."""

REFUSALS: tuple[type[Exception], ...] = (*FAILURES, ValueError)
"""The same where something is put there; the last where the Hub does not take a card."""


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


def find(agent: str | Path) -> AgentFolder:
    """Finds an agent: a folder of this machine or, where there is none of that name, a repository on the Hub.

    Of a repository only agent.json and model.safetensors are downloaded, into huggingface_hub's cache. Without a
    network, a copy that was downloaded before is taken, with a warning.

    Args:
        agent: folder, or name on the Hub, as user/repo or user/repo@revision.

    Returns:
        Its folder, which need not exist if the name cannot be one on the Hub.

    Raises:
        CheckpointError: neither here nor on the Hub is such an agent, or the Hub cannot be reached.
    """
    path = Path(agent)
    match = ADDRESS.fullmatch(path.as_posix() if isinstance(agent, Path) else agent)
    if match is None or path.exists():
        folder = path.resolve()
        return AgentFolder(folder, folder.name, folder.parent)
    repo = match["repo"]
    folder = _download(str(agent), repo, match["revision"])
    if not (folder / CARD).exists():
        raise CheckpointError(f"{repo} on the Hugging Face Hub holds no agent of aaren-rl: it has no {CARD}")
    return AgentFolder(folder, repo.rpartition("/")[2], Path("runs") / repo.replace("/", "-"), f"{repo}@{folder.name}")


def _download(given: str, repo: str, revision: str | None) -> Path:
    """The folder of a snapshot, named by its commit."""
    api = HfApi(library_name="aaren-rl", library_version=__version__)

    def snapshot(**options: Any) -> Path:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=[CARD, WEIGHTS], **options))

    try:
        # It says whether the Hub can be reached, which the download does not where it falls back to a copy.
        api.model_info(repo, revision=revision, timeout=TIMEOUT)
        return snapshot()
    except HFValidationError as error:
        raise CheckpointError(f"{given} is no folder here, and no name that the Hugging Face Hub takes") from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{repo} on the Hugging Face Hub has no revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{given} is no folder here, and the Hugging Face Hub ({api.endpoint}) has no {repo} that you may read; "
            "check the name, or log in with `hf auth login` if it is private or gated"
        ) from error
    except FAILURES as error:
        reason = checkpoint.shortened(str(error) or type(error).__name__)
        try:
            folder = snapshot(local_files_only=True)
        except FAILURES:
            raise CheckpointError(
                f"{given} is no folder here, and the Hugging Face Hub ({api.endpoint}) cannot be reached ({reason}), "
                "nor was such an agent downloaded before; check the name and the network"
            ) from error
        warnings.warn(
            f"the Hugging Face Hub ({api.endpoint}) cannot be reached ({reason}); the agent is the copy of {repo} that "
            f"was downloaded before, commit {folder.name}",
            RuntimeWarning,
            stacklevel=4,
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
        InvalidInput: the name is none of a repository, or one that is to be private exists and is public.
        CheckpointError: the agent cannot be read, or the Hub refuses it or cannot be reached; an earlier agent there
            stays as it was.
    """
    match = ADDRESS.fullmatch(repo)
    if match is None or match["revision"] is not None:
        raise InvalidInput(f"repo is {repo!r}; expected user/repo, the name of a repository on the Hugging Face Hub")
    if licence is None:
        warnings.warn(
            f'{repo} gets no licence, which its card says; pass one if others may use the agent, as licence="mit"',
            RuntimeWarning,
            stacklevel=2,
        )
    with TemporaryDirectory() as place:
        made, folder = Path(place), Path(agent) if isinstance(agent, str | Path) else Path(place) / "agent"
        if isinstance(agent, DecisionAgent):
            agent.save(folder)
        written = model_card.write(made, folder, repo, licence)
        files = {CARD: folder / CARD, WEIGHTS: folder / WEIGHTS, **{name: made / name for name in written}}
        return f"{repo}@{_commit(repo, files, private)}"


def _commit(repo: str, files: dict[str, Path], private: bool) -> str:
    """Makes one commit of files, and removes those of an earlier agent that this one has not."""
    api = HfApi(library_name="aaren-rl", library_version=__version__)
    try:
        api.create_repo(repo, private=private or None, exist_ok=True)
        found = api.model_info(repo)
        if private and not found.private:
            raise InvalidInput(f"{repo} exists and is public; nothing was put there: make it private on the Hub first")
        there = {each.rfilename for each in found.siblings or ()}
        stale = sorted(there & set(model_card.FILES) - set(files))
        operations: list[Any] = [CommitOperationAdd(name, path) for name, path in files.items()]
        operations += [CommitOperationDelete(name) for name in stale]
        return api.create_commit(repo, operations, commit_message=f"Agent of aaren-rl {__version__}").oid
    except InvalidInput:
        raise
    except REFUSALS as error:
        refused = getattr(getattr(error, "response", None), "status_code", None) in (401, 403)
        hint = "; log in with `hf auth login`, by a token that may write there" if refused else ""
        raise CheckpointError(
            f"the agent was not put on the Hugging Face Hub ({api.endpoint}) as {repo}: "
            f"{checkpoint.shortened(str(error) or type(error).__name__)}{hint}"
        ) from error
