import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from gymnasium.envs.registration import spec as registered

from aaren_rl.data.trajectories import Episode
from aaren_rl.envs import minari_writer
from aaren_rl.envs.readers.minari import local_folder, read_folder
from aaren_rl.errors import DataError

# Minari misses authors, code links and so on.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")

LENGTHS = (4, 2)


def values_of(space, count):
    """Random values of a space, stacked as Minari stacks them."""
    if isinstance(space, gym.spaces.Dict):
        return {key: values_of(part, count) for key, part in space.spaces.items()}
    if isinstance(space, gym.spaces.Tuple):
        return tuple(values_of(part, count) for part in space.spaces)
    samples = [space.sample() for _ in range(count)]
    return samples if isinstance(space, gym.spaces.Text) else np.stack([np.asarray(sample) for sample in samples])


def put(observation_space, action_space, name="tests/any-v0", final=1, environment=None):
    observation_space.seed(0)
    action_space.seed(0)
    episodes = [
        Episode(
            values_of(observation_space, steps + final),
            values_of(action_space, steps),
            np.random.default_rng(steps).normal(size=steps),
            steps == 4,
            steps == 2,
        )
        for steps in LENGTHS
    ]
    folder = local_folder(name)
    folder.mkdir(parents=True)
    about = "nobody", "for a test"
    minari_writer.write_episodes(folder, name, observation_space, action_space, episodes, *about, environment)
    return episodes, folder


def assert_same(given, expected):
    if isinstance(expected, dict):
        assert sorted(given) == sorted(expected)
        for key in expected:
            assert_same(given[key], expected[key])
    elif isinstance(expected, tuple):
        for one, other in zip(given, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, list):
        assert list(given) == expected
    else:
        np.testing.assert_array_equal(given, expected)
        assert given.dtype == expected.dtype


SPACES = {
    "vector": gym.spaces.Box(-1, 1, (3,), np.float64),
    "matrix": gym.spaces.Box(-np.inf, np.inf, (2, 2), np.float32),
    "discrete": gym.spaces.Discrete(4, start=-1),
    "many choices": gym.spaces.MultiDiscrete([2, 3]),
    "bits": gym.spaces.MultiBinary(5),
    "small image": gym.spaces.Box(0, 255, (7, 7, 3), np.uint8),
    # Minari makes images of such a size JPEG unless it is told not to.
    "image": gym.spaces.Box(0, 255, (40, 36, 3), np.uint8),
    "stacked images": gym.spaces.Box(0, 255, (32, 32, 4), np.uint8),
    "text": gym.spaces.Text(9, charset="abc é"),
}
NESTED = gym.spaces.Dict(
    {
        "image": SPACES["image"],
        "inner": gym.spaces.Tuple([SPACES["discrete"], gym.spaces.Dict({"text": SPACES["text"]})]),
        "vector": SPACES["vector"],
    }
)


@pytest.mark.parametrize("space", [*SPACES.values(), NESTED], ids=[*SPACES, "nested"])
def test_minari_reads_what_was_written(space):
    episodes, _ = put(space, SPACES["many choices"])
    dataset = minari.load_dataset("tests/any-v0")
    assert (dataset.total_episodes, dataset.total_steps) == (2, 6)
    assert dataset.observation_space == space
    assert dataset.action_space == SPACES["many choices"]
    for given, expected in zip(dataset.iterate_episodes(), episodes, strict=True):
        assert_same(given.observations, expected.observations)
        assert_same(given.actions, expected.actions)
        np.testing.assert_array_equal(given.rewards, expected.rewards)
        assert (given.terminations[-1], given.truncations[-1]) == (expected.terminated, expected.truncated)
        assert not given.terminations[:-1].any()


@pytest.mark.parametrize("name", ["discrete", "many choices", "bits", "vector"])
def test_actions_of_every_type_are_read_back(name):
    episodes, _ = put(SPACES["vector"], SPACES[name])
    for given, expected in zip(minari.load_dataset("tests/any-v0").iterate_episodes(), episodes, strict=True):
        assert_same(given.actions, expected.actions)


@pytest.mark.parametrize("space", [*SPACES.values(), NESTED], ids=[*SPACES, "nested"])
def test_this_projects_reader_reads_the_same(space):
    episodes, folder = put(space, SPACES["discrete"])
    found = read_folder(folder).trajectories
    np.testing.assert_array_equal(found.actions, np.concatenate([episode.actions for episode in episodes]))
    np.testing.assert_array_equal(found.lengths, LENGTHS)
    expected = found.observation_space.pack(episodes[0].observations, batch=1)
    parts = found.observations if isinstance(found.observations, dict) else {"numbers": found.observations}
    for key, values in (expected if isinstance(expected, dict) else {"numbers": expected}).items():
        np.testing.assert_array_equal(parts[key][:4], values[:-1].astype(parts[key].dtype))


def test_images_take_less_than_their_bytes(tmp_path):
    space = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    images = np.zeros((101, 64, 64, 3), np.uint8)
    images[:, :10] = 200
    folder = local_folder("tests/images-v0")
    folder.mkdir(parents=True)
    episode = Episode(images, np.zeros(100, np.int64), np.zeros(100), True, False)
    minari_writer.write_episodes(folder, "tests/images-v0", space, gym.spaces.Discrete(2), [episode], "a", "b")
    assert (folder / "data" / "main_data.hdf5").stat().st_size < images.nbytes / 10
    (read,) = minari.load_dataset("tests/images-v0").iterate_episodes()
    np.testing.assert_array_equal(read.observations, images)


def test_environment_is_recorded():
    put(SPACES["vector"], SPACES["discrete"], environment=registered("CartPole-v1"))
    assert minari.load_dataset("tests/any-v0").spec.env_spec.id == "CartPole-v1"


def test_episode_without_its_final_observation_is_refused():
    with pytest.raises(DataError, match=r"observations: 4 values in episode 0; Minari keeps 5"):
        put(SPACES["vector"], SPACES["discrete"], final=0)


def test_progress_counts_the_episodes(tmp_path):
    done = []
    episode = Episode(np.zeros((3, 3)), np.zeros(2, np.int64), np.zeros(2), True, False)
    spaces = SPACES["vector"], SPACES["discrete"]
    minari_writer.write_episodes(tmp_path, "tests/a-v0", *spaces, [episode] * 3, "a", "b", None, done.append)
    assert done == [1, 1, 1]
    with h5py.File(tmp_path / "data" / "main_data.hdf5") as file:
        assert sorted(file) == ["episode_0", "episode_1", "episode_2"]
