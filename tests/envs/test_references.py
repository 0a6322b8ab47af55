"""Which returns a score is measured against: the dataset's own, then tables, then none, and the reason for each."""

import contextlib
import json
import sys

import gymnasium as gym
import minari
import numpy as np
import pytest
from gymnasium import wrappers
from minari.data_collector import EpisodeBuffer

from aaren_rl.data.environment_spec import EnvironmentSpec, Wrapper
from aaren_rl.data.reference import RECORDED, Reference, recorded_reference
from aaren_rl.envs import sources
from aaren_rl.envs.dataset import Reading
from aaren_rl.envs.environment_choice import EnvironmentChoice
from aaren_rl.envs.environments import make
from aaren_rl.envs.evaluation import Protocol
from aaren_rl.envs.experts import find
from aaren_rl.envs.readers.minari import local_folder
from aaren_rl.envs.references import find_reference, reference_of, rows
from aaren_rl.errors import DataError, InvalidInput

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

OWN = Reference(RECORDED, 1.0, 5.0)
HOPPER = EnvironmentSpec("Hopper-v5")
FOUR = {"tasks_to_complete": ["microwave", "kettle", "light switch", "slide cabinet"]}


# The tables


def test_d4rls_table_is_whole():
    table = {row.environment.id: row.reference for row in rows() if row.package == "d4rl"}
    assert len(table) == 147
    # Some of every kind, from D4RL's paper and infos.py.
    for name, expected in {
        "maze2d-umaze-v1": ("D4RL v1", 23.85, 161.86),
        "antmaze-large-diverse-v2": ("D4RL v2", 0.0, 1.0),
        "pen-human-v1": ("D4RL v1", 96.262799, 3076.8331017826877),
        "kitchen-mixed-v0": ("D4RL v0", 0.0, 4.0),
        "halfcheetah-full-replay-v2": ("D4RL v2", -280.178953, 12135.0),
        "flow-ring-random-v0": ("D4RL v0", -165.22, 24.42),
    }.items():
        reference = table[name]
        assert (reference.name, reference.random, reference.expert) == expected
    assert all(reference.expert > reference.random for reference in table.values())


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (HOPPER, ("D4RL v2", -20.272305, 3234.3)),
        (EnvironmentSpec("Walker2d-v4", {}, 1000), ("D4RL v2", 1.629008, 4592.3)),
        (EnvironmentSpec("gymnasium:HalfCheetah-v5"), ("D4RL v2", -280.178953, 12135.0)),
        (EnvironmentSpec("Ant-v4", {"use_contact_forces": True}), ("D4RL v2", -325.6, 3879.7)),
        (
            EnvironmentSpec("aaren/Recall-v0", {"k": 32, "length": 128, "symbols": 4}),
            ("by construction", 0.25, 1.0),
        ),
        (EnvironmentSpec("aaren/MemoryChain-v0", {"bits": 4, "shortest": 1, "longest": 150}, 151), None),
        (EnvironmentSpec("CartPole-v1", {}, 500), ("random and scripted expert", 23.3, 500.0)),
        (EnvironmentSpec("Blackjack-v1"), ("random and scripted expert", -0.394, -0.0564)),
    ],
    ids=str,
)
def test_tables_serve_for_the_environments_that_they_are_of(spec, expected):
    reference, reason = find_reference(spec)
    assert (reference.name, reference.random, reference.expert) == (expected or ("by construction", 0.5, 1.0))
    assert spec.registered_id in reason


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (EnvironmentSpec("Hopper-v5", {}, 500), r"none: D4RL v2 has Hopper-v5, limit 1000 .*this is .*limit 500 steps"),
        (EnvironmentSpec("Hopper-v5", {"reset_noise_scale": 0.1}), r"this is Hopper-v5, reset_noise_scale=0.1"),
        (EnvironmentSpec("Hopper-v5", wrappers=(Wrapper("ClipReward", {"min_reward": 0}),)), r"this is .*ClipReward"),
        (EnvironmentSpec("Ant-v4"), "use_contact_forces=true"),
        (EnvironmentSpec("Reacher-v5"), "none: no table has Reacher-v5"),
        (EnvironmentSpec("hopper-medium-v2"), "none: unknown environment 'hopper-medium-v2'"),
        (None, "none: nothing is rolled out"),
    ],
    ids=str,
)
def test_no_table_serves_and_the_reason_says_why(spec, why):
    reference, reason = find_reference(spec)
    assert reference is None
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(reason)


