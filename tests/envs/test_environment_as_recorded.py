"""What a dataset records of its environment is kept or refused by name; nothing that it names is run."""

import contextlib
import json
import sys

import gymnasium as gym
import minari
import numpy as np
import pytest
from gymnasium import wrappers
from gymnasium.envs.classic_control import PendulumEnv
from helpers import Steady
from minari.data_collector import EpisodeBuffer

from aaren_rl.data.environment_spec import EnvironmentSpec, Wrapper
from aaren_rl.envs import baselines, references, sources
from aaren_rl.envs.dataset import Reading
from aaren_rl.envs.environment_choice import EnvironmentChoice
from aaren_rl.envs.environments import make
from aaren_rl.envs.evaluation import Protocol, evaluate
from aaren_rl.envs.readers.minari import local_folder
from aaren_rl.errors import DataError, InvalidInput

# Minari misses authors, code links and so on; Gymnasium narrows bounds.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def stack(values):
    if isinstance(values[0], dict):
        return {key: stack([value[key] for value in values]) for key in values[0]}
    return np.stack(values)


def record(env, name="tests/recorded-v0", episodes=2, policy=None, **more):
    """Rolls out a policy, random without one, and writes it with Minari itself."""
    buffers = []
    for number in range(episodes):
        observation, _ = env.reset(seed=number)
        env.action_space.seed(number)
        observations, actions, rewards, ends = [observation], [], [], [(False, False)]
        while not any(ends[-1]):
            action = env.action_space.sample() if policy is None else policy(observation)
            observation, reward, *end, _ = env.step(action)
            observations.append(observation)
            actions.append(action)
            rewards.append(float(reward))
            ends.append(end)
        stacked = stack(observations)
        flags = np.array(ends[1:], dtype=bool).T
        buffers.append(EpisodeBuffer(number, None, None, stacked, np.stack(actions), np.array(rewards), *flags, {}))
    dataset = minari.create_dataset_from_buffers(name, buffer=buffers, env=env, **more)
    env.close()
    return dataset


def load(name="tests/recorded-v0", clip_actions=False, **choice):
    said = []
    dataset = sources.load(name, reading=Reading(EnvironmentChoice(**choice), clip_actions), say=said.append)
    return dataset, "\n".join(said)


def return_of(spec, actions):
    """Return of actions that are played from the start that `record` begins with."""
    env = make(spec)
    env.reset(seed=0)
    total = sum(float(env.step(action)[1]) for action in actions)
    env.close()
    return total


class Arm(Steady):
    """Actions in a matrix."""

    action_space = gym.spaces.Box(-1, 1, (2, 3), np.float32)


class Goal(Steady):
    """Keys that are not sorted; "position" is always 1, "goal" 5, and "arm" nested."""

    observation_space = gym.spaces.Dict(
        [
            ("position", gym.spaces.Box(-9, 9, (2,), np.float32)),
            ("goal", gym.spaces.Box(-9, 9, (2,), np.float32)),
            ("arm", gym.spaces.Dict([("z", gym.spaces.Box(-9, 9, (1,), np.float32))])),
        ]
    )

    def reset(self, *, seed=None, options=None):
        return self.step(None)[0], {}

    def step(self, action):
        parts = {"position": np.ones(2, np.float32), "goal": np.full(2, 5, np.float32)}
        return parts | {"arm": {"z": np.full(1, 7, np.float32)}}, 0.0, False, False, {}


@pytest.fixture(autouse=True)
def registered():
    for env in (Steady, Arm, Goal):
        # A class itself cannot be recorded.
        gym.register(f"tests/{env.__name__}-v0", f"{env.__module__}:{env.__name__}")
    yield
    for env in (Steady, Arm, Goal):
        del gym.registry[f"tests/{env.__name__}-v0"]


# Time limits


@pytest.mark.parametrize(
    "env",
    [
        lambda: gym.make("Pendulum-v1", max_episode_steps=30),
        lambda: wrappers.TimeLimit(gym.make("Pendulum-v1"), 20),
        lambda: gym.make("Hopper-v5", max_episode_steps=15, terminate_when_unhealthy=False),
    ],
    ids=["argument", "wrapper", "shorter than the id's"],
)
def test_episodes_end_where_the_recorded_ones_did(env):
    record(env())
    dataset, _ = load()
    actor = baselines.random_actor(dataset.environment)
    lengths = evaluate(actor, Protocol(dataset.environment, 3, 0, None, None)).lengths
    assert set(lengths) == set(dataset.trajectories.lengths)


