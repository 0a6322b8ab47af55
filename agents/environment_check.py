"""Checks that an agent fits an environment: its spaces, and the wrappers around it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np

from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.bounds import bounds_of
from aaren_rl.data.spaces import Space, differences, space_of
from aaren_rl.errors import InvalidInput

Environment: TypeAlias = gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any]

RESCALING = frozenset(
    {
        "ClipReward",
        "NormalizeObservation",
        "NormalizeReward",
        "RescaleObservation",
        "TransformReward",
        "VecNormalize",
        "VectorEnvNormObs",
        "VectorizeTransformReward",
    }
)
"""Classes of wrappers of Gymnasium, Stable-Baselines3 and Tianshou that change the scale of observations or rewards.
They and their subclasses are known by these names, since the other libraries need not be installed."""

WIDER = 1.5
"""Ratio of an environment's range of actions to the agent's from which on the two hardly mean the same numbers."""


def check(env: Environment, card: AgentCard, observation_space: Space, action_space: Space) -> None:
    """Checks that an agent fits an environment.

    Wrappers are found around environments and vector environments, and inside vector environments of this process; not
    in worker processes.

    Args:
        env: single, or a vector environment of Gymnasium, Stable-Baselines3 or Tianshou.
        card: of the agent.
        observation_space: that the agent expects.
        action_space: of its actions.

    Raises:
        InvalidInput: the environment has other spaces, or a wrapper that the agent's own does not have changes the
            scale of observations, rewards or actions.
    """
    trained = f"this agent was trained on {card.dataset_id}" + (f" for {card.environment}" if card.environment else "")
    _check_spaces(env, observation_space, action_space, trained)
    _check_scale(env, card, trained)
    _check_range(env, card, action_space, trained)


def layers(env: Any) -> Iterator[Any]:
    """An environment and all that it wraps, from the outside to the inside; of a vector environment all rows."""
    yield env
    for name in ("env", "venv"):
        # A simulator may keep something else under this name.
        if hasattr(inner := getattr(env, name, None), "action_space"):
            yield from layers(inner)
            return
    # Tianshou's workers hold the rows.
    rows = getattr(env, "envs", None) or getattr(env, "workers", None)
    for row in rows if isinstance(rows, list | tuple) else ():
        yield from layers(row)


def _check_spaces(env: Environment, observation_space: Space, action_space: Space, trained: str) -> None:
    spaces = _spaces(env)
    try:
        observations, actions = space_of(spaces[0]), space_of(spaces[1], image=False)
    except InvalidInput as error:
        raise InvalidInput(
            f"{error}; the agent expects observations of shape {observation_space.shape} and gives actions of "
            f"shape {action_space.shape}; {trained}"
        ) from error
    if found := differences(observation_space, observations, "observations"):
        raise InvalidInput(
            f"the environment's {'; '.join(found)}; {trained}; make its observations those of the training data"
        )
    if found := differences(action_space, actions, "actions"):
        raise InvalidInput(f"the environment's {'; '.join(found)}; {trained}")
    (low, high), (least, greatest) = bounds_of(action_space), bounds_of(actions)
    if (low < least - 1e-5).any() or (high > greatest + 1e-5).any():
        raise InvalidInput(
            f"the agent gives actions from {low} to {high}, outside the environment's {spaces[1]}; {trained}; wrap the "
            "environment in gymnasium.wrappers.ClipAction to have them clipped"
        )


def _check_scale(env: Environment, card: AgentCard, trained: str) -> None:
    """Refuses wrappers that change the scale of observations or rewards, unless the agent's environment has them."""
    for layer in layers(env):
        name, classes = type(layer).__name__, _class_names(layer)
        if not classes & RESCALING or classes & _recorded_wrappers(card) or _is_switched_off(layer):
            continue
        problem = (
            f"the environment is wrapped in {name}, which changes the scale of observations or rewards; the agent "
            f"scales what the environment itself gives; {trained}"
        )
        if card.environment is not None:
            raise InvalidInput(f"{problem}, without that wrapper; take {name} off{_removal_hint(classes)}")
        warnings.warn(
            f"{problem}; take {name} off unless its data came through it{_removal_hint(classes)}",
            RuntimeWarning,
            stacklevel=4,
        )


