"""Wrappers of environments: which of those that data record are built again, left out, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium as gym

from aaren_rl.data.environment_spec import EnvironmentSpec, Wrapper
from aaren_rl.envs import packages
from aaren_rl.envs.goal_observation import GoalObservation
from aaren_rl.errors import DataError, InvalidInput

REBUILT = frozenset(
    {
        "AtariPreprocessing",
        "ClipAction",
        "ClipReward",
        "DelayObservation",
        "DiscretizeAction",
        "DiscretizeObservation",
        "DtypeObservation",
        "FilterObservation",
        "FlattenObservation",
        "FrameStackObservation",
        "GrayscaleObservation",
        "MaxAndSkipObservation",
        "RepeatAction",
        "RescaleAction",
        "RescaleObservation",
        "ReshapeObservation",
        "ResizeObservation",
        "StickyAction",
        "TimeAwareObservation",
        "TimeLimit",
    }
)
"""Wrappers of `gymnasium.wrappers` that their recorded arguments determine."""

OWN: dict[str, type[gym.Wrapper[Any, Any, Any, Any]]] = {"GoalObservation": GoalObservation}
"""Wrappers of this project by name."""

WITHOUT_EFFECT = frozenset(
    {
        "AddWhiteNoise",
        "DataCollector",
        "HumanRendering",
        "Monitor",
        "ObstructView",
        "OrderEnforcing",
        "PassiveEnvChecker",
        "RecordEpisodeStatistics",
        "RecordVideo",
        "RenderCollection",
    }
)
"""Wrappers that record, render or check, and change nothing that an agent sees, does or earns."""

_REASONS = {
    "NormalizeObservation": "its running statistics are not recorded",
    "NormalizeReward": "its running statistics are not recorded",
    "Autoreset": "roll-outs begin new episodes by themselves",
    "TransformAction": "it calls a function, and data may not say which code to run",
    "TransformObservation": "it calls a function, and data may not say which code to run",
    "TransformReward": "it calls a function, and data may not say which code to run",
}


class Recorded(NamedTuple):
    """A wrapper as Gymnasium records it.

    Attributes:
        name: of its class.
        entry_point: of its class, as "gymnasium.wrappers.common:TimeLimit"; it is compared and never imported.
        kwargs: its arguments; None where they are not recorded.
    """

    name: str
    entry_point: str
    kwargs: dict[str, Any] | None


def rebuildable(wrappers: Sequence[Recorded], where: str) -> tuple[Wrapper, ...]:
    """The wrappers that a dataset records, less those without effect.

    Args:
        wrappers: from the innermost to the outermost.
        where: name of the dataset, for messages.

    Raises:
        DataError: one of them cannot be built again.
    """
    found = []
    for name, entry_point, kwargs in wrappers:
        package = entry_point.partition(".")[0]
        if name in WITHOUT_EFFECT and package in ("gymnasium", "minari", "stable_baselines3"):
            continue
        if kwargs is None and packages.takes_no_arguments(package, name):
            kwargs = {}
        listed = (name in REBUILT and package == "gymnasium") or (name in OWN and package == "aaren_rl")
        if not (listed or packages.has_wrapper(package, name)) or kwargs is None:
            reason = _REASONS.get(
                name, "it is none of those of Gymnasium's or minigrid's that are known to follow from their arguments"
            )
            raise DataError(
                f"{where} was recorded through the wrapper {name}, which cannot be built again: {reason}; act in an "
                "environment that has it already (register one and name it with --env-id package:Id), or train without "
                "roll-outs (--env-id none)"
            )
        found.append(Wrapper(name, kwargs))
    return tuple(found)


def wrap(env: gym.Env[Any, Any], spec: EnvironmentSpec) -> gym.Env[Any, Any]:
    """The environment inside its spec's wrappers.

    Raises:
        InvalidInput: a wrapper is unknown, or refuses its arguments or the environment.
    """
    for wrapper in spec.wrappers:
        known = sorted({*REBUILT, *OWN, *packages.wrapper_names()})
        if wrapper.name not in known:
            raise InvalidInput(f"unknown wrapper {wrapper.name}; expected one of {', '.join(known)}")
        class_ = OWN.get(wrapper.name)
        if class_ is None:
            of_gymnasium = wrapper.name in REBUILT
            class_ = getattr(gym.wrappers, wrapper.name) if of_gymnasium else packages.wrapper_class(wrapper.name)
        try:
            env = class_(env, **wrapper.kwargs)
        except Exception as error:  # A wrapper checks its arguments in its own ways.
            raise InvalidInput(f"{wrapper} cannot be put around {spec.id}: {error!r}") from error
    return env


def clipped_action_space(env: gym.Env[Any, Any]) -> gym.Space[Any]:
    """The space that actions end up in: where the outermost wrapper of actions clips them, the space it clips to."""
    while isinstance(env, gym.Wrapper):
        if isinstance(env, gym.wrappers.ClipAction):
            return env.env.action_space
        if env.action_space != env.env.action_space:
            break
        env = env.env
    return env.action_space
