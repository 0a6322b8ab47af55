"""What a scripted expert is, and what it plays in an environment."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from aaren_rl.data.trajectories import Floats
from aaren_rl.errors import InvalidInput

Env = gym.Env[Any, Any]


class Policy(Protocol):
    """Acts in one environment, episode after episode. It may look at the environment itself."""

    def reset(self, observation: Any, info: Mapping[str, Any]) -> None:
        """Starts an episode from what the environment's `reset` returned."""
        ...

    def act(self, observation: Any, info: Mapping[str, Any], taken: Any) -> Any:
        """The next action, as the environment takes it.

        Args:
            observation: the last one.
            info: the last one.
            taken: action that the environment took before it, which noise may have changed; None at the first step.
        """
        ...


@dataclass(frozen=True)
class Expert:
    """A scripted expert.

    Attributes:
        name: by which the catalogue and command lines know it.
        package: package on PyPI whose environments it plays; None for Gymnasium's and this project's.
        classes: full names of the environment classes that it plays, or how such names begin.
        make: makes its policy from an environment, a generator of random numbers and arguments by name.
    """

    name: str
    package: str | None
    classes: tuple[str, ...]
    make: Callable[..., Policy]

    def plays(self, env: Env) -> bool:
        """True if an environment is of a class that it plays."""
        names = [f"{base.__module__}.{base.__qualname__}" for base in type(env.unwrapped).__mro__]
        return any(name.startswith(self.classes) for name in names)

    @property
    def arguments(self) -> list[str]:
        """Names of its arguments; every expert takes `noise` too."""
        return [*list(inspect.signature(self.make).parameters)[2:], "noise"]

    def policy(self, env: Env, seed: int | np.random.SeedSequence, noise: float = 0.0, **arguments: Any) -> Policy:
        """Its policy in an environment.

        Args:
            env: with any wrappers that leave actions as they are.
            seed: of its random choices.
            noise: share of actions that are drawn at random, for discrete actions; for a Box, the standard deviation of
                normal noise in halves of the actions' range.
            **arguments: of the expert.

        Raises:
            InvalidInput: it does not play this environment, or an argument is unknown or does not serve.
        """
        if not self.plays(env):
            raise InvalidInput(
                f"the expert {self.name} does not play {_name(env)}; it plays {', '.join(self.classes)}; name another "
                "expert, or the environment that it is for"
            )
        for name in arguments:
            if name not in self.arguments:
                raise InvalidInput(
                    f"the expert {self.name} has no argument {name}; expected {', '.join(self.arguments)}"
                )
        if isinstance(noise, bool) or not isinstance(noise, int | float) or not 0 <= noise <= 1:
            raise InvalidInput(f"noise is {noise!r}; expected a number from 0 to 1")
        acting, disturbing = np.random.SeedSequence(_entropy(seed)).spawn(2)
        policy = self.make(env, np.random.default_rng(acting), **arguments)
        return Noisy(policy, env.action_space, noise, np.random.default_rng(disturbing)) if noise else policy


class Noisy:
    """A policy with noise on its actions; see `Expert.policy`.

    Raises:
        InvalidInput: the actions are neither discrete nor a Box with bounds.
    """

    def __init__(self, policy: Policy, space: gym.Space[Any], noise: float, rng: np.random.Generator) -> None:
        bounded = isinstance(space, gym.spaces.Box) and space.is_bounded()
        if not bounded and not isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
            raise InvalidInput(f"actions in {space} take no noise; leave the noise out")
        self.policy, self.space, self.noise, self.rng = policy, seeded(space, rng), noise, rng

    def reset(self, observation: Any, info: Mapping[str, Any]) -> None:
        """See `Policy`."""
        self.policy.reset(observation, info)

    def act(self, observation: Any, info: Mapping[str, Any], taken: Any) -> Any:
        """See `Policy`."""
        action = self.policy.act(observation, info, taken)
        if isinstance(self.space, gym.spaces.Box):
            half = (self.space.high - self.space.low) / 2
            noisy = action + self.noise * half * self.rng.standard_normal(self.space.shape)
            return np.clip(noisy, self.space.low, self.space.high).astype(self.space.dtype)
        return self.space.sample() if self.rng.random() < self.noise else action


class Random:
    """Random actions in any space."""

    def __init__(self, env: Env, rng: np.random.Generator) -> None:
        self.space = seeded(env.action_space, rng)

    def reset(self, observation: Any, info: Mapping[str, Any]) -> None:
        """See `Policy`."""

    def act(self, observation: Any, info: Mapping[str, Any], taken: Any) -> Any:
        """See `Policy`."""
        return self.space.sample()


def game_of(env: Env) -> Any:
    """The environment below all wrappers, whose own attributes no type knows."""
    return env.unwrapped


def within(values: Any, least: float = -1.0, greatest: float = 1.0) -> Floats:
    """Numbers clipped to an action's bounds, as float32."""
    clipped: Floats = np.clip(values, least, greatest).astype(np.float32)
    return clipped


def seeded(space: gym.Space[Any], rng: np.random.Generator) -> gym.Space[Any]:
    """A copy of a space whose samples follow a generator's next number."""
    copied = copy.deepcopy(space)
    copied.seed(int(rng.integers(2**31)))
    return copied


def _entropy(seed: int | np.random.SeedSequence) -> Any:
    return seed.generate_state(4).tolist() if isinstance(seed, np.random.SeedSequence) else seed


def _name(env: Env) -> str:
    owner = type(env.unwrapped)
    known = f"{env.spec.id}, of the class " if env.spec else ""
    return f"{known}{owner.__module__}.{owner.__qualname__}"
