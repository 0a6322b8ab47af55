"""Makes Gymnasium environments: without warnings of the physics, several in a batch."""

from __future__ import annotations

import functools
import importlib
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.spaces import Space, TextSpace, space_of
from aaren_rl.envs import packages
from aaren_rl.envs.memory import ENTRY_POINTS
from aaren_rl.envs.vector import RestingVectorEnv
from aaren_rl.envs.wrappers import clipped_action_space, wrap
from aaren_rl.errors import AarenError, InvalidInput, unknown_name

_making = threading.Lock()

for _id, _entry_point in ENTRY_POINTS.items():
    gym.register(_id, _entry_point)


class RenderingUnavailable(AarenError):
    """No off-screen renderer works on this machine."""


@dataclass(frozen=True)
class Description:
    """What an environment says of itself.

    Attributes:
        observation_space: of its observations.
        action_space: of its actions; where a wrapper clips them, the space that it clips to.
        clips_actions: True if a wrapper clips them.
        limit: steps after which Gymnasium truncates an episode; None for no such limit.
        limits_itself: True if the environment limits its episodes itself (see `limits_itself`).
        recorded: Gymnasium's record of the environment, for datasets.
    """

    observation_space: Space
    action_space: Space
    clips_actions: bool
    limit: int | None
    limits_itself: bool
    recorded: EnvSpec | None


def environment_of(card: AgentCard) -> EnvironmentSpec:
    """The environment that an agent was trained for.

    Raises:
        InvalidInput: it was trained without one.
    """
    if card.environment is None:
        raise InvalidInput(
            f"this agent was trained on {card.dataset_id} without an environment; name one with --env-id, as "
            "--env-id Hopper-v5"
        )
    return card.environment


def import_packages(names: Iterable[str]) -> None:
    """Imports packages that register environments. To be called with names that the user gave, never with data's.

    Raises:
        InvalidInput: one cannot be imported.
    """
    for package in names:
        try:
            importlib.import_module(package)
        except Exception as error:
            hint = "" if packages.is_installed(package) else "; install it, or put its folder on PYTHONPATH"
            raise InvalidInput(f"the package {package} cannot be imported: {error!r}{hint}") from error


def registered_limit(env_id: str) -> int | None:
    """Steps after which Gymnasium truncates episodes of an id; None for no limit, or an id that is not registered."""
    registered = gym.registry.get(env_id)
    return registered.max_episode_steps if registered else None


def limit_of(spec: EnvironmentSpec) -> int | None:
    """Steps after which Gymnasium truncates episodes, by the spec, a wrapper or the id; None for no such limit.

    An environment may limit its episodes itself nevertheless: see `limits_itself`.
    """
    limits = [wrapper.kwargs.get("max_episode_steps") for wrapper in spec.wrappers if wrapper.name == "TimeLimit"]
    own = spec.max_episode_steps or registered_limit(spec.registered_id)
    return min((limit for limit in (*limits, own) if limit is not None), default=None)


OWN_PACKAGES = frozenset({"gymnasium", "aaren_rl"})
"""Packages whose ids need no package before them."""

OWN_LIMITS = ("max_steps", "max_episode_steps", "max_episode_length", "episode_length", "max_path_length")
"""Attributes by which environments of any package say after how many steps they truncate an episode.

The number itself is not relied on: BabyAI's changes with every reset, and some of popgym count one step more.
"""


def limits_itself(spec: EnvironmentSpec, env: gym.Env[Any, Any] | None = None) -> bool:
    """True if an environment limits its episodes itself: its package says so, or an attribute of `OWN_LIMITS`.

    Args:
        spec: of the environment.
        env: the environment itself, whose attributes tell; None where its package alone may tell.
    """
    package = _known_package(spec)
    if package is not None and package.limits is not None:
        return re.match(package.limits, spec.registered_id) is not None
    return env is not None and _says_limit(env)


def _says_limit(env: gym.Env[Any, Any]) -> bool:
    values = [getattr(env.unwrapped, name, None) for name in OWN_LIMITS]
    return any(isinstance(value, int | float | np.number) and 0 < value < np.inf for value in values)


