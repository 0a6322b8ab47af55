import gymnasium as gym
import pytest

from aaren_rl.data.environment_spec import EnvironmentSpec, Wrapper
from aaren_rl.envs import behaviours
from aaren_rl.envs.catalogue import Reference, by_environment, catalogue, find, reference_of
from aaren_rl.envs.environments import make
from aaren_rl.envs.readers.minari import local_folder
from aaren_rl.errors import InvalidInput

TASKS = ("hopper", "halfcheetah", "walker2d", "ant")
LEVELS = ("random", "simple", "medium", "medium-replay", "medium-expert", "expert")
NAMES = [f"{task}-{level}" for task in TASKS for level in LEVELS]

# Returns of a random and of an expert policy by the rules, steps of the longest episode.
SCRIPTED = {
    "t-maze-expert": (0.5, 1.0, 151),
    "memory-chain-expert": (0.5, 1.0, 151),
    "repeat-previous-easy": (-0.5, 1.0, 51),
    "repeat-previous-medium": (-0.5, 1.0, 103),
    "repeat-previous-hard": (-0.5, 1.0, 155),
}

# Mean returns of a random and of an expert policy in D4RL's infos.py, and observation and action sizes of its files.
D4RL = {
    "hopper": (-20.272305, 3234.3, 11, 3),
    "halfcheetah": (-280.178953, 12135.0, 17, 6),
    "walker2d": (1.629008, 4592.3, 17, 6),
    "ant": (-325.6, 3879.7, 111, 8),
}


def test_every_task_has_every_level():
    assert sorted(catalogue()) == sorted([*NAMES, *SCRIPTED])


@pytest.mark.parametrize("name", NAMES)
def test_entry_is_sane(name):
    entry = find(name)
    task, _, level = name.partition("-")
    assert (entry.name, entry.task, entry.horizon) == (name, task, 1000)
    assert entry.minari_id == (f"mujoco/{task}/{level}-v0" if level in ("simple", "medium", "expert") else None)
    assert entry.d4rl_file == (None if level == "simple" else f"{task}_{level.replace('-', '_')}-v2.hdf5")
    assert entry.bundled_id == f"aaren/{task}/{level}-v0"
    assert set(entry.environments) == {"minari", "d4rl", "bundled"}
    assert entry.environments["minari"].id.endswith("-v5")
    assert entry.environments["d4rl"].id.endswith("-v4")
    assert entry.environments["bundled"] == entry.environments["minari"]
    assert all(spec.id in gym.registry for spec in entry.environments.values())
    assert entry.target_returns[0] == max(entry.target_returns)
    assert entry.target_returns[0] > 0.9 * entry.reference.expert
    assert entry.return_scale == 1000.0
    assert not entry.scripted
    assert entry.bundled == (entry.behaviours is not None)
    # A dataset must come from somewhere.
    assert entry.minari_id or entry.d4rl_file or entry.bundled


@pytest.mark.parametrize("name", SCRIPTED)
def test_scripted_entry_is_sane(name):
    entry = find(name)
    random, expert, horizon = SCRIPTED[name]
    assert (entry.reference.name, entry.reference.random, entry.reference.expert) == ("by construction", random, expert)
    assert (entry.horizon, entry.target_returns, entry.return_scale) == (horizon, (expert,), 1.0)
    assert entry.scripted
    assert entry.bundled
    # There is nothing to download.
    assert (entry.minari_id, entry.d4rl_file, entry.behaviours) == (None, None, None)
    assert set(entry.environments) == {"bundled"}
    assert entry.environments["bundled"].id in gym.registry


def test_levels_of_repeat_previous_are_popgyms():
    kwargs = [find(f"repeat-previous-{level}").environments["bundled"].kwargs for level in ("easy", "medium", "hard")]
    assert kwargs == [{"decks": 1, "k": 4}, {"decks": 2, "k": 32}, {"decks": 3, "k": 64}]


@pytest.mark.parametrize("name", [*NAMES, *SCRIPTED])
def test_bundled_id_is_one_that_minari_accepts(name):
    entry = find(name)
    assert entry.bundled_id == f"aaren/{entry.task}/{name.removeprefix(entry.task)[1:]}-v0"
    assert local_folder(entry.bundled_id).parts[-3:] == tuple(entry.bundled_id.split("/"))


def test_minari_ids_files_and_bundled_ids_are_unique():
    for values in (
        [entry.minari_id for entry in catalogue().values() if entry.minari_id],
        [entry.d4rl_file for entry in catalogue().values() if entry.d4rl_file],
        [entry.bundled_id for entry in catalogue().values()],
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


def test_name_unlike_any_lists_all():
    with pytest.raises(InvalidInput, match=r"known: ant-expert, .*walker2d-simple"):
        find("qqqqqq")


def test_entry_by_environment():
    for spec in (EnvironmentSpec("Hopper-v5"), EnvironmentSpec("Hopper-v4"), EnvironmentSpec("Hopper-v5", {}, 1000)):
        assert by_environment(spec).task == "hopper"
    assert by_environment(find("t-maze-expert").environments["bundled"]).task == "t-maze"
    assert by_environment(EnvironmentSpec("Ant-v4", {"use_contact_forces": True})).task == "ant"


@pytest.mark.parametrize(
    "spec",
    [
        EnvironmentSpec("Pendulum-v1"),
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
