"""Makes Gymnasium environments: flat observations, no warnings of the physics, several in a batch."""

from __future__ import annotations

import functools
import os
import threading
import warnings
from dataclasses import dataclass, field
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.spaces import Box, space_of
from aaren_rl.envs.flattening import flatten_observations
from aaren_rl.envs.memory import MEMORY_CHAIN, T_MAZE
from aaren_rl.envs.repeat_previous import REPEAT_PREVIOUS
from aaren_rl.envs.vector import RestingVectorEnv
from aaren_rl.errors import AarenError, InvalidInput, unknown_name

_making = threading.Lock()

for _id, _entry_point in (
    (T_MAZE, "aaren_rl.envs.memory:PassiveTMaze"),
    (MEMORY_CHAIN, "aaren_rl.envs.memory:MemoryChain"),
    (REPEAT_PREVIOUS, "aaren_rl.envs.repeat_previous:RepeatPrevious"),
):
    gym.register(_id, _entry_point)


class RenderingUnavailable(AarenError):
    """No off-screen renderer works on this machine."""


@dataclass(frozen=True)
class EnvironmentSpec:
    """An environment's name and arguments, in types that JSON can hold.

    Attributes:
        id: Gymnasium id, version included.
        kwargs: arguments of `gymnasium.make`.
    """

    id: str
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Description:
    """What an environment says of itself.

    Attributes:
        observation_space: of the flat observations that `make` gives.
        action_space: of its actions.
        recorded: Gymnasium's record of the environment, for datasets.
    """

    observation_space: Box
    action_space: Box
    recorded: EnvSpec | None


def environment_of(card: AgentCard) -> EnvironmentSpec:
    """The environment that an agent was trained for.

    Raises:
        InvalidInput: it was trained without one.
    """
    if card.env_id is None:
        raise InvalidInput(
            f"this agent was trained on {card.dataset_id} without an environment; name one with --env-id, as "
            "--env-id Hopper-v5"
        )
    return EnvironmentSpec(card.env_id, card.env_kwargs)


def make(spec: EnvironmentSpec, **more: Any) -> gym.Env[np.ndarray, np.ndarray]:
    """Makes an environment with flat Box observations and Box actions.

    Args:
        spec: its name and arguments.
        **more: further arguments of `gymnasium.make`, as `render_mode`.

    Raises:
        InvalidInput: the id is not registered, the environment cannot be made, its observations cannot be flattened,
            or its actions are not a Box.
    """
    _silence_mujoco()
    if spec.id not in gym.registry:
        raise InvalidInput(
            f"{unknown_name('environment', spec.id, gym.registry)}; one of yours is known once the module that "
            "registers it is imported"
        )
    try:
        # Warning filters belong to the process, and several threads make environments.
        with _making, warnings.catch_warnings():
            # D4RL's data come from v2 environments; v4, the nearest that still runs, is out of date on purpose.
            warnings.filterwarnings("ignore", message=".*is out of date.*")
            env = gym.make(spec.id, disable_env_checker=True, **{**spec.kwargs, **more})
    except (gym.error.Error, ImportError, TypeError, AttributeError) as error:
        raise InvalidInput(f"environment {spec.id} cannot be made with {spec.kwargs | more}: {error}") from error
    if not isinstance(env.action_space, gym.spaces.Box):
        given = type(env.action_space).__name__
        env.close()
        raise InvalidInput(f"environment {spec.id} has {given} actions; this agent needs a Box (continuous actions)")
    try:
        return flatten_observations(env)
    except InvalidInput as error:
        env.close()
        raise InvalidInput(f"environment {spec.id} has observations that do not serve: {error}") from error


def describe(spec: EnvironmentSpec) -> Description:
    """The spaces of an environment and Gymnasium's record of it.

    Raises:
        InvalidInput: it cannot be made, as `make`.
    """
    env = make(spec)
    try:
        # `make` gives no others.
        return Description(cast(Box, space_of(env.observation_space)), cast(Box, space_of(env.action_space)), env.spec)
    finally:
        env.close()


def make_vector(spec: EnvironmentSpec, num_envs: int, processes: int = 0) -> RestingVectorEnv:
    """Makes several copies of an environment, in this process or in worker processes (see `RestingVectorEnv`).

    Raises:
        InvalidInput: an environment cannot be made, as `make`.
        EpisodeFailed: it cannot be made so many times, or fails otherwise.
    """
    return RestingVectorEnv(functools.partial(make, spec), num_envs, processes, spec.id)


def make_for_video(spec: EnvironmentSpec) -> gym.Env[np.ndarray, np.ndarray]:
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
