import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Sequence, Text, Tuple

from aaren_rl.data.spaces import space_of
from aaren_rl.envs.flattening import FlatObservations, flatten_observations
from aaren_rl.errors import InvalidInput

VECTOR = Box(-1, 1, (3,))
NESTED = Dict([("b", Tuple((Box(0, 1, ()), Box(0, 2, (2, 2))))), ("a", Dict([("z", VECTOR), ("y", Box(0, 1, (1,)))]))])


class Shows(gym.Env):
    """Shows samples of a space."""

    action_space = Box(-1, 1, (1,))

    def __init__(self, space):
        self.observation_space = space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.shown = self.observation_space.sample()
        return self.shown, {}

    def step(self, action):
        return self.reset(seed=3)[0], 0.0, False, False, {}


MIXED = Dict(a=Discrete(3, start=-1), b=MultiDiscrete([2, 4]), c=MultiBinary(2), d=VECTOR)


@pytest.mark.parametrize("space", [Discrete(4), MIXED, MultiDiscrete([[2, 3], [1, 2]])], ids=str)
def test_discrete_parts_are_one_hot_as_gymnasiums(space):
    env = flatten_observations(Shows(space))
    for seed in range(5):
        flat = env.reset(seed=seed)[0]
        np.testing.assert_array_equal(flat, gym.spaces.flatten(space, env.unwrapped.shown))
        assert env.observation_space.contains(flat)


@pytest.mark.parametrize("space", [Box(0, 1, ()), Box(0, 1, (2, 3)), NESTED, Tuple((VECTOR, NESTED))], ids=str)
def test_flat_observations_are_inside_the_flat_space(space):
    env = flatten_observations(Shows(space))
    assert isinstance(env, FlatObservations)
    for show in (lambda: env.reset(seed=1), lambda: env.step([0.0])):
        observation = show()[0]
        assert env.observation_space.contains(observation)
        np.testing.assert_array_equal(observation, space_of(space).flatten(env.unwrapped.shown))


def test_keys_are_sorted_at_every_level():
    env = flatten_observations(Shows(NESTED))
    flat, _ = env.reset(seed=0)
    shown = env.unwrapped.shown
    expected = [shown["a"]["y"], shown["a"]["z"], shown["b"][0].ravel(), shown["b"][1].ravel()]
    np.testing.assert_array_equal(flat, np.concatenate(expected))


@pytest.mark.parametrize("space", [Sequence(VECTOR), Dict({"a": Text(3)}), Tuple((VECTOR, Text(2)))], ids=str)
def test_spaces_that_are_not_made_of_numbers_are_refused(space):
    with pytest.raises(InvalidInput, match="takes observations of numbers"):
        flatten_observations(Shows(space))


def test_vector_observations_are_left_as_they_are():
    env = gym.make("Pendulum-v1")
    assert flatten_observations(env) is env
    env.close()
