import dataclasses
import importlib.metadata
from pathlib import Path

import gymnasium as gym
import pytest

from aaren_rl.data.environment_spec import EnvironmentSpec, Wrapper
from aaren_rl.data.reference import Reference
from aaren_rl.envs import behaviours, collect, sources
from aaren_rl.envs.catalogue import by_environment, catalogue, find, hub
from aaren_rl.envs.environments import describe, make
from aaren_rl.envs.experts import EXPERTS
from aaren_rl.envs.readers.minari import local_folder
from aaren_rl.envs.references import reference_of
from aaren_rl.errors import InvalidInput

TASKS = ("hopper", "halfcheetah", "walker2d", "ant")
LEVELS = ("random", "simple", "medium", "medium-replay", "medium-expert", "expert")
NAMES = [f"{task}-{level}" for task in TASKS for level in LEVELS]

# Returns of a random and of an expert policy by the rules, steps of the longest episode.
SCRIPTED = {
    "t-maze-expert": (0.5, 1.0, 151),
    "memory-chain-expert": (0.5, 1.0, 151),
    "recall-4-expert": (0.25, 1.0, 64),
    "recall-32-expert": (0.25, 1.0, 128),
    "recall-64-expert": (0.25, 1.0, 256),
    "parity-expert": (0.5, 1.0, 64),
    "associative-recall-expert": (0.25, 1.0, 32),
}

# Mean returns of a random and of an expert policy in D4RL's infos.py, and observation and action sizes of its files.
D4RL = {
    "hopper": (-20.272305, 3234.3, 11, 3),
    "halfcheetah": (-280.178953, 12135.0, 17, 6),
    "walker2d": (1.629008, 4592.3, 17, 6),
    "ant": (-325.6, 3879.7, 111, 8),
}


# Names as people write them: where their data come from, and the expert that makes them without a network.
PEOPLES = {
    "hopper-medium-v2": (None, "gym_mujoco_v2/hopper_medium-v2.hdf5", None, None),
    "hopper-full-replay": (None, "gym_mujoco_v2/hopper_full_replay-v2.hdf5", None, None),
    "humanoid-expert": ("mujoco/humanoid/expert-v0", None, None, None),
    "antmaze-umaze": (
        "D4RL/antmaze/umaze-v1",
        "ant_maze_v2/Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5",
        None,
        "antmaze",
    ),
    "antmaze-umaze-diverse": (
        "D4RL/antmaze/umaze-diverse-v1",
        "ant_maze_v2/Ant_maze_u-maze_noisy_multistart_True_multigoal_True_sparse_fixed.hdf5",
        None,
        None,
    ),
    "pen-human": ("D4RL/pen/human-v2", "hand_dapg_v1/pen-human-v1.hdf5", None, None),
    "kitchen-partial": ("D4RL/kitchen/partial-v2", "kitchen/kitchen_microwave_kettle_light_slider-v0.hdf5", None, None),
    "maze2d-large": (None, "maze2d/maze2d-large-sparse-v1.hdf5", None, None),
    "pointmaze-umaze": ("D4RL/pointmaze/umaze-v2", None, None, "pointmaze"),
    "minigrid-fourrooms": ("D4RL/minigrid/fourrooms-v0", "minigrid/minigrid4rooms.hdf5", None, None),
    "breakout-expert": ("atari/breakout/expert-v0", None, None, None),
    "babyai-go-to-red-ball": ("minigrid/BabyAI-GoToRedBall/optimal-v0", None, None, "babyai"),
    "babyai-key-corridor-s3r1-fullobs": ("minigrid/BabyAI-KeyCorridorS3R1/optimal-fullobs-v0", None, None, "babyai"),
    "minigrid-memory-s13-expert": (None, None, None, "minigrid-memory"),
    "cube-single-play": (None, None, "cube-single-play-v0.npz", "ogbench-arm"),
    "cube-single-play-v0": (None, None, "cube-single-play-v0.npz", None),
    "antmaze-large-navigate": (None, None, "antmaze-large-navigate-v0.npz", "antmaze"),
    "metaworld-reach-expert": ("metaworld/reach/expert-v0", None, None, "metaworld"),
    "popgym-repeat-previous-easy": (None, None, None, "popgym"),
    "cartpole-expert": (None, None, None, "cartpole"),
}


