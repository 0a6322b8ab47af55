"""Data of real environments whose bounds or observations do not suit: what a model of them is scaled by."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec

from aaren_rl.agents import DecisionAgent
from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.oddities import describe_oddities
from aaren_rl.data.spaces import Box, DiscreteSpace, space_of
from aaren_rl.data.trajectories import Episode, Trajectories
from aaren_rl.envs.batches import stacked
from aaren_rl.envs.dataset import of_trajectories
from aaren_rl.envs.environments import OWN_LIMITS, limit_of, limits_itself, make, time_limit
from aaren_rl.errors import DataError, InvalidInput
from aaren_rl.model import DecisionModel, ModelConfig, Scaling

LARGEST = float(np.finfo(np.float32).max)
CARD = AgentCard(environment=None, dataset_id="made-up", source="arrays", target_returns=(0.0,))


class Arm(gym.Env):
    """Joints without bounds, or with bounds of any size, that are shown as they were moved."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)

    def __init__(self, limit=np.inf, dtype="float32"):
        self.action_space = gym.spaces.Box(-limit, limit, (3,), np.dtype(dtype))

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action)
        return np.asarray(action, np.float32), 0.0, False, False, {}


@pytest.fixture
def arm():
    gym.register("tests/Arm-v0", Arm, max_episode_steps=10)
    yield lambda **kwargs: EnvironmentSpec("tests/Arm-v0", kwargs)
    del gym.registry["tests/Arm-v0"]


def record(env, policy, episodes=3):
    """Episodes of a policy of (observation, random numbers)."""
    found, rng = [], np.random.default_rng(0)
    for number in range(episodes):
        observation, _ = env.reset(seed=number)
        seen, acted, earned, over = [observation], [], [], False
        while not over:
            action = policy(observation, rng).astype(env.action_space.dtype)
            observation, reward, terminated, truncated, _ = env.step(action)
            over = terminated or truncated
            seen.append(observation)
            acted.append(action)
            earned.append(reward)
        found.append(Episode(np.stack(seen), np.stack(acted), np.array(earned), terminated, truncated))
    return found


def act_in(env, dataset, steps=10):
    """Actions of an untrained agent in its environment, which checks them."""
    torch.manual_seed(0)
    spaces = dataset.observation_space, dataset.action_space
    agent = DecisionAgent(DecisionModel(ModelConfig(width=16), *spaces, Scaling.of(dataset.trajectories)), CARD)
    agent.check_environment(env)
    agent.reset()
    observation, _ = env.reset(seed=0)
    reward, actions = None, []
    for _ in range(steps):
        actions.append(agent.act(observation, reward))
        observation, reward, *_ = env.step(actions[-1].astype(env.action_space.dtype))
    return np.stack(actions)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("limit", [np.inf, LARGEST, 1e4], ids=str)
@pytest.mark.parametrize("still", [5.0, 90.0, -1e-3, 0.0])
def test_joints_that_never_move_are_held_in_their_environment(arm, still, limit, dtype):
    spec = arm(limit=limit, dtype=dtype)
    env = gym.make(spec.id, **spec.kwargs)
    episodes = record(env, lambda _, rng: np.array([rng.normal(), still, 100 + rng.normal()]))
    dataset = of_trajectories(Trajectories.from_episodes(episodes), spec)
    low, high = dataset.action_space.bounds()
    assert low[1] == high[1] == np.float32(still)
    least, greatest = dataset.trajectories.actions.min(0), dataset.trajectories.actions.max(0)
    np.testing.assert_array_equal([low[0], high[0], low[2], high[2]], [least[0], greatest[0], least[2], greatest[2]])
    actions = act_in(env, dataset)
    assert (actions[:, 1] == np.float32(still)).all()
    assert ((actions >= least) & (actions <= greatest)).all()
    assert "1 of 3 action components never vary (1): the agent holds them there" in describe_oddities(
        dataset.trajectories
    )