@pytest.mark.parametrize(
    ("env_id", "expert", "episodes"),
    [
        ("CartPole-v1", "cartpole", 20),
        ("MountainCar-v0", "mountaincar", 20),
        ("Taxi-v4", "tabular", 40),
        ("FrozenLake-v1", "tabular", 200),
        ("Blackjack-v1", "blackjack", 2_000),
        ("popgym-RepeatPreviousMedium-v0", "popgym", 10),
        ("popgym-CountRecallHard-v0", "popgym", 10),
        ("popgym-HigherLowerMedium-v0", "popgym", 20),
        ("popgym-ConcentrationHard-v0", "popgym", 20),
        ("popgym-BattleshipMedium-v0", "popgym", 20),
        ("popgym-MineSweeperEasy-v0", "popgym", 200),
        ("popgym-MultiarmedBanditEasy-v0", "popgym", 20),
        ("popgym-NoisyPositionOnlyCartPoleHard-v0", "popgym", 20),
        ("popgym-PositionOnlyPendulumHard-v0", "popgym", 20),
        ("MiniGrid-MemoryS7-v0", "minigrid-memory", 40),
    ],
)
def test_scripted_experts_and_random_actions_score_what_the_table_says(env_id, expert, episodes):
    if (package := find(expert).package) is not None:
        pytest.importorskip(package)
    env = make(EnvironmentSpec(env_id))
    means, spreads = [], []
    for name in ("random", expert):
        policy, returns = find(name).policy(env, 1), []
        for seed in range(episodes):
            observation, info = env.reset(seed=1_000 + seed)
            policy.reset(observation, info)
            total, done, taken = 0.0, False, None
            while not done:
                taken = policy.act(observation, info, taken)
                observation, reward, terminated, truncated, info = env.step(taken)
                total, done = total + reward, terminated or truncated
            returns.append(total)
        means.append(np.mean(returns))
        spreads.append(np.std(returns) / np.sqrt(episodes))
    reference = reference_of(EnvironmentSpec(env_id))
    assert means[0] == pytest.approx(reference.random, abs=5 * spreads[0] + 1e-6)
    assert means[1] == pytest.approx(reference.expert, abs=5 * spreads[1] + 1e-6)


def test_d4rls_own_environments_have_d4rls_returns(monkeypatch):
    entry = "d4rl.gym_mujoco.gym_envs:get_hopper_env"
    monkeypatch.setitem(
        gym.registry,
        "hopper-medium-v2",
        gym.envs.registration.EnvSpec("hopper-medium-v2", entry, max_episode_steps=1000),
    )
    assert find_reference(EnvironmentSpec("d4rl:hopper-medium-v2")) == (
        Reference("D4RL v2", -20.272305, 3234.3),
        "D4RL's table for hopper-medium-v2",
    )
    other = gym.envs.registration.EnvSpec("hopper-medium-v2", "mypackage:Hopper", max_episode_steps=1000)
    monkeypatch.setitem(gym.registry, "hopper-medium-v2", other)
    assert reference_of(EnvironmentSpec("hopper-medium-v2")) is None
    assert reference_of(EnvironmentSpec("mypackage:hopper-medium-v2")) is None


# Environments of gymnasium-robotics, which look like D4RL's


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (EnvironmentSpec("AdroitHandDoor-v1"), "adds the distance of hand and object"),
        (EnvironmentSpec("AdroitHandPen-v1", {}, 100), "goes on after the pen was dropped"),
        (EnvironmentSpec("PointMaze_UMaze-v3"), "goal is drawn anew"),
        (EnvironmentSpec("AntMaze_UMaze-v5"), "are not those of D4RL's antmaze"),
        (EnvironmentSpec("FrankaKitchen-v1", {"tasks_to_complete": ["kettle"]}), "of its own four"),
        (
            EnvironmentSpec("FrankaKitchen-v1", {**FOUR, "remove_task_when_completed": False}),
            "once",
        ),
    ],
    ids=str,
)
def test_kin_that_pay_otherwise_have_no_reference(spec, why):
    pytest.importorskip("gymnasium_robotics")
    reference, reason = find_reference(spec)
    assert reference is None
    assert reason.startswith(f"none: {spec.id} is not D4RL's environment: ")
    assert why in reason