@pytest.mark.parametrize("name", PEOPLES)
def test_names_as_people_write_them(name):
    entry = find(name)
    assert (entry.minari_id, entry.d4rl_path, entry.ogbench_file, entry.expert) == PEOPLES[name]


def test_every_list_is_in_the_catalogue_whole():
    assert {*NAMES, *SCRIPTED} <= set(catalogue())
    entries = catalogue().values()
    # The numbers that D4RL, OGBench and Minari's documentation give.
    assert len({entry.d4rl_path for entry in entries if entry.d4rl_path}) == 155
    assert len({entry.ogbench_file for entry in entries if entry.ogbench_file}) == 85
    assert sum(listed.documentation == "stable" for listed in hub.listing()) == 283
    ids = [listed.id for listed in hub.listing()]
    assert len(ids) == len(set(ids))
    assert {listed.name for listed in hub.listing()} <= set(catalogue())


def test_every_entry_comes_from_somewhere():
    for entry in catalogue().values():
        assert entry.minari_id or entry.d4rl_path or entry.ogbench_file or entry.bundled, entry.name
        assert not entry.bundled or "bundled" in entry.environments, entry.name
        # D4RL's data have an environment, or the entry says why not.
        assert not entry.d4rl_path or (entry.needs is None) == ("d4rl" in entry.environments), entry.name


def test_a_name_with_a_version_of_d4rls_is_that_file_alone():
    named = find("hopper-medium-v0")
    assert named.d4rl_path == "gym_mujoco/hopper_medium.hdf5"
    assert (named.minari_id, named.bundled, set(named.environments)) == (None, False, {"d4rl"})


def test_experts_of_the_catalogue_exist():
    for entry in catalogue().values():
        if entry.expert is not None:
            assert set(entry.expert_arguments) <= set(EXPERTS[entry.expert].arguments), entry.name


def test_the_hub_is_covered():
    counts = hub.coverage()
    assert sum(count["sets"] for count in counts.values()) == 283
    # minigrid does not register BabyAI-GoToObjS6-v0 any more.
    assert hub.as_markdown(counts).splitlines()[-1] == "| all | 283 | 283 | 281 | 281 (99%) |"
    assert hub.as_markdown(counts) in (Path(__file__).parents[2] / "docs" / "environments.md").read_text("utf-8")
    # Instructions to a browser are no actions that a head gives out.
    assert hub.coverage("development")["web agents"] == {"sets": 1, "spaces": 0, "environment": 0, "covered": 0}


@pytest.mark.parametrize(
    ("change", "spaces", "environment"),
    [
        ({"actions": "Text"}, False, True),
        ({"observations": "Dict(Box, Graph)"}, False, True),
        ({"package": "elsewhere"}, True, False),
        ({"wrappers": ("NormalizeReward",)}, True, False),
        ({"wrappers": ("FullyObsWrapper",), "package": "ale_py"}, True, False),
    ],
    ids=["actions", "observations", "package", "wrapper", "wrapper of another package"],
)
def test_what_is_unknown_does_not_count_as_covered(change, spaces, environment):
    listed = dataclasses.replace(next(one for one in hub.listing() if "BabyAI" in one.id), **change)
    assert (listed.has_known_spaces, listed.has_known_environment) == (spaces, environment)


@pytest.mark.parametrize("name", NAMES)
def test_entry_is_sane(name):
    entry = find(name)
    task, _, level = name.partition("-")
    assert (entry.name, entry.task, entry.horizon) == (name, task, 1000)
    assert entry.minari_id == (f"mujoco/{task}/{level}-v0" if level in ("simple", "medium", "expert") else None)
    assert entry.d4rl_file == (None if level == "simple" else f"{task}_{level.replace('-', '_')}-v2.hdf5")
    assert entry.bundled_id == f"aaren/{task}/{level}-v0"
    assert set(entry.environments) == {"minari", "bundled"} | ({"d4rl"} if entry.d4rl_file else set())
    assert entry.environments["minari"].id.endswith("-v5")
    assert not entry.d4rl_file or entry.environments["d4rl"].id.endswith("-v4")
    assert entry.environments["bundled"] == entry.environments["minari"]
    assert all(spec.id in gym.registry for spec in entry.environments.values())
    assert (entry.target_returns, entry.ambition) == (None, 0.35)
    assert entry.return_scale == 1000.0
    assert entry.expert is None
    assert entry.bundled == (entry.behaviours is not None)
    # A dataset must come from somewhere.
    assert entry.minari_id or entry.d4rl_file or entry.bundled