def test_forces_that_the_data_lack_change_nothing():
    """Ant's contact forces, recorded as zeros by old simulators, and shown where the agent acts."""
    blind = gym.make("Ant-v5", include_cfrc_ext_in_observation=False, max_episode_steps=40)
    gains = np.random.default_rng(1).normal(size=(27, 8)) / 5
    episodes = [
        Episode(np.pad(episode.observations, ((0, 0), (0, 78))), episode.actions, episode.rewards, truncated=True)
        for episode in record(blind, lambda seen, _: np.tanh(seen[:27] @ gains), episodes=2)
    ]
    data = Trajectories.from_episodes(episodes)
    dataset = of_trajectories(data, EnvironmentSpec("Ant-v5"))
    torch.manual_seed(0)
    model = DecisionModel(ModelConfig(width=16), dataset.observation_space, dataset.action_space, Scaling.of(data))
    with torch.no_grad():
        model.inputs.embed_observation.weight.mul_(30)
    agents = [DecisionAgent(model, CARD) for _ in range(3)]
    for agent in agents:
        agent.reset()
    env = gym.make("Ant-v5")
    observation, _ = env.reset(seed=100)
    reward, forces, differences = None, 0, []
    for _ in range(60):
        zeros, shifted = observation.copy(), observation.copy()
        zeros[27:], shifted[0] = 0, observation[0] + 0.3
        action, same, other = (
            agent.act(seen, reward) for agent, seen in zip(agents, (observation, zeros, shifted), strict=True)
        )
        np.testing.assert_array_equal(action, same)
        differences.append(np.abs(action - other).max())
        forces += (observation[27:] != 0).any()
        observation, reward, *_ = env.step(action)
    assert forces > 5
    assert max(differences) > 1e-3
    assert any(
        line.startswith("78 of 105 observation components never vary (27 to 104)") for line in describe_oddities(data)
    )


class Choices(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,))
    action_space = gym.spaces.Discrete(6)

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action)
        return np.zeros(2, np.float32), 0.0, False, False, {}


def choices(actions, space=None):
    steps = len(actions)
    episode = Episode(np.random.default_rng(0).normal(size=(steps, 2)), np.array(actions), np.ones(steps), True)
    return Trajectories.from_episodes([episode], action_space=space)


def test_data_need_not_use_every_choice():
    gym.register("tests/Choices-v0", Choices)
    try:
        spec = EnvironmentSpec("tests/Choices-v0", max_episode_steps=5)
        assert of_trajectories(choices([0, 3, 1]), spec).action_space == DiscreteSpace((), (6,), (0,))
        with pytest.raises(DataError, match="its actions are .*counts=.8"):
            of_trajectories(choices([0, 7, 1]), spec)
        with pytest.raises(DataError, match="its actions are .*starts=.-1"):
            of_trajectories(choices([0, -1, 1], DiscreteSpace((), (3,), (-1,))), spec)
        with pytest.raises(DataError, match="its actions are a Box in place of discrete"):
            of_trajectories(choices([[0.0], [1.0]], Box.bounded([0.0], [5.0])), spec)
    finally:
        del gym.registry["tests/Choices-v0"]


# Environments that limit their episodes themselves


def cut_off(spec, steps=1000):
    """One episode of random actions that is truncated by the environment, and the trajectories of it."""
    env = make(spec)
    env.action_space.seed(0)
    spaces = space_of(env.observation_space), space_of(env.action_space, image=False)
    for seed in range(30):
        seen, acted, earned = [env.reset(seed=seed)[0]], [], []
        terminated = truncated = False
        while not (terminated or truncated) and len(acted) < steps:
            acted.append(env.action_space.sample())
            observation, reward, terminated, truncated, _ = env.step(acted[-1])
            seen.append(observation)
            earned.append(reward)
        if truncated and not terminated:
            env.close()
            episode = Episode(stacked(seen), stacked(acted), np.array(earned, float), truncated=True)
            return Trajectories.from_episodes([episode], *spaces)
    raise AssertionError(f"{spec} truncates no episode")


@pytest.mark.parametrize(
    ("package", "env_id"),
    [
        ("popgym", "popgym-PositionOnlyPendulumEasy-v0"),
        ("popgym", "popgym-MultiarmedBanditEasy-v0"),
        ("popgym", "popgym-ConcentrationEasy-v0"),
        ("minigrid", "MiniGrid-FourRooms-v0"),
        ("minigrid", "BabyAI-GoToRedBall-v0"),
        ("highway_env", "roundabout-v0"),
        ("shimmy", "dm_control/cartpole-balance-v0"),
    ],
)
def test_environments_that_truncate_themselves_need_no_limit(package, env_id):
    pytest.importorskip(package)
    if env_id.startswith("dm_control"):
        pytest.importorskip("dm_control")
    spec, said = EnvironmentSpec(env_id), []
    data = cut_off(spec, 2000)
    assert of_trajectories(data, spec, say=said.append).environment == spec
    assert not [line for line in said if "limit" in line]
    assert (limit_of(spec), limits_itself(spec), time_limit(spec)) == (None, True, "set by the environment")