def test_an_id_without_a_limit_needs_one_where_the_data_were_cut_off():
    made = EpisodeBuffer(
        0, None, None, np.zeros((6, 1)), np.zeros((5, 1)), np.ones(5), np.zeros(5, bool), np.eye(5)[4] > 0, {}
    )
    minari.create_dataset_from_buffers("tests/recorded-v0", [made], env=gym.make("tests/Steady-v0"))
    with pytest.raises(InvalidInput, match=r"Steady-v0 has no time limit, and 1 of .*pass .*--horizon 5"):
        load()
    assert load(horizon=7)[0].environment.max_episode_steps == 7


def test_horizon_replaces_the_recorded_limit():
    record(gym.make("Pendulum-v1", max_episode_steps=30))
    dataset, said = load(horizon=12)
    assert dataset.environment == EnvironmentSpec("Pendulum-v1", {}, 12)
    assert "limit 12 steps (the data record Pendulum-v1, limit 30 steps)" in said


# Evaluation environments


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (lambda: gym.make("Pendulum-v1", g=2.0), EnvironmentSpec("Pendulum-v1", {"g": 2.0}, 200)),
        (lambda: gym.make("Pendulum-v1", max_episode_steps=9), EnvironmentSpec("Pendulum-v1", {}, 9)),
        (
            lambda: wrappers.ClipReward(gym.make("Pendulum-v1"), -1.0, 1.0),
            EnvironmentSpec("Pendulum-v1", {}, 200, (Wrapper("ClipReward", {"min_reward": -1.0, "max_reward": 1.0}),)),
        ),
    ],
    ids=["arguments", "limit", "wrapper"],
)
def test_the_environment_named_for_evaluation_is_acted_in(named, expected):
    record(gym.make("Pendulum-v1", g=10.0, max_episode_steps=20), eval_env=named())
    dataset, said = load()
    assert dataset.environment == expected
    assert dataset.collected_in == EnvironmentSpec("Pendulum-v1", {"g": 10.0}, 20)
    assert "which the data name for evaluation (collected in Pendulum-v1, g=10.0, limit 20 steps)" in said


# Wrappers


@pytest.mark.parametrize(
    "wrap",
    [
        lambda env: wrappers.RescaleAction(env, -1.0, 1.0),
        lambda env: wrappers.FrameStackObservation(env, 3),
        lambda env: wrappers.TimeAwareObservation(wrappers.RescaleAction(env, -0.5, 0.5)),
        lambda env: wrappers.ClipReward(env, -1.0, 0.0),
        lambda env: wrappers.RecordEpisodeStatistics(wrappers.DelayObservation(env, 2)),
    ],
    ids=["actions", "frames", "two", "rewards", "delay"],
)
def test_recorded_wrappers_are_built_again(wrap):
    record(wrap(gym.make("Pendulum-v1", max_episode_steps=40)), policy=None)
    dataset, _ = load()
    first = slice(0, dataset.trajectories.offsets[1])
    env = make(dataset.environment)
    np.testing.assert_allclose(env.reset(seed=0)[0], dataset.trajectories.observations[0], atol=1e-6)
    env.close()
    played = return_of(dataset.environment, dataset.trajectories.actions[first])
    assert played == pytest.approx(dataset.trajectories.returns[0], rel=1e-4)


class Doubled(gym.RewardWrapper):
    def reward(self, reward):
        return 2 * reward


class ClipReward(Doubled, gym.utils.RecordConstructorArgs):
    """Has the name of a wrapper of Gymnasium's, and does something else."""

    def __init__(self, env):
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)


@pytest.mark.parametrize(
    "wrap",
    [wrappers.NormalizeReward, wrappers.NormalizeObservation, Doubled, ClipReward],
    ids=lambda wrap: wrap.__name__,
)
def test_wrappers_that_cannot_be_built_again_are_refused_by_name(wrap):
    record(wrap(gym.make("Pendulum-v1", max_episode_steps=5)))
    with pytest.raises(DataError, match=rf"recorded through the wrapper {wrap.__name__}, which cannot be built again"):
        load()
    dataset, said = load(id="none")
    assert dataset.environment is None
    assert "environment: none (as asked)" in said
    dataset, said = load(id="Pendulum-v1")
    assert dataset.environment == EnvironmentSpec("Pendulum-v1")
    assert f"the wrapper {wrap.__name__}" in said