def _class_names(layer: Any) -> set[str]:
    """Names of the class of a wrapper and of all its bases."""
    return {base.__name__ for base in type(layer).__mro__}


def _removal_hint(classes: set[str]) -> str:
    """How to remove a wrapper of these classes; empty for most."""
    if "VecNormalize" not in classes:
        return ""
    return (
        ": act in venv.venv, or set venv.norm_obs and venv.norm_reward to False (venv.training = False alone goes on "
        "normalising)"
    )


def _check_range(env: Environment, card: AgentCard, action_space: Space, trained: str) -> None:
    """Refuses actions that a wrapper would rescale, and warns where another environment takes a far wider range."""
    low, high = bounds_of(action_space)
    bounds = bounds_of(space_of(_spaces(env)[1], image=False))
    # In float32 the difference of finite bounds can be infinite.
    width, agents = (np.subtract(*pair, dtype=np.float64) for pair in ((bounds[1], bounds[0]), (high, low)))
    # Without bounds there is no scale that could differ: wrappers that clip have none, for example.
    if not (np.isfinite(width) & (width > WIDER * agents)).any():
        return
    problem = f"the environment takes actions from {bounds[0]} to {bounds[1]}, the agent gives {low} to {high}"
    for layer in layers(env):
        name = type(layer).__name__
        if name != "RescaleAction":
            continue
        inner, outer = (bounds_of(space_of(_spaces(one)[1], image=False)) for one in (layer.env, layer))
        if np.allclose(inner, outer) or _is_recorded(outer, card):
            continue
        problem += f", and RescaleAction makes numbers from {inner[0]} to {inner[1]} of them; {trained}"
        if card.environment is not None:
            raise InvalidInput(f"{problem}, without that wrapper; take RescaleAction off")
        warnings.warn(f"{problem}; take it off unless its data came through it", RuntimeWarning, stacklevel=4)
        return
    rescaled = (
        [] if card.environment is None else [one for one in card.environment.wrappers if one.name == "RescaleAction"]
    )
    if rescaled and not any(type(layer).__name__ == "RescaleAction" for layer in layers(env)):
        raise InvalidInput(
            f"{problem}; {trained}, and the environment lacks {rescaled[0]}; put it around the environment"
        )
    env_id = _environment_id(env)
    same = card.environment is not None and env_id == card.environment.registered_id
    if not same and env_id is not None:
        known = (
            f"it was trained for {card.environment}" if card.environment else "it was trained without an environment"
        )
        warnings.warn(
            f"{problem}; {known}, and the same number may mean another action in {env_id}", RuntimeWarning, stacklevel=4
        )


def _spaces(env: Any) -> tuple[gym.Space[Any], gym.Space[Any]]:
    """Observation and action space of one row."""
    if isinstance(env, gym.vector.VectorEnv):
        return env.single_observation_space, env.single_action_space
    if isinstance(env.action_space, list):
        # Tianshou lists the spaces of all rows, without their wrappers; worker processes hide their rows.
        row = next((layer for layer in layers(env) if isinstance(layer, gym.Env)), None)
        return (env.observation_space[0], env.action_space[0]) if row is None else _spaces(row)
    return env.observation_space, env.action_space


def _environment_id(env: Any) -> str | None:
    """Gymnasium's id of an environment; None where no layer knows it."""
    ids = (getattr(getattr(layer, "spec", None), "id", None) for layer in layers(env))
    return next((one for one in ids if one is not None), None)


def _recorded_wrappers(card: AgentCard) -> set[str]:
    """Names of the wrappers of the environment that the agent was trained for."""
    return set() if card.environment is None else {wrapper.name for wrapper in card.environment.wrappers}


def _is_recorded(bounds: tuple[Any, Any], card: AgentCard) -> bool:
    """True if the agent's own environment has a RescaleAction to these bounds."""
    recorded = () if card.environment is None else card.environment.wrappers
    ranges = [
        (each.kwargs["min_action"], each.kwargs["max_action"]) for each in recorded if each.name == "RescaleAction"
    ]
    return any(np.allclose(low, bounds[0]) and np.allclose(high, bounds[1]) for low, high in ranges)


def _is_switched_off(layer: Any) -> bool:
    """True for a `VecNormalize` that neither normalises observations nor rewards."""
    return "VecNormalize" in _class_names(layer) and not layer.norm_obs and not layer.norm_reward
