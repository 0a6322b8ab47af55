import json

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple
from minari.data_collector import EpisodeBuffer

from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.spaces import space_of
from aaren_rl.envs.readers.minari import is_local, local_folder, read_folder
from aaren_rl.errors import DataError, InvalidInput

# Minari misses authors, code links and so on.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")

VECTOR = Box(-np.inf, np.inf, (3,), np.float32)
ACTIONS = Box(-1, 1, (2,), np.float32)


def episode(observation_space, action_space, length, terminated, seed):
    observation_space.seed(seed)
    action_space.seed(seed)
    flags = np.zeros((2, length), dtype=bool)
    flags[0 if terminated else 1, -1] = True
    return EpisodeBuffer(
        observations=stacked([observation_space.sample() for _ in range(length + 1)]),
        actions=stacked([action_space.sample() for _ in range(length)]),
        rewards=list(np.random.default_rng(seed).normal(size=length)),
        terminations=list(flags[0]),
        truncations=list(flags[1]),
        infos={},
    )


def stacked(values):
    if isinstance(values[0], dict):
        return {key: stacked([value[key] for value in values]) for key in values[0]}
    if isinstance(values[0], tuple):
        return tuple(stacked(list(part)) for part in zip(*values, strict=True))
    return list(values) if isinstance(values[0], str) else np.stack(values)


def unstacked(values, length):
    if isinstance(values, dict):
        parts = {key: unstacked(value, length) for key, value in values.items()}
        return [{key: part[i] for key, part in parts.items()} for i in range(length)]
    if isinstance(values, tuple):
        return list(zip(*(unstacked(part, length) for part in values), strict=True))
    return list(values)


def create(observation_space=VECTOR, action_space=ACTIONS, lengths=(5, 3, 8), env=None, name="tests/tiny-v0"):
    buffers = [episode(observation_space, action_space, n, i % 2 == 0, i) for i, n in enumerate(lengths)]
    spaces = {} if env else {"observation_space": observation_space, "action_space": action_space}
    minari.create_dataset_from_buffers(name, buffers, env=env, **spaces)
    return local_folder(name), buffers


def at(packed, row):
    return {key: part[row] for key, part in packed.items()} if isinstance(packed, dict) else packed[row]


def assert_packed(space, packed, value):
    """Leaf by leaf, in the order of sorted keys."""
    back = leaves(space.unpack(packed))
    expected = leaves(value)
    assert len(back) == len(expected)
    for ours, theirs in zip(back, expected, strict=True):
        if isinstance(theirs, str):
            assert ours == theirs.lower()
        else:
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def leaves(value):
    if isinstance(value, dict):
        return [leaf for key in sorted(value) for leaf in leaves(value[key])]
    return [leaf for part in value for leaf in leaves(part)] if isinstance(value, tuple) else [value]


def assert_read_as(found, buffers):
    assert found.episodes == len(buffers)
    assert found.steps == sum(len(buffer.rewards) for buffer in buffers)
    for number, buffer in enumerate(buffers):
        here, length = slice(found.offsets[number], found.offsets[number + 1]), len(buffer.rewards)
        *observations, last = unstacked(buffer.observations, length + 1)
        actions = unstacked(buffer.actions, length)
        for step, observation in zip(range(here.start, here.stop), observations, strict=True):
            assert_packed(found.observation_space, at(found.observations, step), observation)
        assert_packed(found.observation_space, at(found.final_observations, number), last)
        for step, action in zip(range(here.start, here.stop), actions, strict=True):
            assert_packed(found.action_space, found.actions[step], action)
        np.testing.assert_allclose(found.rewards[here], buffer.rewards, rtol=1e-6)
        assert found.terminated[number] == buffer.terminations[-1]
        assert found.truncated[number] == buffer.truncations[-1]


@pytest.mark.parametrize(
    ("observation_space", "action_space"),
    [
        (VECTOR, ACTIONS),
        (Box(-1, 1, (2, 3), np.float64), ACTIONS),
        (Dict({"velocity": VECTOR, "arm": Dict({"x": Box(0, 1, (2, 2)), "a": VECTOR}), "b": Box(0, 1, ())}), ACTIONS),
        (Tuple((VECTOR, Box(0, 1, (1,)))), ACTIONS),
        (Dict([("z", VECTOR), ("a", Dict([("y", ACTIONS), ("b", VECTOR)]))]), Box(-1, 1, (2, 3))),
        (Tuple(tuple(Box(0, 1, (n,)) for n in range(1, 13))), ACTIONS),
    ],
    ids=["vector", "matrix", "dict", "tuple", "unsorted dict, matrix actions", "tuple of 12"],
)
def test_reads_what_was_written_in_the_one_order(observation_space, action_space):
    folder, buffers = create(observation_space, action_space)
    found = read_folder(folder)
    assert_read_as(found.trajectories, buffers)
    assert (found.collected_in, found.evaluated_in, found.id) == (None, None, "tests/tiny-v0")
    assert (found.trajectories.observation_space, found.trajectories.action_space) == (
        space_of(observation_space),
        space_of(action_space),
    )


