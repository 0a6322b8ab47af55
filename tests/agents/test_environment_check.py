"""Environments that do not give an agent what it was trained on, and how that is noticed."""

import dataclasses
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import vector as of_vectors
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize

from aaren_rl.agents import DecisionAgent
from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.environment_spec import EnvironmentSpec, Wrapper
from aaren_rl.data.spaces import Box, space_of
from aaren_rl.errors import InvalidInput
from aaren_rl.model import DecisionModel, ModelConfig, Scaling


def make_agent(env_id="Pendulum-v1", low=-2.0, high=2.0):
    spaces = Box.unbounded((3,)), Box.bounded([low], [high])
    model = DecisionModel(ModelConfig(blocks=1, width=8), *spaces, Scaling.identity(spaces[0]))
    return DecisionAgent(
        model, AgentCard(None if env_id is None else EnvironmentSpec(env_id), "some data", "d4rl", (-200.0,))
    )


def pendulum():
    return gym.make("Pendulum-v1", max_episode_steps=20)


def vector():
    return SyncVectorEnv([pendulum] * 2)


def rows_of(wrap):
    return lambda: SyncVectorEnv([lambda: wrap(pendulum())] * 2)


RESCALED = {
    "observations": (lambda: gym.wrappers.NormalizeObservation(pendulum()), "NormalizeObservation"),
    "rewards": (lambda: gym.wrappers.NormalizeReward(pendulum()), "NormalizeReward"),
    "rewards by a function": (lambda: gym.wrappers.TransformReward(pendulum(), lambda r: r / 100), "TransformReward"),
    "clipped rewards": (lambda: gym.wrappers.ClipReward(pendulum(), -1, 1), "ClipReward"),
    "below another wrapper": (
        lambda: gym.wrappers.TimeLimit(gym.wrappers.NormalizeReward(pendulum()), 5),
        "NormalizeReward",
    ),
    "a vector's observations": (lambda: of_vectors.NormalizeObservation(vector()), "NormalizeObservation"),
    "a vector's rewards": (lambda: of_vectors.NormalizeReward(vector()), "NormalizeReward"),
    "a vector's clipped rewards": (lambda: of_vectors.ClipReward(vector(), -1, 1), "ClipReward"),
    "rows of a vector": (rows_of(gym.wrappers.NormalizeObservation), "NormalizeObservation"),
    "below a vector's wrapper": (
        lambda: of_vectors.RecordEpisodeStatistics(of_vectors.NormalizeReward(vector())),
        "NormalizeReward",
    ),
    "Stable-Baselines3": (lambda: VecNormalize(DummyVecEnv([pendulum])), "VecNormalize"),
    "Stable-Baselines3, rows": (
        lambda: DummyVecEnv([lambda: gym.wrappers.NormalizeObservation(pendulum())]),
        "NormalizeObservation",
    ),
}


@pytest.mark.parametrize("case", RESCALED)
def test_wrappers_that_change_the_scale_are_refused(case):
    make, name = RESCALED[case]
    with pytest.raises(
        InvalidInput, match=f"wrapped in {name}, .* trained on some data for Pendulum-v1.*take {name} off"
    ):
        make_agent().check_environment(make())


@pytest.mark.parametrize("case", RESCALED)
def test_they_are_a_warning_where_the_data_may_have_come_through_them(case):
    make, name = RESCALED[case]
    with pytest.warns(RuntimeWarning, match=f"wrapped in {name}, .*unless its data came through it"):
        make_agent(env_id=None).check_environment(make())


