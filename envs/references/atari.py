"""Human and random returns of Atari games, and the settings that they are of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.reference import Reference
from aaren_rl.envs.environments import limit_of, registering_package

FRAMES = 108_000
"""Frames after which an episode ends."""
SKIP = 4
"""Frames that an action holds for."""

_PREPROCESSING = "AtariPreprocessing"
_OF_OBSERVATIONS = frozenset(
    {
        "DtypeObservation",
        "FlattenObservation",
        "FrameStackObservation",
        "GrayscaleObservation",
        "RescaleObservation",
        "ReshapeObservation",
        "ResizeObservation",
        "TimeAwareObservation",
    }
)
"""Wrappers that change what is seen, and neither rewards nor ends."""


def game_of(spec: EnvironmentSpec) -> str | None:
    """The game that an id of ale-py's names; None for other ids."""
    found = re.fullmatch(r"ALE/(\w+)-v\d+|(\w+)NoFrameskip-v\d+", spec.registered_id)
    return (found[1] or found[2]) if found and spec.package in (None, "ale_py") else None


def find(
    spec: EnvironmentSpec, game: str, arguments: Mapping[str, Any], table: Mapping[str, Any]
) -> tuple[Reference | None, str]:
    """The reference of a game, and why that one; or none, and what differs.

    Args:
        spec: the environment.
        game: its game.
        arguments: those of the environment, registered ones included.
        table: atari.toml.
    """
    name, returns = table["name"], table["returns"].get(game)
    if registering_package(spec.registered_id) != "ale_py":
        return None, f"none: {spec.registered_id} is not ale-py's"
    if returns is None:
        return None, f"none: the table of human and random Atari returns lacks {game}"
    if differences := _differences(spec, arguments):
        return None, f"none: the table of human and random Atari returns is of other settings: {'; '.join(differences)}"
    return Reference(name, *returns), f"human and random returns of {game} (dqn_zoo's table; 100 is the human's)"


def _differences(spec: EnvironmentSpec, arguments: Mapping[str, Any]) -> list[str]:
    """What an environment does otherwise than the table's, in words."""
    found = []
    preprocessing = [wrapper for wrapper in spec.wrappers if wrapper.name == _PREPROCESSING]
    others = [one.name for one in spec.wrappers if one.name not in {_PREPROCESSING, "TimeLimit", *_OF_OBSERVATIONS}]
    if others or len(preprocessing) > 1:
        found.append(f"no wrapper {', '.join(others) or _PREPROCESSING + ' twice'}")
    if any(wrapper.kwargs.get("terminal_on_life_loss") for wrapper in preprocessing):
        found.append("episodes last all lives")
    repeats = arguments.get("repeat_action_probability", 0.25)
    if repeats != 0:
        found.append(f"repeat_action_probability 0 (here {repeats})")
    frameskip = arguments.get("frameskip", SKIP)
    skip = frameskip if isinstance(frameskip, int) else 0
    for wrapper in preprocessing:
        skip *= wrapper.kwargs.get("frame_skip", SKIP)
    if skip != SKIP:
        found.append(f"{SKIP} frames for each action (here {skip or frameskip})")
    found += [
        f"no {name} (here {arguments[name]})" for name in ("mode", "difficulty", "continuous") if arguments.get(name)
    ]
    steps, frames = limit_of(spec), arguments.get("max_num_frames_per_episode")
    limits = [limit for limit in (steps and steps * SKIP, frames) if limit is not None]
    if min(limits, default=None) != FRAMES:
        found.append(f"{FRAMES} frames for each episode (here {min(limits) if limits else 'no limit'})")
    return found