# Clipped actions


def record_wider(env, name="tests/recorded-v0", recorded=True):
    """Actions of a policy without bounds, in an environment that clips them."""
    rng = np.random.default_rng(0)
    inner, low, high = env, env.unwrapped.action_space.low, env.unwrapped.action_space.high
    observations, actions, rewards = [inner.reset(seed=0)[0]], [], []
    for _ in range(20):
        action = rng.normal(0, 2 * high, low.shape).astype(np.float32)
        observation, reward, *_ = inner.step(action if recorded else np.clip(action, low, high))
        observations.append(observation)
        actions.append(action)
        rewards.append(float(reward))
    flags = np.zeros(20, bool), np.eye(20)[19] > 0
    buffer = EpisodeBuffer(0, None, None, np.stack(observations), np.stack(actions), np.array(rewards), *flags, {})
    more = {"action_space": gym.spaces.Box(-np.inf, np.inf, low.shape, np.float32)} if recorded else {}
    minari.create_dataset_from_buffers(name, [buffer], env=env, observation_space=env.observation_space, **more)
    return np.stack(actions)


@pytest.mark.parametrize(
    ("env", "why"),
    [
        (lambda: gym.make("Pendulum-v1", max_episode_steps=20), "since wider ones were recorded"),
        (lambda: wrappers.ClipAction(gym.make("Pendulum-v1", max_episode_steps=20)), "as a wrapper does"),
        (
            lambda: wrappers.TimeAwareObservation(wrappers.ClipAction(gym.make("Hopper-v5", max_episode_steps=20))),
            "as a wrapper does",
        ),
    ],
    ids=["recorded space", "wrapper", "wrapper below another"],
)
def test_actions_are_clipped_where_their_environment_clips_them(env, why):
    actions = record_wider(env())
    bounds = env().unwrapped.action_space
    dataset, said = load()
    np.testing.assert_array_equal(dataset.trajectories.actions, np.clip(actions, bounds.low, bounds.high))
    outside = ((actions < bounds.low) | (actions > bounds.high)).any(1).sum()
    assert f"{outside} of 20 actions are clipped" in said
    assert why in said
    low, high = dataset.action_space.bounds()
    assert (low >= bounds.low).all()
    assert (high <= bounds.high).all()


def test_actions_outside_are_refused_unless_clipping_is_asked_for():
    record_wider(gym.make("Pendulum-v1", max_episode_steps=20), recorded=False)
    with pytest.raises(DataError, match="outside the action space.*if that environment clips.*--clip-actions True"):
        load()
    dataset, said = load(clip_actions=True)
    assert np.abs(dataset.trajectories.actions).max() == 2
    assert "clipped into the bounds of Pendulum-v1, as asked" in said


def test_bounds_of_another_meaning_are_refused_or_said():
    folder = record(gym.make("Pendulum-v1", max_episode_steps=20)) and local_folder("tests/recorded-v0")
    space = {"type": "Box", "dtype": "float32", "shape": [1], "low": [-1.0], "high": [1.0]}
    change(folder, action_space=json.dumps(space))
    with pytest.raises(DataError, match=r"recorded with actions from \[-1.\] to \[1.\]; .* do something else"):
        load()
    assert "warning: tests/recorded-v0 was recorded with actions" in load(id="Pendulum-v1")[1]


# One order


def test_parts_of_observations_stand_where_they_stand_when_acting():
    record(gym.make("tests/Goal-v0", max_episode_steps=4))
    dataset, _ = load()
    acting = make(dataset.environment).reset(seed=0)[0]
    np.testing.assert_array_equal(dataset.trajectories.observations[0], dataset.observation_space.pack(acting))
    np.testing.assert_array_equal(dataset.trajectories.observations[0], [7, 5, 5, 1, 1])


