"""What a user says of the environment to act in, on top of what data or an agent say of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aaren_rl.data.environment_spec import EnvironmentSpec, file_arguments
from aaren_rl.envs.environments import import_packages, registering_package
from aaren_rl.errors import InvalidInput

NONE = "none"
"""In place of an id: no environment, so nothing is rolled out."""


@dataclass(frozen=True)
class EnvironmentChoice:
    """The user's part of an environment's description.

    Attributes:
        id: Gymnasium id, or "package:Id"; `NONE` for no environment; None for the one that
            data or agent name.
        kwargs: arguments that replace those of the same name.
        horizon: steps after which an episode is truncated; None for the limit of data or agent.

    Raises:
        InvalidInput: the horizon is below 1, or something is said of no environment.
    """

    id: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    horizon: int | None = None

    def __post_init__(self) -> None:
        if self.horizon is not None and self.horizon < 1:
            raise InvalidInput(f"horizon is {self.horizon}; expected at least 1 step")
        if self.is_none and self.kwargs:
            raise InvalidInput(f"arguments {self.kwargs} for no environment; leave out --env-kwargs or --env-id {NONE}")

    @classmethod
    def of_options(
        cls,
        env_id: str | None = None,
        env_kwargs: Sequence[str] = (),
        horizon: int | None = None,
        imports: Sequence[str] = (),
    ) -> EnvironmentChoice:
        """The choice that the options of a command line describe; imports the packages that they name.

        Args:
            env_id: --env-id.
            env_kwargs: --env-kwargs, each as NAME=VALUE with a value in JSON, or else a string.
            horizon: --horizon.
            imports: --import.

        Raises:
            InvalidInput: a package cannot be imported, or an argument is no NAME=VALUE.
        """
        import_packages(imports)
        return cls(env_id, dict(map(parse_argument, env_kwargs)), horizon)

    @property
    def is_none(self) -> bool:
        """True if there is to be no environment."""
        return self.id == NONE

    @property
    def names_one(self) -> bool:
        """True if it names an environment by itself."""
        return self.id is not None and not self.is_none

    def over(self, known: EnvironmentSpec | None) -> EnvironmentSpec | None:
        """The environment to act in.

        Args:
            known: what data or agent say, in which no argument may name a file; its arguments, limit and wrappers stay
                where the id is the same.

        Raises:
            InvalidInput: an argument that the user did not give names a file, or there are arguments or a horizon
                without an environment that they are for.
        """
        if self.is_none:
            return None
        spec = known
        if self.id is not None:
            same = known is not None and known.registered_id == self.id.rpartition(":")[2]
            # An id that only the package of what is known would register means that one.
            unknown = ":" not in self.id and registering_package(self.id) is None
            if known and same:
                spec = known if unknown else dataclasses.replace(known, id=self.id)
            else:
                spec = EnvironmentSpec(self.id)
        if spec is None:
            if self.kwargs:
                raise InvalidInput(f"arguments {self.kwargs} for no known environment; name one with --env-id")
            return None
        if names := [name for name in file_arguments(spec.kwargs) if name not in self.kwargs]:
            raise InvalidInput(
                f"{spec} has the argument {names[0]}, which names a file; only you may say which file to read: pass "
                f"--env-kwargs {names[0]}=FILE"
            )
        limit = spec.max_episode_steps if self.horizon is None else self.horizon
        return dataclasses.replace(spec, kwargs=spec.kwargs | self.kwargs, max_episode_steps=limit)


def parse_argument(text: str, option: str = "--env-kwargs") -> tuple[str, Any]:
    """Name and value of an argument written NAME=VALUE, with a value in JSON, or else a string.

    Args:
        text: the argument.
        option: that it was given with, for messages.

    Raises:
        InvalidInput: it is written otherwise.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise InvalidInput(f"{option} {text}; expected NAME=VALUE, as {option} size=8 or {option} random=true")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
