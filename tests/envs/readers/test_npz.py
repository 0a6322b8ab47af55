import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.spaces import DictSpace, DiscreteSpace, TupleSpace
from aaren_rl.data.trajectories import Episode
from aaren_rl.envs.readers.npz import parse, write_npz
from aaren_rl.envs.readers.parsed import recording
from aaren_rl.errors import DataError

SPACE = gym.spaces.Dict(
    {
        "image": gym.spaces.Box(0, 255, (6, 6, 3), np.uint8),
        "pair": gym.spaces.Tuple([gym.spaces.Box(-1, 1, (2,), np.float64), gym.spaces.Discrete(3)]),
        "mission": gym.spaces.Text(20),
    }
)


def silent(line):
    pass


def arrays():
    """Two episodes of 3 and 2 steps."""
    rng = np.random.default_rng(0)
    return {
        "observations": rng.normal(size=(5, 4)),
        "actions": rng.normal(size=(5, 2)).astype(np.float32),
        "rewards": np.arange(5.0),
        "terminated": np.array([True, False]),
        "truncated": np.array([False, True]),
        "offsets": np.array([0, 3, 5]),
        "final_observations": rng.normal(size=(2, 4)),
    }


def save(path, data):
    np.savez(path, **data)
    return path


def test_plain_arrays_are_read_as_they_are(tmp_path):
    data = arrays()
    episodes = parse(save(tmp_path / "a.npz", data), silent).episodes
    for episode, number, rows in zip(episodes, (0, 1), (slice(0, 3), slice(3, 5)), strict=True):
        expected = np.concatenate([data["observations"][rows], data["final_observations"][number : number + 1]])
        np.testing.assert_array_equal(episode.observations, expected)
        np.testing.assert_array_equal(episode.actions, data["actions"][rows])
        np.testing.assert_array_equal(episode.rewards, data["rewards"][rows])
    assert [(episode.terminated, episode.truncated) for episode in episodes] == [(True, False), (False, True)]


def test_flags_of_steps_end_the_episodes(tmp_path):
    data = arrays()
    del data["offsets"]
    data["terminated"], data["truncated"] = np.array([0, 0, 1, 0, 0]), np.array([0, 0, 0, 0, 1])
    episodes = parse(save(tmp_path / "a.npz", data), silent).episodes
    assert [len(episode.rewards) for episode in episodes] == [3, 2]
    assert [(episode.terminated, episode.truncated) for episode in episodes] == [(True, False), (False, True)]


def test_parts_images_choices_and_texts_without_a_record_of_spaces(tmp_path):
    data = arrays()
    del data["observations"], data["final_observations"]
    data["observations/camera/front"] = np.random.default_rng(0).integers(0, 255, (5, 8, 8, 3)).astype(np.uint8)
    data["observations/state"] = np.arange(10.0).reshape(5, 2)
    data["observations/mission"] = np.array(["go to a", "go to a", "go to b", "go", "go"])
    data["actions"] = np.array([0, 3, 1, 2, 0])
    said = []
    found = recording(parse(save(tmp_path / "a.npz", data), said.append), "a.npz")
    np.testing.assert_array_equal(found.trajectories.observations["camera/front"], data["observations/camera/front"])
    assert isinstance(found.trajectories.observation_space, DictSpace)
    assert found.trajectories.action_space == DiscreteSpace((), (4,), (0,))
    np.testing.assert_array_equal(found.trajectories.actions, data["actions"])
    assert said == ["data: a.npz: actions are whole numbers, so they are choices: 0 to 3, as far as the data show"]


def episodes_of_space():
    rng = np.random.default_rng(0)
    found = []
    for number, steps in enumerate((3, 2)):
        rows = steps + 1
        observations = {
            "image": rng.integers(0, 255, (rows, 6, 6, 3)).astype(np.uint8),
            "pair": (rng.uniform(-1, 1, (rows, 2)), rng.integers(0, 3, rows)),
            "mission": [f"go {number} {step}" for step in range(rows)],
        }
        found.append(Episode(observations, rng.integers(0, 4, steps), rng.normal(size=steps), number == 0, number == 1))
    return found