@pytest.mark.parametrize(
    ("change_space", "message"),
    [
        (lambda parts: {**parts, "wind": gym.spaces.Box(0, 1)}, "observations lack the part 'wind'"),
        (lambda parts: {k: v for k, v in parts.items() if k != "goal"}, "its observations have a part 'goal' too many"),
        (
            lambda parts: {**parts, "goal": gym.spaces.Box(0, 1, (3,))},
            r"'goal'\] have shape \(2,\) in place",
        ),
        (
            lambda parts: {**parts, "arm": gym.spaces.Box(0, 1, (1,))},
            r"'arm'\] are a Dict in place of a Box",
        ),
    ],
    ids=["missing", "too many", "shape", "type"],
)
def test_parts_that_differ_are_named(change_space, message, monkeypatch):
    record(gym.make("tests/Goal-v0", max_episode_steps=4))
    monkeypatch.setattr(Goal, "observation_space", gym.spaces.Dict(change_space(dict(Goal.observation_space))))
    with pytest.raises(DataError, match=message):
        load()


def test_actions_in_a_matrix_keep_their_shape():
    record(gym.make("tests/Arm-v0", max_episode_steps=4))
    dataset, _ = load()
    assert dataset.trajectories.actions.shape[1:] == dataset.action_space.shape == (2, 3)


# What data may not do


