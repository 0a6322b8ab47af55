import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Sequence
from gymnasium.vector import AutoresetMode

from aaren_rl.data import spaces
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.envs.environments import describe, make, make_vector
from aaren_rl.errors import InvalidInput

PARTS = Dict([("b", Box(-1, 1, (2, 2), np.float64)), ("a", Box(-1, 1, (3,), np.float64)), ("c", Box(0, 2, ()))])


class Parts(gym.Env):
    observation_space = PARTS
    action_space = Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


@pytest.fixture
def parts():
    gym.register("tests/Parts-v0", Parts)
    yield EnvironmentSpec("tests/Parts-v0")
    del gym.registry["tests/Parts-v0"]


def test_unknown_id_gives_a_near_match():
    with pytest.raises(InvalidInput, match=r"unknown environment 'Hoper-v5'; did you mean .*'Hopper-v5'"):
        make(EnvironmentSpec("Hoper-v5"))


def test_discrete_actions_are_refused():
    with pytest.raises(InvalidInput, match=r"CartPole-v1 has Discrete actions.*Box"):
        make(EnvironmentSpec("CartPole-v1"))


def test_unknown_argument_is_named():
    with pytest.raises(InvalidInput, match=r'Hopper-v5, colour="red" cannot be made: .*colour'):
        make(EnvironmentSpec("Hopper-v5", {"colour": "red"}))


def test_environment_that_needs_mujoco_py_says_so():
    with pytest.raises(InvalidInput, match=r"Hopper-v2 cannot be made"):
        make(EnvironmentSpec("Hopper-v2"))


def test_ant_with_contact_forces_has_the_observations_of_d4rl():
    env = make(EnvironmentSpec("Ant-v4", {"use_contact_forces": True}))
    assert env.observation_space.shape == env.reset(seed=0)[0].shape == (111,)
    env.close()


def test_nested_observations_are_flattened_in_the_order_of_their_keys(parts):
    env = make(parts)
    assert env.observation_space.shape == (3 + 4 + 1,)
    flat, _ = env.reset(seed=5)
    plain, _ = Parts().reset(seed=5)
    np.testing.assert_array_equal(flat, np.concatenate([plain["a"], plain["b"].ravel(), plain["c"].ravel()]))
    env.close()


@pytest.mark.parametrize("processes", [1, 2])
def test_vector_has_rows_as_asked(processes):
    envs = make_vector(EnvironmentSpec("Pendulum-v1"), 3, processes)
    assert envs.num_envs == 3
    assert envs.metadata["autoreset_mode"] == AutoresetMode.DISABLED
    assert envs.reset(seed=0)[0].shape == (3, 3)
    envs.close()


def test_making_environments_is_quiet(capfd, recwarn):
    for name in ("Hopper-v4", "Hopper-v5", "Walker2d-v5"):
        env = make(EnvironmentSpec(name))
        env.reset(seed=0)
        env.close()
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []


def test_users_warning_filters_are_left_alone():
    before = list(warnings.filters)
    make(EnvironmentSpec("Hopper-v4")).close()
    assert list(warnings.filters) == before


def test_description_has_the_flat_spaces_and_the_record(parts):
    described = describe(parts)
    assert described.observation_space == spaces.Box((8,), (-1.0,) * 7 + (0.0,), (1.0,) * 7 + (2.0,), "float64")
    assert described.raw_observation_space == spaces.space_of(PARTS)
    assert (described.limit, described.clips_actions) == (None, False)
    assert described.action_space == spaces.Box.bounded([-1, -1], [1, 1])
    assert described.recorded.id == "tests/Parts-v0"


def test_observations_without_a_flat_form_are_refused(parts, monkeypatch):
    monkeypatch.setattr(Parts, "observation_space", Sequence(Box(0, 1, (2,))))
    with pytest.raises(
        InvalidInput, match=r"tests/Parts-v0 has observations .*Sequence.*takes observations of numbers"
    ):
        make(parts)