def assert_same(given, expected):
    if isinstance(expected, dict):
        assert sorted(given) == sorted(expected)
        for key in expected:
            assert_same(given[key], expected[key])
    elif isinstance(expected, tuple):
        assert isinstance(given, tuple)
        for one, other in zip(given, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, list):
        assert given == expected
    else:
        np.testing.assert_array_equal(given, expected)
        assert given.dtype == expected.dtype


def test_what_was_written_is_read_back(tmp_path):
    episodes, action_space = episodes_of_space(), gym.spaces.Discrete(6)
    spec = EnvironmentSpec("BabyAI-GoTo-v0", {"size": 8}, 64)
    write_npz(tmp_path / "a.npz", episodes, SPACE, action_space, spec)
    said = []
    found = parse(tmp_path / "a.npz", said.append)
    for given, expected in zip(found.episodes, episodes, strict=True):
        assert_same(given.observations, expected.observations)
        assert_same(given.actions, expected.actions)
        assert_same(given.rewards, expected.rewards)
        assert (given.terminated, given.truncated) == (expected.terminated, expected.truncated)
    assert found.action_space == action_space
    assert found.environment == spec
    assert said == []
    packed = recording(parse(tmp_path / "a.npz", silent), "a.npz")
    assert packed.collected_in == spec
    assert any(isinstance(part, TupleSpace) for _, part in packed.trajectories.observation_space.named_parts)
    assert not list(tmp_path.glob(".*"))


def test_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    write_npz(tmp_path / "a.npz", episodes_of_space(), SPACE, gym.spaces.Discrete(6))
    before = (tmp_path / "a.npz").read_bytes()
    mixed = [episodes_of_space()[0], Episode(np.zeros((2, 2)), np.zeros((2, 1)), np.zeros(2))]
    with pytest.raises(DataError, match="expected it in all or in none"):
        write_npz(tmp_path / "a.npz", mixed, SPACE, gym.spaces.Discrete(6))
    with pytest.raises(DataError, match="could not be written"):
        write_npz(Path("/proc/a.npz"), episodes_of_space(), SPACE, gym.spaces.Discrete(6))
    with pytest.raises(DataError, match="no episodes"):
        write_npz(tmp_path / "a.npz", [], SPACE, gym.spaces.Discrete(6))
    assert (tmp_path / "a.npz").read_bytes() == before


def put(key, value):
    return lambda data: data.update({key: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("observations"), "lacks 'observations'"),
        (lambda data: data.pop("rewards"), "lacks 'rewards'"),
        (lambda data: data.pop("truncated"), r"lacks \['truncated'\]"),
        (lambda data: data.pop("offsets"), r"terminated \(without offsets\) hold 2 for 5 steps"),
        (put("rewards", np.zeros(4)), r"offsets do not rise from 0 to 4"),
        (put("rewards", np.zeros((5, 1))), r"rewards have the shape \(5, 1\)"),
        (put("rewards", np.array([0, 1, np.nan, 3, 4])), "rewards hold nan at step 2"),
        (put("observations", np.full((5, 4), np.inf)), "observations hold inf at step 0"),
        (put("observations", np.zeros((4, 4))), "observations hold 4 for 5 steps"),
        (put("observations/x", np.zeros((5, 4))), "holds .observations. and .observations/x."),
        (put("final_observations", np.zeros((3, 4))), "final_observations hold 3 for 2 steps"),
        (
            put("final_observations", np.zeros((2, 5))),
            r"are float64 of shape \(5,\); expected float64 of",
        ),
        (put("final_observations", np.full((2, 4), 200, np.int64)), "final_observations are int64 .*expected float64"),
        (put("offsets", np.array([0, 3.5, 5])), "offsets do not rise"),
        (put("offsets", np.array([0, 3, 3, 5])), "offsets do not rise"),
        (put("offsets", np.array([0, 5])), "terminated hold 2 for 1 episodes"),
        (put("terminated", np.array([0, 2])), "expected one row of 0 and 1"),
        (put("actions", np.array([{}] * 5)), "'actions' holds Python objects"),
        (put("actions", np.zeros((5, 2), complex)), "actions have the dtype complex128"),
        (put("actions", np.arange(5) * 10_000), "actions are whole numbers from 0 to 40000"),
        (put("actions", np.array([2**63, 1, 0, 0, 0], np.uint64)), f"actions are whole numbers from 0 to {2**63}"),
        (put("actions", np.array([-(2**62), 1, 0, 0, 0])), f"actions are whole numbers from -{2**62} to 1"),
        (put("spaces", np.array("{")), "spaces are no JSON text"),
        (put("spaces", np.array("{}")), "spaces cannot be read"),
        (put("environment", np.array('"a"')), "environment cannot be read"),
        (put("environment", np.array(json.dumps({"id": "os:A-v0"}))), "names a package, which data may not"),
        (put("environment", np.array(json.dumps({"id": "A-v0", "kwargs": {"xml": "/etc/x"}}))), "names a file under"),
    ],
)
def test_bad_file_is_one_line_that_names_the_key(tmp_path, change, message):
    data = arrays()
    change(data)
    with pytest.raises(DataError, match=rf"a\.npz.*{message}"):
        parse(save(tmp_path / "a.npz", data), silent)