def time_limit(spec: EnvironmentSpec) -> str:
    """What limits the episodes of an environment, in words, as results hold it; no environment is made to tell."""
    limit = limit_of(spec)
    if limit is not None:
        return f"{limit} steps"
    return "set by the environment" if limits_itself(spec) else "none known"


def registering_package(env_id: str) -> str | None:
    """The package whose class an id is registered with; None for an id that is not registered."""
    registered = gym.registry.get(env_id)
    if registered is None:
        return None
    entry = registered.entry_point
    module = entry if isinstance(entry, str) else getattr(entry, "__module__", "")
    return module.partition(":")[0].partition(".")[0]


def is_own(spec: EnvironmentSpec) -> bool:
    """True if a spec means an environment of Gymnasium's or of this project's, and nothing has taken its id."""
    registered = registering_package(spec.registered_id)
    return spec.package in (None, *OWN_PACKAGES) and (registered is None or registered in OWN_PACKAGES)


def is_special(spec: EnvironmentSpec) -> bool:
    """True if an environment is more than its id: if it has arguments, wrappers or a time limit of its own."""
    usual = spec.max_episode_steps in (None, registered_limit(spec.registered_id))
    return bool(spec.kwargs or spec.wrappers or not usual or not is_own(spec))


def make(spec: EnvironmentSpec, **more: Any) -> gym.Env[Any, Any]:
    """Makes an environment whose spaces agents can take.

    Args:
        spec: its name, arguments, time limit and wrappers.
        **more: further arguments of `gymnasium.make`, as `render_mode`.

    Raises:
        InvalidInput: the id is not registered, the environment cannot be made, or it has a space that no agent takes.
    """
    env = _make(spec, **more)
    try:
        space_of(env.observation_space)
    except InvalidInput as error:
        env.close()
        raise InvalidInput(f"environment {spec.id} has observations that do not serve: {error}") from error
    try:
        actions = space_of(env.action_space, image=False)
        if any(isinstance(part.space, TextSpace) for part in actions.parts()):
            raise InvalidInput("texts; agents act in Box, Discrete, MultiDiscrete, MultiBinary, and parts of such")
    except InvalidInput as error:
        env.close()
        raise InvalidInput(f"environment {spec.id} has actions that do not serve: {error}") from error
    return env


def describe(spec: EnvironmentSpec) -> Description:
    """The spaces of an environment and Gymnasium's record of it.

    Raises:
        InvalidInput: it cannot be made, as `make`.
    """
    env = make(spec)
    try:
        acted = clipped_action_space(env)
        return Description(
            observation_space=space_of(env.observation_space),
            action_space=space_of(acted, image=False),
            clips_actions=acted != env.action_space,
            limit=env.spec.max_episode_steps if env.spec else None,
            limits_itself=limits_itself(spec, env),
            recorded=env.spec,
        )
    finally:
        env.close()


def _make(spec: EnvironmentSpec, **more: Any) -> gym.Env[Any, Any]:
    _silence_mujoco()
    register(spec)
    own = {} if spec.max_episode_steps is None else {"max_episode_steps": spec.max_episode_steps}
    try:
        # Warning filters belong to the process, and several threads make environments.
        with _making, warnings.catch_warnings():
            # D4RL's data come from v2 environments; v4, the nearest that still runs, is out of date on purpose.
            warnings.filterwarnings("ignore", message=".*is out of date.*")
            env = gym.make(spec.registered_id, disable_env_checker=True, **{**spec.kwargs, **own, **more})
    except Exception as error:  # An environment's constructor is anyone's code.
        raise InvalidInput(f"environment {spec} cannot be made: {error!r}{packages.advice(spec)}") from error
    try:
        return wrap(env, spec)
    except InvalidInput:
        env.close()
        raise