def test_environment_is_recovered_with_its_arguments():
    env = gym.make("Ant-v5", include_cfrc_ext_in_observation=False)
    folder, _ = create(env.observation_space, env.action_space, env=env)
    expected = EnvironmentSpec("Ant-v5", {"include_cfrc_ext_in_observation": False}, 1000)
    assert read_folder(folder).collected_in == expected
    env.close()


@pytest.mark.parametrize(
    "actions",
    [Discrete(4), MultiDiscrete([3, 2]), MultiBinary(3), Dict({"b": Discrete(2), "a": ACTIONS}), Tuple((ACTIONS,))],
    ids=str,
)
def test_actions_of_any_space_are_read(actions):
    folder, buffers = create(action_space=actions)
    found = read_folder(folder).trajectories
    assert_read_as(found, buffers)
    assert found.action_space == space_of(actions)


@pytest.mark.parametrize(
    "space",
    [
        Discrete(4, start=3),
        MultiDiscrete([2, 3]),
        Dict(b=VECTOR, a=MultiBinary(3)),
        Tuple((Discrete(2), VECTOR)),
        Box(0, 255, (7, 7, 3), np.uint8),
        Dict(image=Box(0, 255, (3, 40, 40), np.uint8), mission=Text(12, min_length=1), direction=Discrete(4)),
    ],
    ids=str,
)
def test_observations_of_any_space_are_read(space):
    folder, buffers = create(observation_space=space)
    found = read_folder(folder).trajectories
    assert_read_as(found, buffers)
    for key, image in found.observation_space.images().items():
        assert found.observations[key].dtype == np.uint8
        assert found.observations[key].shape[1:] == image.shape


def test_spaces_that_no_model_takes_are_refused():
    folder, _ = create()
    inner = {"type": "Discrete", "n": 2, "start": 0, "dtype": "int64"}
    outer = {"type": "Dict", "subspaces": {"many": {"type": "Graph", "node_space": inner, "edge_space": None}}}
    change_metadata(folder / "data", observation_space=json.dumps(outer))
    with pytest.raises((InvalidInput, DataError), match="tests/tiny-v0"):
        read_folder(folder)


def test_local_dataset_is_known_by_its_metadata():
    assert not is_local("tests/tiny-v0")
    folder, _ = create()
    assert is_local("tests/tiny-v0")
    (folder / "data" / "metadata.json").unlink()
    assert not is_local("tests/tiny-v0")


def test_folder_without_a_dataset(tmp_path):
    with pytest.raises(DataError, match=r"has no data/metadata\.json"):
        read_folder(tmp_path)


def no_data_file(data):
    (data / "main_data.hdf5").unlink()


def cut_data_file(data):
    file = data / "main_data.hdf5"
    file.write_bytes(file.read_bytes()[:-200])


def text_for_metadata(data):
    (data / "metadata.json").write_text('{"total_episodes": 3')


def empty_metadata(data):
    (data / "metadata.json").write_text("{}")


def metadata_promises_more_steps(data):
    change_metadata(data, total_steps=1_000)


def metadata_promises_more_episodes(data):
    change_metadata(data, total_episodes=7)


def metadata_promises_fewer_steps(data):
    change_metadata(data, total_steps=10)


def change_metadata(data, **changes):
    path = data / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def nan_in_rewards(data):
    with h5py.File(data / "main_data.hdf5", "a") as file:
        file["episode_1"]["rewards"][1] = np.nan


def observation_missing(data):
    with h5py.File(data / "main_data.hdf5", "a") as file:
        values = file["episode_1"]["observations"][:-1]
        del file["episode_1"]["observations"]
        file["episode_1"]["observations"] = values


def episode_missing(data):
    with h5py.File(data / "main_data.hdf5", "a") as file:
        del file["episode_1"]


def rewards_missing(data):
    with h5py.File(data / "main_data.hdf5", "a") as file:
        del file["episode_1"]["rewards"]


@pytest.mark.parametrize(
    "damage",
    [
        no_data_file,
        cut_data_file,
        text_for_metadata,
        empty_metadata,
        metadata_promises_more_steps,
        metadata_promises_more_episodes,
        metadata_promises_fewer_steps,
        nan_in_rewards,
        observation_missing,
        episode_missing,
        rewards_missing,
    ],
)
def test_damage_is_reported_as_such(damage):
    folder, _ = create()
    damage(folder / "data")
    with pytest.raises(DataError, match=r"tiny-v0|step|episode"):
        read_folder(folder)


def test_empty_dataset_is_refused():
    folder, _ = create(lengths=(4,))
    change_metadata(folder / "data", total_episodes=0, total_steps=0)
    with pytest.raises(DataError, match="empty"):
        read_folder(folder)
