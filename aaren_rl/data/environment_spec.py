"""An environment in words that JSON can hold, as a dataset records it and as an agent's folder keeps it."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aaren_rl.errors import InvalidInput


@dataclass(frozen=True)
class Wrapper:
    """A wrapper around an environment.

    Attributes:
        name: of its class in `gymnasium.wrappers`, in those of a package of `aaren_rl.envs.packages`, or of one of this
            project's (`aaren_rl.envs.wrappers`).
        kwargs: its arguments beside the environment.
    """

    name: str
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.kwargs.items())})"


@dataclass(frozen=True)
class EnvironmentSpec:
    """An environment's name, arguments, time limit and wrappers.

    Attributes:
        id: Gymnasium id, version included; "package:Id" names the package that registers it when it is imported.
        kwargs: arguments of the environment's class.
        max_episode_steps: steps after which an episode is truncated; None for the limit that the id is registered with.
        wrappers: from the innermost to the outermost.
    """

    id: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    max_episode_steps: int | None = None
    wrappers: tuple[Wrapper, ...] = ()

    def __post_init__(self) -> None:
        # Lists from JSON would not compare.
        object.__setattr__(self, "wrappers", tuple(self.wrappers))
        if "max_episode_steps" in self.kwargs:
            # `gymnasium.make` takes the limit among the arguments; here it has one place.
            kwargs = dict(self.kwargs)
            limit = kwargs.pop("max_episode_steps")
            object.__setattr__(self, "kwargs", kwargs)
            object.__setattr__(self, "max_episode_steps", self.max_episode_steps or limit)
        limit = self.max_episode_steps
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise InvalidInput(f"max_episode_steps is {limit!r}; expected a whole number from 1, or None")

    @property
    def package(self) -> str | None:
        """The package that registers the id when it is imported; None if the id names none."""
        package, colon, _ = self.id.rpartition(":")
        return package if colon else None

    @property
    def registered_id(self) -> str:
        """The id without its package."""
        return self.id.rpartition(":")[2]

    def to_json(self) -> dict[str, Any]:
        """The spec in JSON's types."""
        return {
            "id": self.id,
            "kwargs": self.kwargs,
            "max_episode_steps": self.max_episode_steps,
            "wrappers": [{"name": wrapper.name, "kwargs": wrapper.kwargs} for wrapper in self.wrappers],
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> EnvironmentSpec:
        """Reads what `to_json` wrote.

        Raises:
            InvalidInput: it is something else.
        """
        try:
            wrappers = tuple(Wrapper(str(one["name"]), _arguments(one["kwargs"])) for one in saved["wrappers"])
            if not isinstance(saved["id"], str):
                raise TypeError(f"id {saved['id']!r}; expected a text")
            return cls(saved["id"], _arguments(saved["kwargs"]), saved["max_episode_steps"], wrappers)
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(
                f"an environment is saved as {reprlib.repr(saved)}: {error!r}; expected id, kwargs, max_episode_steps "
                "and wrappers"
            ) from error

    def __str__(self) -> str:
        parts = [self.id]
        parts += [f"{name}={json.dumps(value)}" for name, value in self.kwargs.items()]
        parts += [] if self.max_episode_steps is None else [f"limit {self.max_episode_steps} steps"]
        parts += [str(wrapper) for wrapper in self.wrappers]
        return ", ".join(parts)


def file_arguments(arguments: Mapping[str, Any]) -> list[str]:
    """Names of arguments that name a file or an address, which only a user may choose, never a file."""
    return [name for name, value in arguments.items() if _names_file(value)]


def _names_file(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_names_file, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_names_file, value))
    # A bare name, as "ant.xml", is one of the environment's own.
    return isinstance(value, str) and (value.startswith((".", "~")) or any(mark in value for mark in "/\\:"))


def _arguments(saved: Any) -> dict[str, Any]:
    if not isinstance(saved, Mapping) or not all(isinstance(name, str) for name in saved):
        raise TypeError(f"arguments {saved!r}; expected an object")
    return dict(saved)