HARMLESS = {
    "nothing": pendulum,
    "a vector": vector,
    "statistics": lambda: gym.wrappers.RecordEpisodeStatistics(pendulum()),
    "clipped actions": lambda: gym.wrappers.ClipAction(pendulum()),
    "a vector's clipped actions": lambda: of_vectors.ClipAction(vector()),
    "actions rescaled to what they are": lambda: gym.wrappers.RescaleAction(
        pendulum(), np.float32([-2]), np.float32([2])
    ),
    "Stable-Baselines3": lambda: DummyVecEnv([pendulum] * 2),
    "Stable-Baselines3's normalising, switched off": lambda: VecNormalize(
        DummyVecEnv([pendulum]), norm_obs=False, norm_reward=False
    ),
    "Stable-Baselines3's others": lambda: VecFrameStack(DummyVecEnv([pendulum]), 1),
    "an attribute called env": lambda: Simulated(pendulum()),
}


class Simulated(gym.Wrapper):
    """Keeps something that is no environment under the name of one."""

    def __init__(self, env):
        super().__init__(env)
        self.unwrapped.env = "a simulator's own"


@pytest.mark.parametrize("env_id", ["Pendulum-v1", None])
@pytest.mark.parametrize("case", HARMLESS)
def test_environments_that_give_the_agent_its_own_values_pass_quietly(case, env_id):
    env = HARMLESS[case]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_agent(env_id).check_environment(env)


WIDENED = {
    "single": lambda: gym.wrappers.RescaleAction(pendulum(), np.float32([-5]), np.float32([5])),
    "rows": rows_of(lambda env: gym.wrappers.RescaleAction(env, np.float32([-5]), np.float32([5]))),
    "vector": lambda: of_vectors.RescaleAction(vector(), np.float32([-5]), np.float32([5])),
    "below another": lambda: gym.wrappers.TimeLimit(
        gym.wrappers.RescaleAction(pendulum(), np.float32([-5]), np.float32([5])), 7
    ),
}


@pytest.mark.parametrize("case", WIDENED)
def test_actions_that_would_be_rescaled_are_refused(case):
    message = r"actions from \[-5.\] to \[5.\], the agent gives \[-2.\] to \[2.\], and RescaleAction makes numbers from"
    with pytest.raises(InvalidInput, match=rf"{message} \[-2.\] to \[2.\] .*take RescaleAction off"):
        make_agent().check_environment(WIDENED[case]())
    with pytest.warns(RuntimeWarning, match=f"{message}.*unless its data came through it"):
        make_agent(env_id=None).check_environment(WIDENED[case]())


def test_another_environment_of_a_wider_range_is_a_warning():
    # Data of a narrower range than their environment's are usual: that is no misuse.
    agent = make_agent("Other-v0", -1.0, 1.0)
    with pytest.warns(RuntimeWarning, match=r"from \[-2.\] to \[2.\], the agent gives \[-1.\].*Other-v0.*Pendulum-v1"):
        agent.check_environment(pendulum())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_agent("Pendulum-v1", -1.0, 1.0).check_environment(pendulum())
        make_agent("some_package:Pendulum-v1", -1.0, 1.0).check_environment(pendulum())
        make_agent("Other-v0", -1.5, 1.5).check_environment(pendulum())


def test_stable_baselines3s_evaluation_refuses_a_normalised_environment():
    agent = make_agent()
    with pytest.raises(InvalidInput, match="wrapped in VecNormalize"):
        evaluate_policy(agent, VecNormalize(DummyVecEnv([pendulum])), 1, callback=agent.sb3_callback, warn=False)
    env = DummyVecEnv([lambda: gym.wrappers.NormalizeReward(pendulum())])
    with pytest.raises(InvalidInput, match="wrapped in NormalizeReward"):
        evaluate_policy(agent, env, 1, callback=agent.sb3_callback, warn=False)
    evaluate_policy(agent, DummyVecEnv([pendulum]), 1, callback=agent.sb3_callback, warn=False)