def test_signs_of_adroits_rewards_are_not_d4rls():
    """The reason why no table serves for it: the reward rises as the hand leaves the door."""
    pytest.importorskip("gymnasium_robotics")
    env = gym.make("AdroitHandDoor-v1").unwrapped
    env.reset(seed=0)
    still = np.zeros(env.action_space.shape)
    reward = env.step(still)[1]
    palm, handle = (env.data.site_xpos[site] for site in (env.grasp_site_id, env.handle_site_id))
    hinge, speeds = float(env.data.qpos[env.door_hinge_addrs]), np.sum(env.data.qvel**2)
    rest = -0.1 * (hinge - 1.57) ** 2 - 1e-5 * speeds
    assert reward == pytest.approx(0.1 * np.linalg.norm(palm - handle) + rest, abs=1e-6)
    env.close()


def test_kitchen_counts_tasks_as_d4rls_does():
    pytest.importorskip("gymnasium_robotics")
    reference, reason = find_reference(EnvironmentSpec("FrankaKitchen-v1", FOUR))
    assert (reference.name, reference.random, reference.expert) == ("D4RL v0 (FrankaKitchen-v1)", 0.0, 4.0)
    assert "kitchen-complete-v0" in reason


# Atari

ATARI = {"repeat_action_probability": 0.0}
SQUARE = Wrapper("ResizeObservation", {"shape": [84, 84]})


@pytest.mark.parametrize(
    "spec",
    [
        EnvironmentSpec("ALE/Breakout-v5", ATARI),
        # As Minari's sets record it.
        EnvironmentSpec(
            "ale_py:ALE/Breakout-v5",
            {
                "game": "breakout",
                "obs_type": "rgb",
                "repeat_action_probability": 0,
                "full_action_space": False,
                "frameskip": 4,
                "max_num_frames_per_episode": 108000,
            },
            27_000,
        ),
        EnvironmentSpec("ALE/Breakout-v5", ATARI, None, (Wrapper("GrayscaleObservation"), SQUARE)),
        EnvironmentSpec("BreakoutNoFrameskip-v4", {}, None, (Wrapper("AtariPreprocessing"),)),
    ],
    ids=str,
)
def test_games_have_human_and_random_returns(spec):
    pytest.importorskip("ale_py")
    reference, reason = find_reference(spec)
    assert (reference.name, reference.random, reference.expert) == ("Atari, human", 1.7, 30.5)
    assert "Breakout" in reason


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (EnvironmentSpec("ALE/Breakout-v5"), r"repeat_action_probability 0 \(here 0.25\)"),
        (EnvironmentSpec("ALE/Breakout-v5", {**ATARI, "frameskip": 1}), r"4 frames for each action \(here 1\)"),
        (EnvironmentSpec("ALE/Breakout-v5", {**ATARI, "frameskip": [2, 5]}), r"4 frames .*\(here \[2, 5\]\)"),
        (EnvironmentSpec("BreakoutNoFrameskip-v4"), r"4 frames for each action \(here 1\)"),
        (EnvironmentSpec("ALE/Breakout-v5", ATARI, 1000), r"108000 frames for each episode \(here 4000\)"),
        (EnvironmentSpec("ALE/Breakout-v5", {**ATARI, "mode": 4}), r"no mode \(here 4\)"),
        (EnvironmentSpec("ALE/Breakout-v5", ATARI, None, (Wrapper("ClipReward"),)), "no wrapper ClipReward"),
        (
            EnvironmentSpec(
                "BreakoutNoFrameskip-v4", {}, None, (Wrapper("AtariPreprocessing", {"terminal_on_life_loss": True}),)
            ),
            "episodes last all lives",
        ),
        (EnvironmentSpec("ALE/Tetris-v5", ATARI), "lacks Tetris"),
    ],
    ids=str,
)
def test_games_under_other_settings_have_none(spec, why):
    pytest.importorskip("ale_py")
    reference, reason = find_reference(spec)
    assert reference is None
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(reason)


def test_every_game_of_the_table_is_one_of_ales():
    pytest.importorskip("ale_py")
    games = [game for game in gym.registry if game.startswith("ALE/") and reference_of(EnvironmentSpec(game, ATARI))]
    assert len(games) == 57


# The dataset's own


def record(env, **more):
    observation, _ = env.reset(seed=0)
    observations, rewards, actions, done = [observation], [], [], False
    env.action_space.seed(0)
    while not done:
        actions.append(env.action_space.sample())
        observation, reward, *ends, _ = env.step(actions[-1])
        observations.append(observation)
        rewards.append(float(reward))
        done = any(ends)
    flags = np.zeros(len(rewards), bool), np.eye(len(rewards))[-1] > 0
    buffer = EpisodeBuffer(0, None, None, np.stack(observations), np.stack(actions), np.array(rewards), *flags, {})
    minari.create_dataset_from_buffers("tests/scored-v0", buffer=[buffer], env=env, **more)
    env.close()


