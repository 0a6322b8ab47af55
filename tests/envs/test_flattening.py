import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Sequence, Tuple
from gymnasium.vector.utils import create_empty_array

from aaren_rl.envs.flattening import flat_space, flat_values, flatten_observations, is_continuous
from aaren_rl.errors import InvalidInput

VECTOR = Box(-1, 1, (3,))
NESTED = Dict({"b": Tuple((Box(0, 1, ()), Box(0, 2, (2, 2)))), "a": Dict({"z": VECTOR, "y": Box(0, 1, (1,))})})


def test_only_spaces_that_end_in_boxes_are_continuous():
    assert all(map(is_continuous, (VECTOR, Box(0, 1, (2, 3)), NESTED, Tuple((VECTOR, NESTED)))))
    mixed = Dict({"a": VECTOR, "b": Tuple((VECTOR, Discrete(2)))})
    assert not any(map(is_continuous, (Discrete(3), MultiBinary(2), mixed, Sequence(VECTOR))))


@pytest.mark.parametrize("space", [VECTOR, Box(0, 1, ()), Box(0, 1, (2, 3)), NESTED, Tuple((VECTOR, NESTED))], ids=str)
def test_flat_values_are_gymnasiums_step_by_step(space):
    space.seed(0)
    steps = [space.sample() for _ in range(5)]
    stored = gym.vector.utils.concatenate(space, steps, create_empty_array(space, 5))
    flat = flat_values(space, stored)
    np.testing.assert_array_equal(flat, [gym.spaces.flatten(space, step) for step in steps])
    assert flat_space(space).shape == flat.shape[1:]
    assert flat_space(space) == gym.spaces.flatten_space(space)


def test_spaces_without_a_flat_form_are_refused():
    with pytest.raises(InvalidInput, match="Sequence.* cannot be flattened"):
        flat_space(Sequence(VECTOR))
    with pytest.raises(InvalidInput, match=r"Discrete\(3\) is not made of Boxes"):
        flat_values(Dict({"a": Discrete(3)}), {"a": np.zeros(4)})


def test_vector_observations_are_left_as_they_are():
    env = gym.make("Pendulum-v1")
    assert flatten_observations(env) is env
    env.close()