@pytest.mark.parametrize("name", SCRIPTED)
def test_scripted_entry_is_sane(name):
    entry = find(name)
    random, expert, horizon = SCRIPTED[name]
    assert (entry.reference.name, entry.reference.random, entry.reference.expert) == ("by construction", random, expert)
    assert (entry.horizon, entry.target_returns, entry.return_scale) == (horizon, (expert,), 1.0)
    assert entry.expert == "aaren"
    assert entry.bundled
    # There is nothing to download.
    assert (entry.minari_id, entry.d4rl_file, entry.behaviours) == (None, None, None)
    assert set(entry.environments) == {"bundled"}
    assert entry.environments["bundled"].id in gym.registry


@pytest.mark.parametrize("name", [*NAMES, *SCRIPTED])
def test_bundled_id_is_one_that_minari_accepts(name):
    entry = find(name)
    assert entry.bundled_id == f"aaren/{entry.task}/{name.removeprefix(entry.task)[1:]}-v0"
    assert local_folder(entry.bundled_id).parts[-3:] == tuple(entry.bundled_id.split("/"))


def test_minari_ids_files_and_bundled_ids_are_unique():
    entries = catalogue().values()
    paths = {entry.d4rl_path for entry in entries if entry.d4rl_path}
    for values in (
        [entry.minari_id for entry in entries if entry.minari_id],
        # All lie in one folder once they are downloaded.
        [path.rpartition("/")[2] for path in paths],
        [entry.bundled_id for entry in entries if entry.bundled],
    ):
        assert len(values) == len(set(values))


@pytest.mark.parametrize("task", TASKS)
def test_scores_of_the_reference_returns(task):
    random, expert, _, _ = D4RL[task]
    reference = find(f"{task}-medium").reference
    assert (reference.name, reference.random, reference.expert) == ("D4RL v2", random, expert)
    assert reference.score(random) == 0
    assert reference.score(expert) == pytest.approx(100)
    assert reference.score((random + expert) / 2) == pytest.approx(50)


def test_scores_go_below_zero_and_above_a_hundred():
    reference = Reference("any", 10.0, 20.0)
    assert (reference.score(5.0), reference.score(25.0)) == (-50.0, 150.0)


@pytest.mark.parametrize("task", TASKS)
def test_environment_of_d4rl_data_has_their_sizes(task):
    env = make(find(f"{task}-medium").environments["d4rl"])
    assert env.observation_space.shape + env.action_space.shape == D4RL[task][2:]
    assert env.spec.max_episode_steps == 1000
    env.close()


@pytest.mark.parametrize("name", [name for name in NAMES if find(name).behaviours])
def test_snapshots_of_every_entry_are_bundled_and_fit(name):
    entry = find(name)
    env = make(entry.environments["bundled"])
    for snapshot in entry.behaviours:
        layers = behaviours.bundled(entry.task, snapshot).layers
        assert layers[0][0].shape[0] == env.observation_space.shape[0]
        assert layers[2][0].shape[1] == layers[3][0].shape[1] == env.action_space.shape[0]
    env.close()


def test_which_entries_have_behaviours():
    with_some = {name for name in NAMES if find(name).behaviours}
    levels = ("medium", "medium-replay", "medium-expert", "expert")
    assert with_some == {f"{task}-{level}" for task in TASKS[:3] for level in levels}
    assert all(find(f"{task}-random").behaviours == () for task in TASKS)
    assert find("ant-medium").behaviours is None


def test_unknown_name_gives_near_matches():
    with pytest.raises(InvalidInput, match=r"unknown dataset 'hoper-medium'; did you mean .*'hopper-medium'"):
        find("hoper-medium")


def test_name_unlike_any_lists_some():
    with pytest.raises(InvalidInput, match=r"known: 'acrobot-expert', .* and 7\d\d more"):
        find("qqqqqq")


