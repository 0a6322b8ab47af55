import gc
import json
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from goal_environments import NEAR, STEPS, InfoLine, Line, wandering

from aaren_rl.agents import DecisionAgent
from aaren_rl.data.environment_spec import EnvironmentSpec, Wrapper
from aaren_rl.data.hindsight import Hindsight
from aaren_rl.data.trajectories import Episode, Trajectories
from aaren_rl.envs import success
from aaren_rl.envs.dataset import Reading, of_trajectories
from aaren_rl.envs.environments import make, make_vector
from aaren_rl.envs.evaluation import Protocol, evaluate, result
from aaren_rl.envs.goals import Goals
from aaren_rl.envs.wrappers import Recorded, rebuildable
from aaren_rl.errors import DataError, InvalidInput
from aaren_rl.experiments.fit import fit

LINE, INFO = EnvironmentSpec("tests/Line-v0"), EnvironmentSpec("tests/InfoLine-v0")
SMALL = {"blocks": 1, "width": 32, "layout": "fused", "dropout": 0.0, "check_episodes": 0, "episodes": 40}
SMALL |= {
    "updates": 700,
    "learning_rate": 3e-3,
    "warmup": 10,
    "average": 0.9,
    "evaluate_every": 600,
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def registered():
    gym.register("tests/Line-v0", Line, max_episode_steps=STEPS)
    gym.register("tests/InfoLine-v0", InfoLine, max_episode_steps=STEPS)
    yield
    del gym.registry["tests/Line-v0"], gym.registry["tests/InfoLine-v0"]


def load(data, environment=LINE, said=None, **goals):
    goals = Goals(**{"hindsight": Hindsight(), **goals})
    said = [] if said is None else said
    return of_trajectories(data, environment, Reading(goals=goals), said.append)


def test_an_environment_says_what_goals_pay():
    said = []
    dataset = load(wandering(), said=said)
    rewards = dataset.relabelling.rewards
    assert (rewards.hit, rewards.distance) == (1.0, None)
    np.testing.assert_array_equal(rewards.compute(np.array([[0.0], [2.0]]), np.array([[0.2], [0.0]])), [1, 0])
    assert (dataset.target_returns, dataset.return_scale) == ((1.0,), 1.0)
    (line,) = [line for line in said if line.startswith("goals")]
    assert line == (
        "goals: 80% of the segments get another one (100% future); rewards are the environment's; a goal is reached "
        "where they are 1, and the task ends there"
    )
    assert "target: 1, the best return in the data, whose goals pay 0 a step" in said
    assert not [line for line in said if "warning" in line]
    # The data's own goals are far from all that is reached, and yet the network sees where those are.
    mean, std = dataset.scaling().observation_mean, dataset.scaling().observation_std
    assert (mean[0], std[0]) == (mean[1], std[1])


def test_dense_rewards_are_summed_to_the_episodes_end():
    said = []
    dataset = load(wandering(20), replace(LINE, kwargs={"dense": True}), said)
    assert dataset.relabelling.rewards.compute is not None
    assert dataset.relabelling.rewards.hit is dataset.relabelling.rewards.distance is None
    assert any(line.endswith("summed to the episode's end") for line in said)
    assert any("20 steps are paid otherwise" not in line and "steps are paid otherwise" in line for line in said)


@pytest.mark.parametrize(
    ("kwargs", "distance", "message"),
    [
        ({"dense": True, "ends": True}, None, "pays by distance, and episodes end at the goal"),
        ({"batch": False}, None, "takes no batch of goals: AssertionError"),
        ({"computes": False}, None, "nothing says when a goal of arrays is reached, since tests/Line-v0"),
        ({}, -1.0, "goal_distance is -1"),
    ],
)
def test_rewards_that_cannot_be_had(kwargs, distance, message):
    with pytest.raises(InvalidInput, match=message):
        load(wandering(5), replace(LINE, kwargs=kwargs), distance=distance)


@pytest.mark.parametrize("kwargs", [{"batch": False}, {"computes": False}])
def test_a_distance_serves_where_no_rewards_are_computed(kwargs):
    rewards = load(wandering(5), replace(LINE, kwargs=kwargs), distance=NEAR).relabelling.rewards
    assert (rewards.compute, rewards.distance) == (None, NEAR)


def test_the_threshold_of_an_environment_is_taken():
    said = []
    spec = replace(LINE, kwargs={"computes": False, "threshold": 0.4})
    assert load(wandering(5), spec, said).relabelling.rewards.distance == 0.4
    assert any("calls a goal reached within a distance of 0.4" in line for line in said)


def test_data_with_goals_and_no_environment_need_a_distance():
    with pytest.raises(InvalidInput, match="since no environment is known; pass --goal-distance"):
        load(wandering(5), None)
    assert load(wandering(5), None, distance=0.3).relabelling.rewards.distance == 0.3


def test_data_without_goals_get_the_ends_of_their_episodes():
    said = []
    dataset = load(wandering(5, goals=False), INFO, said)
    data = dataset.trajectories
    assert [part.path for part in data.observation_space.parts()] == ["achieved_goal", "desired_goal", "observation"]
    np.testing.assert_array_equal(data.numbers[:, :2], data.numbers[:, 4:])
    ends = data.final_observations[:, 4:]
    np.testing.assert_array_equal(data.numbers[:, 2:4], np.repeat(ends, STEPS, axis=0))
    assert data.returns.tolist() == [1.0] * 5
    assert dataset.relabelling.rewards.by_step
    assert dataset.target_returns == (1.0,)
    assert dataset.environment.wrappers == (Wrapper("GoalObservation"),)
    assert any("is acted in through GoalObservation()" in line for line in said)


@pytest.mark.parametrize("form", ["observation", "part"])
def test_a_goal_may_be_a_part_of_an_observation(form):
    spec = replace(INFO, kwargs={"goal": form})
    dataset = load(wandering(5, goals=False), spec, columns=(0,))
    assert dict(dataset.observation_space.by_key)["desired_goal"].shape == (1,)
    # The wrapper is a part of the spec, which JSON holds, and nothing else is needed to build it again.
    spec = EnvironmentSpec.from_json(json.loads(json.dumps(dataset.environment.to_json())))
    assert spec == dataset.environment
    env = make(spec)
    observation, info = env.reset(seed=3)
    assert observation["desired_goal"].tolist() == [env.unwrapped.goal] == [info["goal"][0]]
    observation = env.step(np.array([1.0], np.float32))[0]
    assert observation["achieved_goal"].tolist() == observation["observation"][:1].tolist() == [0.5]
    assert env.observation_space.contains(observation)
    assert str(spec).endswith("GoalObservation(columns=[0])")


@pytest.mark.parametrize(
    ("data", "environment", "goals", "error", "message"),
    [
        (wandering(4), LINE, {"columns": (0,)}, InvalidInput, "goal_columns are for data without goals"),
        (wandering(4, goals=False), INFO, {"columns": (2,)}, InvalidInput, "expected numbers from 0 to 1, each once"),
        (wandering(4, goals=False), INFO, {"columns": (1, 1)}, InvalidInput, "each once"),
        (
            wandering(4, goals=False),
            replace(INFO, kwargs={"goal": "none"}),
            {},
            InvalidInput,
            "tests/InfoLine-v0 has none .*leave out --goals hindsight",
        ),
        (
            wandering(4, goals=False),
            replace(INFO, kwargs={"goal": "wrong"}),
            {},
            InvalidInput,
            r"goal has shape \(5,\)",
        ),
        (wandering(4, goals=False), LINE, {}, InvalidInput, "expected a Box of one dimension"),
        (
            replace(wandering(4, goals=False), final_observations=None),
            INFO,
            {},
            DataError,
            "the observation after each episode's last action",
        ),
    ],
)
def test_goals_that_cannot_be_had(data, environment, goals, error, message):
    with pytest.raises(error, match=message):
        load(data, environment, **goals)


def test_images_are_no_goals():
    images = np.zeros((6, 8, 8, 3), np.uint8)
    data = Trajectories.from_episodes([Episode(images, np.zeros((5, 1)), np.zeros(5))])
    with pytest.raises(DataError, match="none can be made of its observations"):
        load(data, None)


def test_data_may_name_the_wrapper_of_this_project_alone():
    ours = Recorded("GoalObservation", "aaren_rl.envs.goal_observation:GoalObservation", {"columns": [0]})
    assert rebuildable([ours], "here") == (Wrapper("GoalObservation", {"columns": [0]}),)
    with pytest.raises(DataError, match="GoalObservation, which cannot be built again"):
        rebuildable([ours._replace(entry_point="other.wrappers:GoalObservation")], "here")


def test_targets_of_sparse_data_are_the_best_return():
    """Whatever the environment pays while a goal is held."""
    data = wandering(6)
    reached = np.zeros(data.steps, np.float32)
    reached[data.offsets[1:3] - 1] = 1.0
    ends = Reading()
    assert of_trajectories(replace(data, rewards=reached), LINE, ends).target_returns == (1.0,)
    assert of_trajectories(replace(data, rewards=reached - 1), LINE, ends).target_returns == (1.0 - STEPS,)
    spread = np.random.default_rng(0).normal(size=data.steps)
    assert len(of_trajectories(replace(data, rewards=spread), LINE, ends).target_returns) == 3


def test_hindsight_teaches_what_the_goals_of_data_do_not(tmp_path):
    rates = {}
    for goals, relabel in (("data", {}), ("hindsight", {"relabel": 1.0})):
        folder, settings = tmp_path / goals, {**SMALL, "goals": goals, **relabel}
        fit(wandering(), environment="tests/Line-v0", folder=folder, progress=False, **settings)
        figures = json.loads((folder / "result.json").read_text())
        assert figures["success_rule"] == "a reward of 1, that of a reached goal, at any step"
        rates[goals] = figures["success_rate"]
    assert rates["data"] < 0.4
    assert rates["hindsight"] > 0.8


def test_an_agent_that_was_given_goals_reaches_them(tmp_path):
    """Trained without any, it acts on the goals of infos, from its folder alone, and on those that a caller gives."""
    settings = {**SMALL, "goals": "hindsight", "goal_columns": (0,), "relabel": 1.0}
    agent = fit(wandering(goals=False), environment="tests/InfoLine-v0", folder=tmp_path, progress=False, **settings)
    figures = json.loads((tmp_path / "result.json").read_text())
    assert figures["wrappers"] == ["GoalObservation(columns=[0])"]
    assert figures["success_rule"] == "its info says so at any step of the episode"
    assert figures["success_rate"] > 0.8
    loaded = DecisionAgent.load(tmp_path / "last")
    again = result(evaluate(loaded, p := Protocol(loaded.card.environment, 40, 0, 1.0, None)), p)
    assert again["returns"] == figures["returns"]
    for goal in (-3.0, 4.0):
        env = make(agent.card.environment)
        observation, _ = env.reset(seed=0)
        agent.reset(goal=np.array([goal]))
        reward, distances = None, []
        for _ in range(STEPS):
            observation, *_ = env.step(agent.act(observation, reward))
            # The environment pays for its own goal, which is another one.
            reward = 0.0
            distances.append(abs(observation["achieved_goal"][0] - goal))
        assert min(distances) <= NEAR
    with pytest.raises(InvalidInput, match="the goal does not fit"):
        agent.reset(goal=np.zeros(3))
    with pytest.raises(InvalidInput, match="the goal does not fit"):
        agent.reset(num_envs=4, goal=np.zeros(3))
    # One for each row.
    agent.reset(num_envs=2, goal=np.array([[-3.0], [4.0]]))
    first = {"observation": np.zeros((2, 2)), "achieved_goal": np.zeros((2, 1)), "desired_goal": np.zeros((2, 1))}
    left, right = agent.act(first)[:, 0]
    assert left < 0 < right


def test_an_agent_without_goals_takes_none(tmp_path):
    settings = SMALL | {"updates": 2}
    agent = fit(wandering(4, goals=False), environment="none", folder=tmp_path, progress=False, **settings)
    with pytest.raises(InvalidInput, match="a goal for an agent whose observations have no 'desired_goal'"):
        agent.reset(goal=np.zeros(1))


class Fixed:
    """Does the same in every step."""

    def __init__(self, action):
        self.action = action

    def reset(self, target_return=None, num_envs=None, autoreset_mode=None):
        self.rows = num_envs

    def act(self, observation, reward=None, terminated=False, truncated=False):
        return np.stack([self.action] * self.rows)


@pytest.mark.parametrize(
    ("spec", "action", "rule"),
    [
        (EnvironmentSpec("FrozenLake-v1", {"is_slippery": False, "desc": ["SG"]}), np.int64(2), success.PAID_END),
        (EnvironmentSpec("FrozenLake-v1", {"is_slippery": False, "desc": ["SHG"]}), np.int64(2), success.PAID_END),
        (EnvironmentSpec("MountainCar-v0", max_episode_steps=30), np.int64(1), success.TERMINATION),
    ],
)
def test_success_where_the_environment_is_known(spec, action, rule):
    figures = result(evaluate(Fixed(action), p := Protocol(spec, 3, 0, None, None)), p)
    assert figures["success_rule"] == rule.name
    assert figures["success_rate"] == (1.0 if spec.kwargs.get("desc") == ["SG"] else 0.0)


@pytest.mark.parametrize("schedule", [(1, 0, 0.1), [1, 1, 0], (5, 0, 0)])
def test_frozen_lake_with_other_rewards_has_no_rule(schedule):
    spec = EnvironmentSpec("FrozenLake-v1", {"reward_schedule": schedule})
    assert success.rule_of(spec, gym.spaces.Discrete(16)) is None
    registered = EnvironmentSpec("FrozenLake-v1", {"reward_schedule": [1, 0, 0]})
    assert success.rule_of(registered, gym.spaces.Discrete(16)) is success.PAID_END


def test_the_environment_of_rewards_is_closed_once_they_are_dropped(monkeypatch):
    closed = []
    monkeypatch.setattr(Line, "close", lambda self: closed.append(self))
    dataset = load(wandering())
    opened = len(closed)
    compute = dataset.relabelling.rewards.compute
    assert compute(np.zeros((2, 1)), np.zeros((2, 1))).shape == (2,)
    del dataset, compute
    gc.collect()
    assert len(closed) == opened + 1


def test_success_by_the_reward_of_a_goal():
    envs = make_vector(LINE, 2)
    rule = success.rule_of(LINE, envs.single_observation_space)
    envs.close()
    assert rule.name == "a reward of 1, that of a reached goal, at any step"
    assert rule.reached(np.array([0.0, 1.0]), np.array([True, False])).tolist() == [False, True]
    for spec in (replace(LINE, kwargs={"dense": True}), replace(LINE, wrappers=(Wrapper("ClipReward"),))):
        assert success.rule_of(spec, Line().observation_space) is None
    assert success.rule_of(EnvironmentSpec("CartPole-v1"), gym.spaces.Box(-1, 1)) is None


def test_minigrids_success_is_a_reward_at_the_end():
    pytest.importorskip("minigrid")
    for name in ("MiniGrid-Empty-5x5-v0", "BabyAI-GoToRedBall-v0"):
        assert success.rule_of(EnvironmentSpec(name), gym.make(name).observation_space) is success.PAID_END


@pytest.mark.parametrize(("ends", "rule"), [(True, success.TERMINATION), (False, None)])
def test_a_kitchens_success_is_that_it_ends(ends, rule):
    gym.register_envs(pytest.importorskip("gymnasium_robotics"))
    spec = EnvironmentSpec("FrankaKitchen-v1", {"terminate_on_tasks_completed": ends})
    assert success.rule_of(spec, gym.spaces.Dict({"desired_goal": gym.spaces.Dict({})})) is rule


def test_a_real_point_maze_computes_its_rewards():
    pytest.importorskip("gymnasium_robotics")
    spec = EnvironmentSpec("gymnasium_robotics:PointMaze_UMaze-v3", max_episode_steps=40)
    env, episodes = make(spec), []
    for seed in range(4):
        seen, actions, rewards = [env.reset(seed=seed)[0]], [], []
        for _ in range(40):
            actions.append(env.action_space.sample())
            observation, reward, *_ = env.step(actions[-1])
            seen.append(observation)
            rewards.append(reward)
        parts = {key: np.stack([one[key] for one in seen]) for key in seen[0]}
        episodes.append(Episode(parts, np.stack(actions), np.array(rewards), truncated=True))
    env.close()
    said = []
    dataset = load(Trajectories.from_episodes(episodes), spec, said)
    assert dataset.relabelling.rewards.hit == 1.0
    # What the environment paid while it was played is what it computes for the data.
    assert not [line for line in said if "otherwise" in line]
    points = np.random.default_rng(0).uniform(-1, 1, (2, 50, 2))
    near = (np.linalg.norm(points[0] - points[1], axis=-1) <= 0.45).astype(float)
    np.testing.assert_array_equal(dataset.relabelling.rewards.compute(*points), near)


def test_a_real_ogbench_maze_gives_its_goal():
    pytest.importorskip("ogbench")
    env = make(EnvironmentSpec("ogbench:pointmaze-medium-v0", wrappers=(Wrapper("GoalObservation"),)))
    observation, info = env.reset(seed=0)
    np.testing.assert_array_equal(observation["desired_goal"], info["goal"].astype(np.float64))
    assert env.observation_space.contains(observation)
    env.close()