def register(spec: EnvironmentSpec) -> None:
    """Makes sure that an id is registered, and imports its package if that is known.

    Raises:
        InvalidInput: the id is not registered; the message says what to install or to import.
    """
    package = spec.package
    if _is_meant(spec):
        return
    known = _known_package(spec)
    if known is not None:
        packages.import_package(known, spec.registered_id)
        package = package or known.module
    elif package is not None and package not in sys.modules:
        missing = "" if packages.is_installed(package) else ", which is not installed here,"
        raise InvalidInput(
            f"environment {spec.registered_id} is of the package {package}{missing} and not registered; packages are "
            f"imported only where you name them: pass --import {package} (in Python: import {package} first)"
        )
    if spec.registered_id in gym.registry and not _is_meant(spec):
        raise InvalidInput(
            f"environment {spec.registered_id} is of {package}, and registered with a class of "
            f"{registering_package(spec.registered_id)}: it is another one; import what registers that of {package}, "
            "or name another environment with --env-id"
        )
    if spec.registered_id not in gym.registry:
        by = "one of yours is known once its package is imported, with --import PACKAGE or as package:Id"
        by = f"{package} does not register it" if package else by
        # An extra of its own may be missing.
        by += f"; {known.how}" if known is not None and "[" in known.install[0] else ""
        unknown = str(unknown_name("environment", spec.registered_id, gym.registry))
        raise InvalidInput(f"{unknown}{' ' if unknown.endswith('?') else '; '}{by}")


def _known_package(spec: EnvironmentSpec) -> packages.Package | None:
    """The package of the list that an environment needs; None if the list has none."""
    return packages.needed(spec.registered_id, None if spec.package in OWN_PACKAGES else spec.package)


def _is_meant(spec: EnvironmentSpec) -> bool:
    """True if a spec's id is registered, and not with Gymnasium's class where a package is named."""
    registered = registering_package(spec.registered_id)
    # A package may register classes of its others.
    foreign = spec.package is not None and spec.package not in OWN_PACKAGES
    return registered is not None and not (foreign and registered in OWN_PACKAGES)


def make_vector(spec: EnvironmentSpec, num_envs: int, processes: int = 1) -> RestingVectorEnv:
    """Makes several copies of an environment, in this process or in worker processes (see `RestingVectorEnv`).

    Raises:
        InvalidInput: an environment cannot be made, as `make`.
        EpisodeFailed: it cannot be made so many times, or fails otherwise.
    """
    return RestingVectorEnv(functools.partial(make, spec), num_envs, processes, spec.id)


def make_for_video(spec: EnvironmentSpec) -> gym.Env[Any, Any]:
    """Makes an environment that renders frames.

    Raises:
        RenderingUnavailable: no renderer works on this machine; the message names what to install or to set.
    """
    if "MUJOCO_GL" not in os.environ and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ["MUJOCO_GL"] = "egl"
    try:
        env = make(spec, render_mode="rgb_array")
        env.reset(seed=0)
        env.render()
    except AarenError:
        raise
    except Exception as error:
        raise _no_renderer(error) from error
    return env


def _no_renderer(error: Exception) -> RenderingUnavailable:
    return RenderingUnavailable(
        f"nothing can be rendered with MUJOCO_GL={os.environ.get('MUJOCO_GL', 'glfw')}: {error}; set MUJOCO_GL=egl "
        "(GPU drivers, or Debian's libegl1) or MUJOCO_GL=osmesa (Debian and Ubuntu: apt install libosmesa6)"
    )


def _silence_mujoco() -> None:
    """Keeps MuJoCo from writing its warnings to stderr and into a MUJOCO_LOG.TXT in the working directory."""
    try:
        import mujoco
    except ImportError:
        return
    except Exception as error:
        # MuJoCo loads the renderer that MUJOCO_GL names when it is imported.
        raise _no_renderer(error) from error
    # Gymnasium's model files use an attribute that MuJoCo 4 reports as deprecated, once for every environment.
    mujoco.set_mju_user_warning(_route_warning)


def _route_warning(message: str | bytes) -> None:
    text = message.decode(errors="replace") if isinstance(message, bytes) else str(message)
    if "settotalmass" not in text:
        warnings.warn(f"MuJoCo: {text}", RuntimeWarning, stacklevel=2)