def load(**choice):
    said = []
    dataset = sources.load("tests/scored-v0", reading=Reading(EnvironmentChoice(**choice)), say=said.append)
    return dataset, "\n".join(said)


def test_the_datasets_own_returns_come_first():
    record(gym.make("Hopper-v5"), ref_min_score=1.0, ref_max_score=5.0)
    dataset, _ = load()
    assert (dataset.reference, dataset.reference_reason) == (OWN, "recorded with the dataset")
    assert dataset.own_reference == OWN
    # Elsewhere they are no measure, and the tables' own conditions hold.
    dataset, _ = load(horizon=500)
    assert dataset.reference is None
    assert dataset.reference_reason.endswith("; those that the dataset records are of Hopper-v5, limit 1000 steps")
    dataset, _ = load(id="Hopper-v4")
    assert (dataset.reference.name, dataset.own_reference) == ("D4RL v2", None)


def test_the_datasets_own_returns_are_of_the_environment_for_evaluation():
    record(gym.make("Pendulum-v1"), eval_env=gym.make("Pendulum-v1", g=5.0), ref_min_score=1.0, ref_max_score=5.0)
    assert load()[0].reference == OWN
    assert load(kwargs={"g": 10.0})[0].reference is None


def test_data_without_own_returns_take_the_tables():
    record(gym.make("Hopper-v5"))
    dataset, _ = load()
    assert (dataset.reference.name, dataset.own_reference) == ("D4RL v2", None)


@pytest.mark.parametrize(
    ("low", "high", "why"),
    [
        (1.0, None, "ref_max_score is None; expected a finite number"),
        (None, 1.0, "ref_min_score is None; expected a finite number"),
        (1.0, float("nan"), "ref_max_score is nan"),
        (float("-inf"), 1.0, "ref_min_score is -inf"),
        ("0", 1.0, "ref_min_score is '0'"),
        (True, 5.0, "ref_min_score is True"),
        (5.0, 5.0, "ref_max_score is 5.0 and ref_min_score 5.0; expected it to be above"),
        (5.0, -5.0, "ref_max_score is -5.0 and ref_min_score 5.0"),
    ],
)
def test_returns_that_are_no_measure_are_refused(low, high, why):
    record(gym.make("Reacher-v5"))
    file = local_folder("tests/scored-v0") / "data" / "metadata.json"
    metadata = json.loads(file.read_text()) | {"ref_min_score": low, "ref_max_score": high}
    file.write_text(json.dumps(metadata))
    with pytest.raises(DataError, match=f"damaged record of its reference returns: {why}.*--env-id"):
        load()
    # An environment that the user names does without the record.
    dataset, said = load(id="Reacher-v5")
    assert dataset.reference is None
    assert f"warning: tests/scored-v0 has a damaged record of its reference returns: {why}" in said


def test_a_recorded_reference_never_bears_the_name_of_a_table():
    assert recorded_reference({"name": "D4RL v2", "random": 0, "expert": 1}) == Reference(RECORDED, 0.0, 1.0)
    assert recorded_reference({}) is None
    with pytest.raises(InvalidInput, match="saved as 5; expected random and expert"):
        recorded_reference(5)


def test_the_result_says_which_and_why():
    found = find_reference(HOPPER)
    saved = Protocol(HOPPER, 1, 0, None, found.reference, reference_reason=found.reason).to_json()
    assert saved["reference"] == "D4RL v2"
    assert saved["reference_reason"] == "D4RL's table for hopper-medium-v2, whose environment lives on as Hopper-v5"


# What a look-up may do


def test_looking_up_imports_packages_of_the_list_alone(monkeypatch, tmp_path):
    (tmp_path / "sprung_module.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    for env_id in ("sprung_module:ALE/Breakout-v5", "sprung_module:FrankaKitchen-v1", "sprung_module:Hopper-v5"):
        with contextlib.suppress(InvalidInput):
            assert find_reference(EnvironmentSpec(env_id)).reference is None
    assert "sprung_module" not in sys.modules


def test_wrapped_recordings_are_scored_only_unwrapped():
    record(wrappers.ClipReward(gym.make("Hopper-v5"), -1.0, 1.0))
    dataset, _ = load()
    assert dataset.reference is None
    assert "ClipReward" in dataset.reference_reason