@pytest.mark.parametrize("what", [{}, {"norm_reward": False}, {"norm_obs": False}, {"training": False}])
def test_normalisation_is_noticed_by_evaluate_policy_and_can_be_switched_off(what):
    """Whichever half normalises; once it is off, returns are those without the wrapper."""
    agent = make_agent()

    def evaluate(venv):
        venv.seed(0)
        returns, _ = evaluate_policy(
            agent, venv, 2, callback=agent.sb3_callback, warn=False, return_episode_rewards=True
        )
        return returns

    expected = evaluate(DummyVecEnv([pendulum]))
    venv = VecNormalize(DummyVecEnv([pendulum]), **what)
    with pytest.raises(InvalidInput, match="VecNormalize off: act in venv.venv, or set venv.norm_obs and venv.norm_r"):
        evaluate(VecMonitor(venv))
    assert evaluate(venv.venv) == expected
    venv.norm_obs = venv.norm_reward = False
    np.testing.assert_allclose(evaluate(VecMonitor(venv)), expected, rtol=1e-5)


def test_normalisation_is_one_warning_where_the_data_may_be_normalised_too():
    agent = make_agent(env_id=None)
    venv = VecNormalize(DummyVecEnv([pendulum]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        evaluate_policy(agent, venv, 2, callback=agent.sb3_callback, warn=False)
    (said,) = [str(one.message) for one in caught if "VecNormalize" in str(one.message)]
    assert "unless its data came through it: act in venv.venv" in said


class OwnNormalize(VecNormalize):
    pass


def test_subclasses_of_a_wrapper_are_taken_as_the_wrapper():
    agent = make_agent()
    with pytest.raises(InvalidInput, match="wrapped in OwnNormalize.*act in venv.venv"):
        agent.check_environment(OwnNormalize(DummyVecEnv([pendulum])))
    agent.check_environment(OwnNormalize(DummyVecEnv([pendulum]), norm_obs=False, norm_reward=False))


def test_narrower_bounds_name_the_wrapper_that_clips():
    agent = make_agent(low=-3.0, high=3.0)
    with pytest.raises(InvalidInput, match=r"outside the environment's .*gymnasium\.wrappers\.ClipAction"):
        agent.check_environment(pendulum())
    agent.check_environment(gym.wrappers.ClipAction(pendulum()))


class Goals(gym.Env):
    """Observations in parts whose keys are not sorted."""

    part = gym.spaces.Box(-9, 9, (1,), np.float64)
    observation_space = gym.spaces.Dict([("c", part), ("a", part), ("b", gym.spaces.Dict(z=part))])
    action_space = gym.spaces.Box(-2, 2, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.step(None)[0], {}

    def step(self, action):
        parts = {"c": np.full(1, 3.0), "a": np.full(1, 1.0), "b": {"z": np.full(1, 2.0)}}
        return parts, 0.0, False, False, {}


def agent_of_parts():
    agent = make_agent(env_id=None)
    space = space_of(Goals.observation_space)
    model = DecisionModel(agent.model.config, space, agent.action_space, Scaling.identity(space))
    # The same weights: the parts stand in the order of the vector.
    weights = agent.model.state_dict()
    scaling = {name: value for name, value in model.state_dict().items() if "inputs.observation." in name}
    model.load_state_dict(
        {name: value for name, value in weights.items() if "inputs.observation." not in name} | scaling
    )
    return DecisionAgent(model, agent.card), agent


def test_observations_in_parts_are_taken_as_they_come():
    agent, plain = agent_of_parts()
    agent.check_environment(Goals())
    agent.check_environment(SyncVectorEnv([Goals] * 2))
    for each in (agent, plain):
        each.reset()
    expected = plain.act(np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(agent.act(Goals().reset()[0]), expected)
    np.testing.assert_array_equal(agent.predict(Goals().reset()[0])[0], expected)
    envs = SyncVectorEnv([Goals] * 2)
    agent.reset(num_envs=2)
    np.testing.assert_allclose(agent.act(envs.reset()[0]), [expected] * 2, rtol=1e-6)
    np.testing.assert_allclose(agent.predict(envs.reset()[0])[0], [expected] * 2, rtol=1e-6)


def test_parts_come_back_with_a_saved_agent(tmp_path):
    agent_of_parts()[0].save(tmp_path / "agent")
    loaded = DecisionAgent.load(tmp_path / "agent")
    loaded.reset()
    assert loaded.act(Goals().reset()[0]).shape == (1,)


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ({"a": np.zeros(1), "c": np.zeros(1)}, r"keys \['a', 'c'\]; expected \['a', 'b', 'c'\]"),
        ({"a": np.zeros(2), "c": np.zeros(1), "b": {"z": np.zeros(1)}}, r"part 'a': values have shape \(2,\)"),
        ((np.zeros(1),) * 3, "keys tuple; expected"),
    ],
    ids=["missing", "shape", "tuple"],
)
def test_parts_that_do_not_fit_are_named(observation, message):
    agent, _ = agent_of_parts()
    agent.reset()
    with pytest.raises(InvalidInput, match=message):
        agent.act(observation)


def test_observations_in_parts_are_refused_by_an_agent_of_vectors():
    agent = make_agent(env_id=None)
    for env in (Goals(), SyncVectorEnv([Goals] * 2)):
        with pytest.raises(InvalidInput, match="observations are a Dict in place of a Box"):
            agent.check_environment(env)
    agent.reset()
    with pytest.raises(InvalidInput, match=r"a dict of parts; .* arrays of shape \(3,\): give it one array"):
        agent.act(Goals().reset()[0])


RECORDED = {
    "ClipReward": (Wrapper("ClipReward", {"min_reward": -1, "max_reward": 1}), RESCALED["clipped rewards"][0]),
    "NormalizeReward": (Wrapper("NormalizeReward"), RESCALED["rewards"][0]),
    "a vector's rewards": (Wrapper("NormalizeReward"), RESCALED["a vector's rewards"][0]),
    "RescaleAction": (Wrapper("RescaleAction", {"min_action": -5.0, "max_action": 5.0}), WIDENED["single"]),
}


@pytest.mark.parametrize("case", RECORDED)
def test_wrappers_of_the_agents_own_environment_pass_quietly(case):
    wrapper, make = RECORDED[case]
    spec = EnvironmentSpec("Pendulum-v1", wrappers=(wrapper,))
    card = AgentCard(spec, "some data", "minari", (-200.0,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DecisionAgent(make_agent().model, card).check_environment(make())


def test_another_range_than_the_recorded_one_is_refused():
    spec = EnvironmentSpec("Pendulum-v1", wrappers=(Wrapper("RescaleAction", {"min_action": -2.5, "max_action": 2.5}),))
    agent = DecisionAgent(make_agent().model, AgentCard(spec, "some data", "minari", (-200.0,)))
    with pytest.raises(InvalidInput, match="take RescaleAction off"):
        agent.check_environment(WIDENED["single"]())


def test_an_agent_of_rescaled_actions_needs_the_rescaling():
    agent = make_agent(low=-1.0, high=1.0)
    recorded = EnvironmentSpec(
        "Pendulum-v1", wrappers=(Wrapper("RescaleAction", {"min_action": -1.0, "max_action": 1.0}),)
    )
    agent = DecisionAgent(agent.model, dataclasses.replace(agent.card, environment=recorded))
    for env in (pendulum(), SyncVectorEnv([pendulum] * 2)):
        with pytest.raises(
            InvalidInput, match=r"lacks RescaleAction\(min_action=-1.0, max_action=1.0\); put it around"
        ):
            agent.check_environment(env)
    agent.check_environment(gym.wrappers.RescaleAction(pendulum(), -1.0, 1.0))


def test_a_wider_range_is_said_where_no_environment_is_known():
    agent = make_agent(env_id=None, low=-1.0, high=1.0)
    with pytest.warns(
        RuntimeWarning, match="it was trained without an environment, and the same number may mean another"
    ):
        agent.check_environment(pendulum())
