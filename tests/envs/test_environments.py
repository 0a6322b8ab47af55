import copy
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Sequence, Text
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


class FreshParts(Parts):
    """With random numbers of its own."""

    def __init__(self):
        self.observation_space = copy.deepcopy(PARTS)


@pytest.fixture
def parts():
    gym.register("tests/Parts-v0", FreshParts)
    yield EnvironmentSpec("tests/Parts-v0")
    del gym.registry["tests/Parts-v0"]


def test_unknown_id_gives_a_near_match():
    with pytest.raises(InvalidInput, match=r"unknown environment 'Hoper-v5'; did you mean .*'Hopper-v5'"):
        make(EnvironmentSpec("Hoper-v5"))


def test_actions_that_no_agent_gives_are_refused(parts, monkeypatch):
    monkeypatch.setattr(Parts, "action_space", Dict(say=Text(5)))
    with pytest.raises(InvalidInput, match=r"tests/Parts-v0 has actions that do not serve: texts; agents act in Box"):
        make(parts)


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


@pytest.mark.parametrize("processes", [1, 2])
def test_rows_of_nested_observations_are_those_of_single_environments(parts, processes):
    envs = make_vector(parts, 3, processes)
    try:
        seen, _ = envs.reset(seed=5)
        after, *_ = envs.step(np.zeros((3, 2), np.float32))
        for row in range(3):
            plain = FreshParts()
            for batch, single in ((seen, plain.reset(seed=5 + row)[0]), (after, plain.step(None)[0])):
                assert list(batch) == list(single)
                for key, part in single.items():
                    np.testing.assert_array_equal(batch[key][row], part)
    finally:
        envs.close()


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


def test_description_has_the_spaces_and_the_record(parts):
    described = describe(parts)
    assert described.observation_space == spaces.space_of(PARTS)
    assert (described.limit, described.clips_actions) == (None, False)
    assert described.action_space == spaces.Box.bounded([-1, -1], [1, 1])
    assert described.recorded.id == "tests/Parts-v0"


def test_observations_that_no_model_takes_are_refused(parts, monkeypatch):
    monkeypatch.setattr(FreshParts, "__init__", lambda self: None)
    monkeypatch.setattr(Parts, "observation_space", Sequence(Box(0, 1, (2,))))
    with pytest.raises(InvalidInput, match=r"tests/Parts-v0 has observations .*Sequence.*this version takes Box"):
        make(parts)