def change(folder, **entries):
    file = folder / "data" / "metadata.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def change_environment(folder, entry="env_spec", **entries):
    metadata = json.loads((folder / "data" / "metadata.json").read_text())
    spec = json.loads(metadata.get(entry) or metadata["env_spec"])
    change(folder, **{entry: json.dumps({**spec, **entries})})


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module that leaves a mark where it is imported."""
    (tmp_path / "trap_module.py").write_text(
        f"open({str(tmp_path / 'sprung')!r}, 'w').close()\nimport gymnasium\nclass Trap(gymnasium.Env): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "sprung"
    sys.modules.pop("trap_module", None)


def no_spaces(folder):
    file = folder / "data" / "metadata.json"
    metadata = json.loads(file.read_text())
    del metadata["observation_space"], metadata["action_space"]
    file.write_text(json.dumps(metadata))
    change_environment(folder, entry_point="trap_module:Trap")


def foreign_id(folder):
    change_environment(folder, id="trap_module:Trap-v0")


def unknown_id(folder):
    change_environment(folder, id="Trap-v0", entry_point="trap_module:Trap")


def evaluation_entry_point(folder):
    change_environment(folder, "eval_env_spec", id="Trap-v0", entry_point="trap_module:Trap")


def wrapper_entry_point(folder):
    wrapper = {"name": "ClipReward", "entry_point": "trap_module:Trap", "kwargs": {}}
    change_environment(folder, additional_wrappers=[wrapper])


def vector_entry_point(folder):
    change_environment(folder, id="Trap-v0", entry_point=None, vector_entry_point="trap_module:Trap")


@pytest.mark.parametrize(
    "plant",
    [no_spaces, foreign_id, unknown_id, evaluation_entry_point, wrapper_entry_point, vector_entry_point],
    ids=lambda plant: plant.__name__,
)
def test_code_that_data_name_is_never_run(plant, trap):
    record(gym.make("Pendulum-v1", max_episode_steps=5))
    plant(local_folder("tests/recorded-v0"))
    # Whether they can be used otherwise is not the question here.
    with contextlib.suppress(DataError, InvalidInput):
        load()
    assert not trap.exists()
    assert "trap_module" not in sys.modules


def test_spaces_that_are_missing_come_from_the_registered_environment(trap):
    record(gym.make("Pendulum-v1", max_episode_steps=5))
    no_spaces(local_folder("tests/recorded-v0"))
    change_environment(local_folder("tests/recorded-v0"), entry_point="gymnasium.envs.classic_control:PendulumEnv")
    dataset, _ = load()
    assert (dataset.observation_space.shape, dataset.action_space.shape) == ((3,), (1,))


@pytest.mark.parametrize(
    "entries",
    [
        {"kwargs": {"xml_file": "/etc/hostname"}},
        {"kwargs": {"maze": {"files": ["../../secrets"]}}},
        {"kwargs": {"url": "http://host/x"}},
        {"kwargs": {"xml_file": "./evil.xml"}},
        {"kwargs": {"xml_file": "folder/evil.xml"}},
        {"kwargs": {"xml_file": "~/evil.xml"}},
    ],
    ids=["path", "nested", "address", "here", "folder", "home"],
)
def test_arguments_that_name_files_are_refused(entries):
    record(gym.make("Pendulum-v1", max_episode_steps=5))
    change_environment(local_folder("tests/recorded-v0"), **entries)
    with pytest.raises(DataError, match="which names a file; data may not say which file to read"):
        load()
    assert load(id="Pendulum-v1")[0].environment.id == "Pendulum-v1"


def test_the_render_mode_is_not_taken_from_data():
    record(gym.make("Pendulum-v1", max_episode_steps=5, render_mode="rgb_array"))
    assert load()[0].environment == EnvironmentSpec("Pendulum-v1", {}, 5)


@pytest.mark.parametrize(
    "space",
    [
        {"type": "Box", "dtype": "float32", "shape": [10**6, 10**6], "low": 0.0, "high": 1.0},
        {
            "type": "Dict",
            "subspaces": {"a": {"type": "Box", "dtype": "float32", "shape": [10**12], "low": 0, "high": 1}},
        },
        {"type": "Tuple", "subspaces": [{"type": "Box", "dtype": "f8", "shape": [10**12], "low": 0, "high": 1}]},
    ],
    ids=["box", "dict", "tuple"],
)
def test_spaces_that_claim_more_than_they_hold_are_refused(space):
    record(gym.make("Pendulum-v1", max_episode_steps=5))
    change(local_folder("tests/recorded-v0"), observation_space=json.dumps(space))
    with pytest.raises(DataError, match="damaged record of its observation_space"):
        load()


# Packages


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package that registers an environment where it is imported."""
    folder = tmp_path / "tanksim"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "import gymnasium\ngymnasium.register('TankSim/Tank-v0', 'tanksim.tank:Tank', max_episode_steps=4)\n"
    )
    (folder / "tank.py").write_text("from gymnasium.envs.classic_control.pendulum import PendulumEnv as Tank\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "tanksim"
    forget_package()


def forget_package():
    gym.registry.pop("TankSim/Tank-v0", None)
    for name in [name for name in sys.modules if name.partition(".")[0] == "tanksim"]:
        del sys.modules[name]


def test_a_package_is_imported_only_where_the_user_names_it(package):
    record(gym.make("tanksim:TankSim/Tank-v0"))
    forget_package()
    with pytest.raises(
        InvalidInput, match=r"TankSim/Tank-v0 is of the package tanksim and not registered.*--import tanksim"
    ):
        load()
    assert package not in sys.modules
    choice = EnvironmentChoice.of_options(imports=(package,))
    dataset = sources.load("tests/recorded-v0", reading=Reading(choice), say=lambda line: None)
    assert dataset.environment == EnvironmentSpec("tanksim:TankSim/Tank-v0", {}, 4)
    forget_package()
    with pytest.raises(InvalidInput, match="--import tanksim"):
        make(dataset.environment)


def test_a_package_that_is_missing_is_named(package, tmp_path):
    record(gym.make("tanksim:TankSim/Tank-v0"))
    forget_package()
    (tmp_path / "tanksim" / "__init__.py").unlink()
    (tmp_path / "tanksim" / "tank.py").unlink()
    (tmp_path / "tanksim").rename(tmp_path / "moved")
    with pytest.raises(InvalidInput, match="package tanksim, which is not installed here, and not registered"):
        load()
    with pytest.raises(InvalidInput, match="the package tanksim cannot be imported.*install it"):
        EnvironmentChoice.of_options(imports=(package,))


class Other(PendulumEnv):
    """Has the id of Gymnasium's environment, and pays otherwise."""

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, 1000.0, *rest


@pytest.mark.parametrize("entry_point", ["mypackage.envs:MyHopper", "__main__:MyHopper", "mypackage:make"])
def test_an_id_that_a_package_took_is_not_gymnasiums(entry_point):
    record(gym.make("Hopper-v5", max_episode_steps=5))
    change_environment(local_folder("tests/recorded-v0"), entry_point=entry_point)
    with pytest.raises(
        InvalidInput, match=f"Hopper-v5 is of (the package )?{entry_point.partition('.')[0].partition(':')[0]}"
    ):
        load()
    assert load(id="Hopper-v5")[0].environment.id == "Hopper-v5"


def test_references_are_not_those_of_an_id_that_was_taken(monkeypatch):
    taken = gym.envs.registration.EnvSpec("Hopper-v5", f"{__name__}:Other", max_episode_steps=1000)
    assert references.reference_of(EnvironmentSpec("Hopper-v5")) is not None
    monkeypatch.setitem(gym.registry, "Hopper-v5", taken)
    for spec in (EnvironmentSpec("Hopper-v5"), EnvironmentSpec("tests:Hopper-v5")):
        assert references.reference_of(spec) is None


@pytest.mark.parametrize("lengths", [300, 230])
def test_episodes_beyond_the_recorded_limit_are_not_cut_in_silence(lengths):
    record(gym.make("Pendulum-v1", max_episode_steps=lengths))
    change_environment(local_folder("tests/recorded-v0"), max_episode_steps=None)
    with pytest.raises(
        InvalidInput, match=f"end after 200 steps, and the data have some of {lengths}; .*--horizon {lengths}"
    ):
        load()
    assert "warning: episodes of Pendulum-v1 end after 200 steps" in load(id="Pendulum-v1")[1]
    assert load(horizon=lengths)[0].environment.max_episode_steps == lengths


@pytest.mark.parametrize("limit", [-1, 0, "abc", True, 2.5])
def test_limits_that_are_none_are_refused(limit):
    record(gym.make("Pendulum-v1", max_episode_steps=5))
    change_environment(local_folder("tests/recorded-v0"), max_episode_steps=None, kwargs={"max_episode_steps": limit})
    with pytest.raises(DataError, match="max_episode_steps is .*expected a whole number from 1"):
        load()


def test_a_narrowed_range_of_actions_is_said():
    rng = np.random.default_rng(0)
    record(gym.make("Pendulum-v1", max_episode_steps=20), policy=lambda _: rng.uniform(0, 0.15, 1).astype(np.float32))
    dataset, said = load()
    assert "1 of 1 action components use less than a tenth of the environment's range" in said
    low, high = dataset.action_space.bounds()
    assert (low >= 0).all()
    assert (high <= 0.15).all()


def test_links_to_other_files_are_not_followed(tmp_path):
    record(gym.make("Pendulum-v1", max_episode_steps=5))
    file = local_folder("tests/recorded-v0") / "data" / "main_data.hdf5"
    file.rename(tmp_path / "elsewhere.hdf5")
    file.symlink_to(tmp_path / "elsewhere.hdf5")
    with pytest.raises(DataError, match="is a link to .*elsewhere.hdf5; expected the data themselves"):
        load()


# Part of the data


def test_a_filtered_view_is_read_as_the_episodes_it_holds():
    whole = record(gym.make("Pendulum-v1", max_episode_steps=9), episodes=6)
    returns = [episode.rewards.sum() for episode in whole]
    view = whole.filter_episodes(lambda episode: episode.rewards.sum() > np.median(returns))
    dataset = sources.load(view, say=lambda line: None)
    np.testing.assert_allclose(
        dataset.trajectories.returns, [one for one in returns if one > np.median(returns)], rtol=1e-6
    )
    assert (dataset.source, dataset.id, dataset.environment.max_episode_steps) == ("minari", "tests/recorded-v0", 9)


def test_the_best_episodes_are_kept_whole_and_said():
    whole = record(gym.make("Pendulum-v1", max_episode_steps=9), episodes=10)
    returns = np.sort([episode.rewards.sum() for episode in whole])
    said = []
    kept = sources.load("tests/recorded-v0", reading=Reading(keep_best=0.3), say=said.append).trajectories
    np.testing.assert_allclose(np.sort(kept.returns), returns[-3:], rtol=1e-6)
    assert set(kept.lengths) == {9}
    assert "kept 3 of 10 episodes" in "\n".join(said)
    above = sources.load("tests/recorded-v0", reading=Reading(least_return=float(returns[4])), say=said.append)
    assert above.trajectories.episodes in (5, 6)
    with pytest.raises(InvalidInput, match="no episode has a return of 1.0; the best has"):
        sources.load("tests/recorded-v0", reading=Reading(least_return=1.0), say=said.append)
    with pytest.raises(InvalidInput, match=r"keep_best is 0; expected a share"):
        Reading(keep_best=0)