def test_entry_by_environment():
    for spec in (EnvironmentSpec("Hopper-v5"), EnvironmentSpec("Hopper-v4"), EnvironmentSpec("Hopper-v5", {}, 1000)):
        assert by_environment(spec).task == "hopper"
    assert by_environment(find("t-maze-expert").environments["bundled"]).task == "t-maze"
    assert by_environment(EnvironmentSpec("Ant-v4", {"use_contact_forces": True})).task == "ant"


@pytest.mark.parametrize(
    "spec",
    [
        EnvironmentSpec("Reacher-v5"),
        EnvironmentSpec("Hopper-v5", {"healthy_reward": 2.0}),
        EnvironmentSpec("Hopper-v5", {}, 500),
        EnvironmentSpec("Hopper-v5", wrappers=(Wrapper("RescaleAction", {"min_action": -2.0, "max_action": 2.0}),)),
        EnvironmentSpec("Ant-v4"),
        EnvironmentSpec("aaren/PassiveTMaze-v0", {"shortest": 1, "longest": 9}),
    ],
    ids=str,
)
def test_no_entry_for_another_environment_limit_arguments_or_wrappers(spec):
    assert by_environment(spec) is None
    assert reference_of(spec) is None


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("cartpole-mixed", None),
        ("frozenlake-expert", None),
        ("popgym-autoencode-easy", "popgym"),
        ("babyai-go-to-red-ball-no-dists", "minigrid"),
        ("babyai-go-to-red-ball-fullobs", "minigrid"),
        ("minigrid-memory-s7-expert", "minigrid"),
        ("pointmaze-umaze", "gymnasium_robotics"),
        ("antmaze-umaze", "gymnasium_robotics"),
        ("cube-single-play", "ogbench"),
        ("metaworld-reach-expert", "metaworld"),
    ],
)
def test_experts_make_data_that_load_with_their_environment(name, package):
    if package is not None:
        pytest.importorskip(package)
    entry = find(name)
    collect.collect(entry, 30, progress=False, say=lambda line: None)
    dataset = sources.load(name, "bundled", say=lambda line: None)
    assert dataset.trajectories.steps >= 30
    bundled = entry.environments["bundled"]
    assert (dataset.environment.registered_id, dataset.environment.wrappers) == (
        bundled.registered_id,
        bundled.wrappers,
    )
    assert bundled.kwargs.items() <= dataset.environment.kwargs.items()


@pytest.mark.parametrize("name", ["babyai-go-to-obj-s6", "babyai-go-to-obj-s6-fullobs"])
def test_names_of_a_renamed_environment_play(name):
    pytest.importorskip("minigrid")
    assert find(name).environments["minari"].id == "BabyAI-GoToObjS6-v1"
    collect.collect(find(name), 5, progress=False, say=lambda line: None)
    environment = sources.load(name, "bundled", say=lambda line: None).environment
    assert environment.id == "minigrid:BabyAI-GoToObjS6-v1"
    # What the hub's data record is not registered any more; the error names what is.
    with pytest.raises(InvalidInput, match="did you mean 'BabyAI-GoToObjS6-v1'"):
        describe(EnvironmentSpec("minigrid:BabyAI-GoToObjS6-v0"))


@pytest.mark.parametrize("family", sorted({listed.family for listed in hub.listing() if listed.package != "-"}))
def test_every_environment_of_the_hub_is_made_and_described(family):
    """What the hub's list counts as covered, with the environments themselves."""
    listed = {(one.environment, one.wrappers): one for one in hub.listing() if one.family == family}
    for (env_id, wrappers), one in listed.items():
        if env_id in hub.RENAMED:
            env_id = hub.RENAMED[env_id]
        if one.package != "gymnasium":
            pytest.importorskip(one.package)
        if env_id.startswith("FrankaKitchen") and int(importlib.metadata.version("mujoco").partition(".")[0]) > 3:
            pytest.skip("FrankaKitchen needs an older MuJoCo")
        spec = EnvironmentSpec(f"{one.package}:{env_id}", wrappers=tuple(map(Wrapper, wrappers)))
        parts = {type(part).__name__.removesuffix("Space") for _, part, _ in describe(spec).observation_space.parts()}
        expected = set(one.observations.removeprefix("Dict(").removesuffix(")").split(", "))
        # Models take small images as vectors.
        assert parts in (expected, {"Box" if part == "Image" else part for part in expected}), spec