def test_values_outside_the_recorded_space_name_the_episode(tmp_path):
    episodes = episodes_of_space()
    write_npz(tmp_path / "a.npz", episodes, SPACE, gym.spaces.Discrete(2))
    with pytest.raises(DataError, match=r"a\.npz: actions of episode 0 do not fit"):
        recording(parse(tmp_path / "a.npz", silent), "a.npz")


@pytest.mark.parametrize("shape", [(10**9,), (3, 10**6)])
def test_array_that_claims_more_than_the_file_holds(tmp_path, shape):
    path = save(tmp_path / "a.npz", arrays())
    content = path.read_bytes()
    header = b"'shape': (5, 4), }"
    claimed = f"'shape': {shape}, }}".encode()
    place = content.index(header)
    # The header is padded with spaces before its end of line.
    longer = content[:place] + claimed + content[place + len(claimed) :]
    path.write_bytes(longer)
    with pytest.raises(DataError, match=r"a\.npz"):
        parse(path, silent)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.bool_])
def test_column_of_choices_is_one_choice_a_step(tmp_path, dtype):
    data = arrays() | {"actions": np.array([[0], [1], [1], [0], [1]], dtype)}
    found = parse(save(tmp_path / "a.npz", data), silent)
    assert found.action_space == gym.spaces.Discrete(2)
    assert [episode.actions.tolist() for episode in found.episodes] == [[0, 1, 1], [0, 1]]
    assert found.episodes[0].actions.dtype == dtype


def test_bools_are_choices_of_two_even_where_one_is_never_taken(tmp_path):
    data = arrays() | {"actions": np.zeros((5, 3), np.bool_)}
    assert parse(save(tmp_path / "a.npz", data), silent).action_space == gym.spaces.MultiDiscrete([2, 2, 2])


def test_recorded_space_of_one_choice_in_a_column_is_kept(tmp_path):
    episodes, space = [Episode(np.zeros((3, 2)), np.array([[0], [1]]), np.zeros(2), True)], gym.spaces.Box(-1, 1, (2,))
    write_npz(tmp_path / "a.npz", episodes, space, gym.spaces.MultiDiscrete([2]))
    found = parse(tmp_path / "a.npz", silent)
    assert found.action_space == gym.spaces.MultiDiscrete([2])
    assert found.episodes[0].actions.shape == (2, 1)


def test_data_open_no_window(tmp_path):
    named = {"id": "CartPole-v1", "kwargs": {"render_mode": "human", "sutton_barto_reward": True}}
    data = arrays() | {"environment": np.array(json.dumps(named))}
    spec = parse(save(tmp_path / "a.npz", data), silent).environment
    assert spec == EnvironmentSpec("CartPole-v1", {"sutton_barto_reward": True})


def test_name_of_a_part_that_could_not_be_read_back_is_not_written(tmp_path):
    space = gym.spaces.Dict({"a": gym.spaces.Dict({"b/c": gym.spaces.Discrete(2)})})
    episode = Episode({"a": {"b/c": np.zeros(2, np.int64)}}, np.zeros(2, np.int64), np.zeros(2), True)
    with pytest.raises(DataError, match="observations/a have the part 'b/c'; .*rename the part"):
        write_npz(tmp_path / "a.npz", [episode], space, gym.spaces.Discrete(2))
    assert not [file for file in tmp_path.iterdir() if "npz" in file.name]
