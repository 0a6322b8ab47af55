"""What agents of exported folders have in common: the card, its checks, and the rows of state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from aaren_rl import checkpoint
from aaren_rl.agents.agent import Agent
from aaren_rl.agents.states import ActingState, Array, Rows
from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.spaces import NUMBERS, Packed, Space, space_from_json
from aaren_rl.errors import CheckpointError, InvalidInput
from aaren_rl.stepping.exported import CARD, FORMAT


class ExportedAgent(Agent):
    """Acts by an exported step; see `OnnxAgent`, `CAgent` and `TorchAgent`.

    Args:
        folder: with export.json and the files of the step.
        acting: "stream" or "reset:STEPS"; None for what the card says.
        renew: as for `DecisionAgent`.

    Raises:
        CheckpointError: a file is missing, altered or of another version, or the first step is not finite.
        InvalidInput: the exported step cannot act so.
    """

    step_file: ClassVar[str]
    """The file that holds the step."""

    files: ClassVar[tuple[str, ...]]
    """All files of the step."""

    runtime: ClassVar[str]
    """What runs the step, as results name it."""

    code: ClassVar[str | None] = None
    """What in the folder may do anything on this machine, in words; None if nothing may."""

    def __init__(self, folder: Path, acting: str | None, renew: int) -> None:
        described = checkpoint.read_json(folder / CARD)
        if described.get("format") != FORMAT:
            raise CheckpointError(f"{folder / CARD} has format {described.get('format')}; this version reads {FORMAT}")
        contents = {name: _read(folder / name) for name in self.files}
        digests = described.get("sha256")
        known = digests if isinstance(digests, dict) else {}
        altered = any(known.get(name) != checkpoint.digest(content) for name, content in contents.items())
        if altered or known.get(CARD) != checkpoint.card_digest(described, *self.files):
            raise CheckpointError(f"{folder} is not as it was exported; export the agent again")
        self._prepare(contents, described)
        with checkpoint.described_by(folder, CARD):
            card = AgentCard.from_json(described)
            checkpoint.check_types(card)
            observations, actions = (space_from_json(described[f"{name}_space"]) for name in ("observation", "action"))
            longest = described["longest_episode"]
            if not isinstance(longest, int | None):
                raise InvalidInput(f"longest_episode is {longest!r}; expected a number of steps, or null")
            greatest = described["greatest_return"]
            if not isinstance(greatest, int | float | None) or not (greatest is None or greatest > 0):
                raise InvalidInput(f"greatest_return is {greatest!r}; expected a number above 0, or null")
            # Older exports lack the key.
            reaches = described.get("reach", False)
            if not isinstance(reaches, bool):
                raise InvalidInput(f"reach is {reaches!r}; expected true or false")
            self.start = np.array(described["state_start"], dtype=np.float64)
            self.mixed, self.int8 = int(described["mixers_at"]), bool(described["int8"])
            if self.start.ndim != 1 or not np.isfinite(self.start).all() or not 0 < self.mixed <= len(self.start):
                raise InvalidInput("state_start is no row of finite numbers, or mixers_at lies outside of it")
            self._open(contents, observations, actions)
            self._try_step(observations, actions)
        self.written_acting = card.acting
        super().__init__(card, observations, actions, longest, greatest, reaches, acting, renew)
        if self.acting.is_window:
            raise InvalidInput(f"an exported agent has a single step, it cannot act by {self.acting}; pass stream")

    def _prepare(self, contents: Mapping[str, bytes], described: Mapping[str, Any]) -> None:
        """Does what may fail for other reasons than a folder that is not as it was exported.

        Args:
            contents: of the step's files, whose digests are right.
            described: contents of export.json.
        """

    def _open(self, contents: Mapping[str, bytes], observations: Space, actions: Space) -> None:
        """Makes the step of its files' contents, whose digests are right.

        Raises:
            InvalidInput: it is not the one that the card describes.
        """
        raise NotImplementedError

    def _run(self, observation: Packed, reward: Array, state: Array, noise: Array | None = None) -> tuple[Array, Array]:
        """A step of several environments."""
        raise NotImplementedError

    def _image_dtype(self, key: str) -> type[np.generic]:
        """Of a part of an observation, by its key."""
        return np.float32

    def _try_step(self, observations: Space, actions: Space) -> None:
        """Runs the first step of an episode, which shows shapes, and weights by what they compute only.

        Raises:
            InvalidInput: shapes are not those of the card, or the step is not finite.
        """
        shapes = observations.packed_shapes()
        by_key = shapes if isinstance(shapes, dict) else {NUMBERS: shapes}
        arrays = {key: np.zeros((1, *shape), self._image_dtype(key)) for key, shape in by_key.items()}
        observation = arrays if observations.images() else arrays[NUMBERS]
        action, state = self._run(observation, np.zeros(1, dtype=np.float32), self.start[None].copy())
        if action.shape[1:] != actions.shape or state.shape[1:] != self.start.shape:
            raise InvalidInput(f"the step gives actions of shape {action.shape[1:]}, expected {actions.shape}")
        if not (np.isfinite(action).all() and np.isfinite(state).all()):
            raise InvalidInput("the first step gives a NaN or an infinite value")

    def _begin(self, rows: int) -> ActingState:
        return Rows(self._run, self.start, self.mixed, rows)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