@pytest.mark.parametrize("name", OWN_LIMITS)
def test_an_attribute_says_that_an_environment_limits_itself(name, arm, monkeypatch):
    spec = EnvironmentSpec("tests/Unlimited-v0")
    monkeypatch.setitem(gym.registry, spec.id, EnvSpec(spec.id, Arm))
    episode = Episode(np.zeros((6, 3)), np.random.default_rng(0).normal(size=(5, 3)), np.ones(5), truncated=True)
    data = Trajectories.from_episodes([episode])
    monkeypatch.setattr(Arm, name, np.inf, raising=False)
    with pytest.raises(InvalidInput, match=r"has no time limit, and 1 of .*pass .*--horizon 5"):
        of_trajectories(data, spec)
    assert not limits_itself(spec, Arm())
    monkeypatch.setattr(Arm, name, 5)
    assert of_trajectories(data, spec, say=lambda line: None).environment == spec
    assert limits_itself(spec, Arm())
    # Results are written without another instance.
    assert time_limit(spec) == "none known"
    assert time_limit(EnvironmentSpec(spec.id, max_episode_steps=7)) == "7 steps"


@pytest.mark.parametrize(
    ("env_id", "expected"),
    [
        ("ALE/Pong-v5", True),
        ("bsuite/catch-v0", True),
        ("dm_control/walker-walk-v0", True),
        ("dm_control/lqr-lqr_2_1-v0", False),
        ("highway-fast-v0", True),
        ("merge-v0", False),
        ("lane-keeping-v0", False),
    ],
)
def test_packages_say_which_environments_limit_themselves(env_id, expected):
    """By the list alone: no package is imported."""
    assert limits_itself(EnvironmentSpec(env_id), gym.make("CartPole-v1")) is expected


class Station(gym.Env):
    """A Dict with choices, bits and a small picture."""

    observation_space = gym.spaces.Dict(
        position=gym.spaces.Box(-1, 1, (2,)),
        target=gym.spaces.Discrete(5),
        flags=gym.spaces.MultiBinary(3),
        picture=gym.spaces.Box(0, 255, (24, 24, 3), np.uint8),
    )
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


def station(target=2, brightest=255, **spaces):
    rng = np.random.default_rng(0)
    observations = {
        "position": rng.normal(size=(5, 2)).astype(np.float32),
        "target": np.array([0, 4, target, 1, 2]),
        "flags": rng.integers(0, 2, (5, 3)),
        "picture": rng.integers(0, brightest, (5, 24, 24, 3), endpoint=True).astype(np.uint8),
    }
    episode = Episode(observations, np.array([0, 2, 1, 1]), np.ones(4), terminated=True)
    return Trajectories.from_episodes([episode], **spaces)


@pytest.fixture
def station_spec():
    gym.register("tests/Station-v0", Station)
    yield EnvironmentSpec("tests/Station-v0", max_episode_steps=5)
    del gym.registry["tests/Station-v0"]


@pytest.mark.parametrize("given", ["shown", "Gymnasium's"])
def test_whole_numbers_are_what_the_environment_says(given, station_spec):
    given_spaces = {"observation_space": Station.observation_space, "action_space": Station.action_space}
    spaces = {} if given == "shown" else given_spaces
    dataset = of_trajectories(station(**spaces), station_spec)
    kinds = {part.path: type(part.space).__name__ for part in dataset.observation_space.parts()}
    assert kinds == {"flags": "BinarySpace", "picture": "ImageSpace", "position": "Box", "target": "DiscreteSpace"}
    assert dataset.action_space == DiscreteSpace((), (3,), (0,))


def test_whole_numbers_that_the_environment_never_shows_are_named(station_spec):
    with pytest.raises(DataError, match="arrays has 5.0 in the observation, part 'target', at step 2; .*shows values"):
        of_trajectories(station(target=5), station_spec)
    with pytest.raises(DataError, match="episode 0 do not fit observation_space: part 'target'"):
        station(target=5, observation_space=Station.observation_space)
    with pytest.raises(DataError, match="this version takes Box"):
        station(observation_space=gym.spaces.Sequence(gym.spaces.Discrete(2)))


@pytest.mark.parametrize(("brightest", "encoding"), [(10, "grid"), (255, "impala")])
def test_small_pictures_are_no_grids_of_symbols(brightest, encoding, station_spec):
    for spec in (None, station_spec):
        dataset = of_trajectories(station(brightest=brightest), spec)
        scaling = Scaling.of(dataset.trajectories)
        model = DecisionModel(ModelConfig(blocks=1, width=8), dataset.observation_space, dataset.action_space, scaling)
        assert model.inputs.observation.image_encoders[0].encoding == encoding
    DecisionAgent(model, CARD).check_environment(Station())
