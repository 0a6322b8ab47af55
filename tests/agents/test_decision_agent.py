import copy
import pickle
import warnings
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from aaren_rl.agents import DecisionAgent
from aaren_rl.agents.acting import Acting
from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.segment import Segment
from aaren_rl.data.spaces import space_of
from aaren_rl.envs.environments import make_vector
from aaren_rl.envs.rollout import roll_out
from aaren_rl.errors import CheckpointError, InvalidInput
from aaren_rl.model import DecisionModel, ModelConfig, Scaling

MODES = tuple(AutoresetMode)
LIMIT = 7


def make_env(env_id="Hopper-v5", limit=LIMIT):
    return gym.make(env_id, max_episode_steps=limit)


def make_agent(env_id="Hopper-v5", seed=0, **shape):
    """An untrained agent with weights so large that what it has seen shows in its actions."""
    env = make_env(env_id)
    spaces = space_of(env.observation_space), space_of(env.action_space)
    config = ModelConfig(**{"blocks": 1, "width": 16, "dropout": 0.0, "layout": "interleaved", **shape})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DecisionModel(config, *spaces, replace(Scaling.identity(spaces[0]), return_scale=10.0))
        for parameter in model.parameters():
            # Large biases would drown what the observations say.
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.4)
        # Without a bias the norm after the embedding leaves of a return, a single number, no more than its sign.
        torch.nn.init.normal_(model.inputs.embed_return.bias)
    env.close()
    return DecisionAgent(model, AgentCard(EnvironmentSpec(env_id), "untrained", "bundled", (30.0, 10.0)))


@pytest.fixture
def agent():
    return make_agent()


def run_episode(agent, env, seed, target_return=None):
    """One episode of the single environment's loop: observations, actions, rewards."""
    observation, _ = env.reset(seed=seed)
    agent.reset(target_return)
    observations, actions, rewards = [observation], [agent.act(observation)], []
    while True:
        observation, reward, terminated, truncated, _ = env.step(actions[-1])
        rewards.append(reward)
        if terminated or truncated:
            return np.array(observations), np.array(actions), np.array(rewards)
        observations.append(observation)
        actions.append(agent.act(observation, reward, terminated, truncated))


def forward(agent, observations, actions, rewards, target):
    """What the model predicts for a whole recorded episode at once, in parallel."""
    returns_to_go = target - np.concatenate([[0.0], np.cumsum(rewards)[:-1]])
    observed, acted, asked, earned = as_rows(observations, actions, returns_to_go, rewards)
    steps = torch.arange(len(actions)).unsqueeze(0)
    segment = Segment(observed, steps, actions=acted, rewards=earned, returns_to_go=asked)
    with torch.inference_mode():
        prediction, _ = agent.model(segment)
    return prediction.mode[0].numpy()


def as_rows(*arrays):
    """Each array as the only row of a batch, in float32."""
    return [torch.from_numpy(np.asarray(array, np.float32)).unsqueeze(0) for array in arrays]


@pytest.mark.parametrize("shape", [{}, {"layout": "fused", "timesteps": "sinusoidal"}])
def test_a_thousand_steps_equal_one_forward_over_them(shape):
    agent = make_agent("HalfCheetah-v5", **shape)
    env = make_env("HalfCheetah-v5", limit=1000)
    observations, actions, rewards = run_episode(agent, env, seed=0, target_return=20.0)
    assert len(actions) == 1000
    assert actions.std(0).min() > 0.01
    np.testing.assert_allclose(actions, forward(agent, observations, actions, rewards, 20.0), rtol=0, atol=1e-4)


def test_softmax_steps_in_an_environment_equal_one_forward():
    agent = make_agent("HalfCheetah-v5", mixer="softmax")
    observations, actions, rewards = run_episode(agent, make_env("HalfCheetah-v5", 60), seed=0)
    np.testing.assert_allclose(actions, forward(agent, observations, actions, rewards, 30.0), rtol=0, atol=1e-4)


def acting_as(agent, acting):
    return DecisionAgent(agent.model, agent.card, acting=acting)


@pytest.mark.parametrize(
    "shape", [{}, {"layout": "fused", "reward": True}, {"mixer": "softmax"}, {"timesteps": "learned"}]
)
@pytest.mark.parametrize("acting", ["reset:7", "window:7", "window:1", "closed-window:7", "closed-window:1"])
def test_ways_of_acting_equal_a_forward_over_the_steps_they_see(shape, acting):
    agent = acting_as(make_agent("HalfCheetah-v5", **shape), acting)
    steps, target = agent.acting.steps, 20.0
    observations, actions, rewards = run_episode(agent, make_env("HalfCheetah-v5", 40), seed=0, target_return=target)
    returns_to_go = target - np.concatenate([[0.0], np.cumsum(rewards)[:-1]])
    observations, acted, returns_to_go, earned = as_rows(observations, actions, returns_to_go, rewards)
    for t in range(40):
        first = t - t % steps if acting.startswith("reset") else max(0, t - steps + 1)
        seen = slice(first, t + 1)
        known = first and agent.acting.mode != "closed-window"
        before = (acted[:, first - 1], earned[:, first - 1]) if known else (None, None)
        segment = Segment(
            observations[:, seen],
            torch.arange(first, t + 1).unsqueeze(0),
            actions=acted[:, seen],
            rewards=earned[:, seen],
            returns_to_go=returns_to_go[:, seen],
            previous_action=before[0],
            previous_reward=before[1],
        )
        with torch.inference_mode():
            prediction, _ = agent.model(segment)
        np.testing.assert_allclose(actions[t], prediction.mode[0, -1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("acting", ["reset:100", "window:100", "closed-window:100"])
def test_a_window_or_reset_longer_than_the_episode_is_streaming(agent, acting):
    env = make_env(limit=30)
    _, streamed, _ = run_episode(agent, env, seed=3)
    other = acting_as(agent, acting)
    _, acted, _ = run_episode(other, env, seed=3)
    np.testing.assert_allclose(acted, streamed, rtol=0, atol=1e-4)
    assert np.abs(run_episode(acting_as(agent, acting.replace("100", "3")), env, seed=3)[1] - streamed).max() > 1e-3


@pytest.mark.parametrize(
    "acting", ["", "streaming", "window", "window:0", "reset:-1", "stream:20", "window:2.5", "closed"]
)
def test_ways_of_acting_that_are_not_understood_are_refused(agent, acting):
    with pytest.raises(InvalidInput, match="expected stream, reset:STEPS, window:STEPS or closed-window:STEPS"):
        Acting.parse(acting)


@pytest.mark.parametrize("acting", ["stream", "reset:5", "window:5", "closed-window:5"])
def test_a_closed_window_is_a_way_of_its_own(acting):
    found = Acting.parse(acting)
    assert (str(found), found.mode, found.is_window) == (acting, acting.split(":")[0], "window" in acting)


@pytest.mark.parametrize("acting", ["window:5", "closed-window:5"])
def test_the_card_says_how_an_agent_acts(agent, tmp_path, acting):
    agent = DecisionAgent(agent.model, replace(agent.card, acting=acting))
    agent.save(tmp_path / "agent")
    loaded = DecisionAgent.load(tmp_path / "agent")
    assert str(loaded.acting) == acting
    assert str(DecisionAgent.load(tmp_path / "agent", acting="stream").acting) == "stream"


def test_a_window_keeps_its_size(agent):
    agent = acting_as(agent, "window:5")
    run_episode(agent, make_env(limit=12), seed=0)
    # Of each step observation, action, reward and return-to-go in float32, a timestep of 8 bytes, and a flag.
    assert agent.state_bytes == 6 * ((11 + 3 + 2) * 4 + 8 + 1)


def test_actions_are_in_the_environments_space(agent):
    env = make_env(limit=50)
    _, actions, _ = run_episode(agent, env, seed=0)
    assert actions.dtype == np.float32
    assert all(env.action_space.contains(action) for action in actions)


def test_what_is_asked_for_and_what_was_earned_matter(agent):
    observation = np.zeros(11)

    def second_action(target, reward):
        agent.reset(target)
        agent.act(observation)
        return agent.act(observation, reward)

    assert np.abs(second_action(30.0, 1.0) - second_action(10.0, 1.0)).max() > 1e-4
    assert np.abs(second_action(30.0, 1.0) - second_action(30.0, 5.0)).max() > 1e-4


def test_the_default_target_is_the_first_of_the_card(agent):
    observation = np.ones(11)
    actions = []
    for target in (None, 30.0, 10.0):
        agent.reset(target)
        actions.append(agent.act(observation))
    assert (actions[0] == actions[1]).all()
    assert (actions[0] != actions[2]).any()


@pytest.mark.parametrize("mixer", ["aaren", "softmax", "gru", "none"])
def test_two_episodes_in_a_row_equal_two_fresh_agents(mixer):
    env = make_env(limit=30)
    agent = make_agent(mixer=mixer)
    for seed in (0, 1):
        for ours, theirs in zip(
            run_episode(agent, env, seed), run_episode(make_agent(mixer=mixer), env, seed), strict=True
        ):
            assert (ours == theirs).all()


@pytest.mark.parametrize(
    ("mixer", "acting"),
    [
        ("aaren", None),
        ("softmax", None),
        ("gru", None),
        ("none", None),
        ("aaren", "reset:3"),
        ("softmax", "reset:3"),
        ("aaren", "window:3"),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_a_batch_equals_single_agents_in_every_autoreset_mode(mixer, acting, mode):
    """Rows whose episodes end at different times, each with a target of its own, over several episodes."""
    limits, targets, steps = (3, 5, 4), np.array([10.0, 20.0, 30.0]), 16
    envs = SyncVectorEnv(
        [lambda limit=limit: make_env("HalfCheetah-v5", limit) for limit in limits], autoreset_mode=mode
    )
    agent, *singles = (acting_as(make_agent("HalfCheetah-v5", mixer=mixer), acting) for _ in range(4))
    observation, _ = envs.reset(seed=[0, 1, 2])
    agent.reset(targets, 3, mode)
    starts, ended = np.ones(3, dtype=bool), np.zeros(3, dtype=bool)
    reward, terminated, truncated, compared = None, ended, ended, 0
    for _ in range(steps):
        action = agent.act(observation, reward, terminated, truncated)
        # In NEXT_STEP mode an ended row rests for one call, and its next episode starts with the call after it.
        resting = ended & (mode == AutoresetMode.NEXT_STEP)
        for row in np.flatnonzero(~resting):
            if starts[row]:
                singles[row].reset(targets[row])
            earned = () if starts[row] else (reward[row],)
            expected = singles[row].act(observation[row], *earned)
            np.testing.assert_allclose(action[row], expected, rtol=0, atol=1e-5)
            compared += 1
        observation, reward, terminated, truncated, _ = envs.step(action)
        ended = terminated | truncated
        if mode == AutoresetMode.DISABLED and ended.any():
            observation, _ = envs.reset(options={"reset_mask": ended})
        starts = resting if mode == AutoresetMode.NEXT_STEP else ended
    assert compared >= 3 * steps - 9


@pytest.mark.parametrize("mixer", ["aaren", "softmax", "gru", "none"])
def test_every_autoreset_mode_gives_the_same_returns(mixer):
    results = []
    for mode in MODES:
        envs = SyncVectorEnv([make_env] * 3, autoreset_mode=mode)
        results.append(roll_out(make_agent(mixer=mixer), envs, episodes=8, target_return=20.0, seed=5))
        envs.close()
    single = []
    for row, count in enumerate((3, 3, 2)):
        env, agent = make_env(), make_agent(mixer=mixer)
        for number in range(count):
            # Only the first episode is seeded; the others go on with the row's own generator.
            single.append(run_episode(agent, env, 5 + row if number == 0 else None, 20.0)[2].sum())
    for result in results:
        assert result.lengths.tolist() == results[0].lengths.tolist()
        assert result.lengths.max() <= LIMIT
        np.testing.assert_allclose(result.returns, single, rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_episodes_may_fill_the_learned_embedding(mode):
    agent = make_agent("HalfCheetah-v5", timesteps="learned", max_steps=LIMIT)
    envs = SyncVectorEnv([lambda: make_env("HalfCheetah-v5")] * 2, autoreset_mode=mode)
    assert roll_out(agent, envs, episodes=4).lengths.tolist() == [LIMIT] * 4


def test_the_return_to_go_counts_down_by_rewards(agent):
    observation = np.zeros((2, 11))
    agent.reset(np.array([30.0, 31.0]), 2)
    seen = []
    for reward in (None, np.array([1.0, 2.0]), np.array([0.5, -4.0])):
        agent.act(observation, reward)
        seen.append(agent.return_to_go)
    np.testing.assert_allclose(seen, [[30.0, 31.0], [29.0, 29.0], [28.5, 33.0]], rtol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_targets_are_renewed_by_the_steps_of_each_row(agent, mode):
    agent = DecisionAgent(agent.model, agent.card, renew=3)
    agent.reset(np.array([30.0, 50.0]), 2, mode)
    observation, none = np.zeros((2, 11)), np.zeros(2, dtype=bool)
    agent.act(observation)
    asked = []
    for t in range(1, 9):
        # Row 1 ends once, with the reward of its second action.
        ended = np.array([False, t == 2])
        agent.act(observation, np.ones(2), ended, none)
        asked.append(agent.return_to_go.tolist())
    first, second = zip(*asked, strict=True)
    assert first == (29, 28, 30, 29, 28, 30, 29, 28)
    # A row at rest has the target of the episode that comes next.
    rests = mode == AutoresetMode.NEXT_STEP
    assert second == ((49, 50, 50, 49, 48, 50, 49, 48) if rests else (49, 50, 49, 48, 50, 49, 48, 50))


def test_a_negative_number_of_steps_to_renew_after_is_refused(agent):
    with pytest.raises(InvalidInput, match="renew is -3; expected a number of steps"):
        DecisionAgent(agent.model, agent.card, renew=-3)


def test_tiny_rewards_are_not_lost_from_a_large_return_to_go(agent):
    agent.reset(1e5)
    observation = np.zeros(11)
    agent.act(observation)
    for _ in range(200):
        agent.act(observation, 1e-3)
    # In float32 every single subtraction of 0.001 from 100,000 would be rounded away.
    assert agent.return_to_go == pytest.approx(1e5 - 0.2, abs=1e-6)


@pytest.mark.parametrize("rows", [None, 3])
@pytest.mark.parametrize(("mixer", "size"), [("aaren", 1 + 16), ("gru", 16), ("none", 0)])
def test_the_state_keeps_its_size(rows, mixer, size):
    agent = make_agent(mixer=mixer)
    agent.reset(num_envs=rows)
    observation = np.zeros(11 if rows is None else (rows, 11))
    reward = 1.0 if rows is None else np.ones(rows)
    before = agent.state_bytes
    agent.act(observation)
    for _ in range(300):
        agent.act(observation, reward)
    # Return-to-go, timestep, an action of 3, and of the one block, in Aaren c and one a per component: float64.
    assert agent.state_bytes == before == (rows or 1) * (1 + 1 + 3 + size) * 8


def test_the_action_returned_may_be_changed_by_the_caller(agent):
    def second_action(meddle):
        agent.reset()
        action = agent.act(np.ones(11))
        if meddle:
            action += 100.0
        return agent.act(np.ones(11), 1.0)

    assert (second_action(True) == second_action(False)).all()


def test_the_target_array_may_be_changed_by_the_caller(agent):
    def after_an_end(meddle):
        target = np.array([30.0, 20.0])
        agent.reset(target, 2, AutoresetMode.SAME_STEP)
        agent.act(np.ones((2, 11)))
        if meddle:
            target += 100.0
        return agent.act(np.ones((2, 11)), np.ones(2), terminated=np.array([True, True]))

    assert (after_an_end(True) == after_an_end(False)).all()


def test_acting_needs_a_reset_first(agent):
    with pytest.raises(InvalidInput, match="call reset first"):
        agent.act(np.zeros(11))
    with pytest.raises(InvalidInput, match="call reset first"):
        _ = agent.state_bytes


def test_every_action_but_the_first_needs_a_reward(agent):
    for rows, observation in ((None, np.zeros(11)), (2, np.zeros((2, 11)))):
        agent.reset(num_envs=rows)
        agent.act(observation)
        with pytest.raises(InvalidInput, match="without a reward"):
            agent.act(observation)


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        (None, {"observation": np.zeros(10)}, r"observation has shape \(10,\); expected \(11,\)"),
        (None, {"observation": np.zeros((1, 11))}, r"observation has shape \(1, 11\); expected \(11,\)"),
        (None, {"reward": np.zeros(2)}, r"reward has shape \(2,\); expected \(\)"),
        (2, {"observation": np.zeros(11)}, r"observation has shape \(11,\); expected \(2, 11\)"),
        (2, {"observation": np.zeros((3, 11))}, r"observation has shape \(3, 11\)"),
        (2, {"reward": 1.0}, r"reward has shape \(\); expected \(2,\)"),
        (2, {"terminated": np.zeros(3, dtype=bool)}, r"terminated has shape \(3,\); expected \(2,\)"),
        (2, {"truncated": np.zeros((2, 1), dtype=bool)}, r"truncated has shape \(2, 1\); expected \(2,\)"),
        (None, {"observation": np.full(11, np.nan)}, "observation holds a NaN or an infinite value"),
        (2, {"observation": np.full((2, 11), np.inf)}, "observation holds a NaN or an infinite value"),
        (None, {"reward": np.nan}, "reward holds a NaN or an infinite value"),
        (2, {"reward": np.array([0.0, -np.inf])}, "reward holds a NaN or an infinite value"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_episode_can_go_on(agent, rows, arguments, message):
    good = {
        "observation": np.ones(11 if rows is None else (rows, 11)),
        "reward": 1.0 if rows is None else np.ones(rows),
    }

    def second_action(refused):
        agent.reset(num_envs=rows)
        agent.act(good["observation"])
        if refused:
            with pytest.raises(InvalidInput, match=message):
                agent.act(**{**good, **arguments})
        return agent.act(**good)

    assert (second_action(True) == second_action(False)).all()


def test_acting_after_the_end_of_a_single_episode_is_refused(agent):
    agent.reset()
    agent.act(np.zeros(11))
    with pytest.raises(InvalidInput, match="the episode has ended"):
        agent.act(np.zeros(11), 1.0, True)


@pytest.mark.parametrize("rows", [0, -1])
def test_fewer_than_one_environment_is_refused(agent, rows):
    with pytest.raises(InvalidInput, match=f"num_envs is {rows}"):
        agent.reset(num_envs=rows)


@pytest.mark.parametrize("target", [np.nan, np.inf, np.zeros(3), np.zeros((2, 1))])
def test_targets_that_cannot_be_are_refused(agent, target):
    with pytest.raises(InvalidInput, match="target_return is"):
        agent.reset(target, num_envs=2)


def test_episodes_beyond_the_learned_embedding_are_refused():
    agent = make_agent(timesteps="learned", max_steps=3)
    agent.reset()
    agent.act(np.zeros(11))
    for _ in range(2):
        agent.act(np.zeros(11), 0.0)
    with pytest.raises(InvalidInput, match="longer than the 3 steps"):
        agent.act(np.zeros(11), 0.0)


def test_the_environment_it_was_made_for_fits(agent):
    agent.check_environment(make_env())
    agent.check_environment(SyncVectorEnv([make_env] * 2))


def test_environments_of_another_size_or_range_are_refused(agent):
    with pytest.raises(InvalidInput, match=r"observations have shape \(17,\) in place of \(11,\)"):
        agent.check_environment(make_env("HalfCheetah-v5"))
    with pytest.raises(InvalidInput, match=r"observations have shape \(17,\)"):
        agent.check_environment(SyncVectorEnv([lambda: make_env("HalfCheetah-v5")]))
    low, high = np.full(3, -0.5, np.float32), np.full(3, 0.5, np.float32)
    with pytest.raises(InvalidInput, match="outside the environment's"):
        agent.check_environment(gym.wrappers.RescaleAction(make_env(), low, high))
    wide = gym.spaces.Box(-np.ones(4, np.float32), np.ones(4, np.float32))
    with pytest.raises(InvalidInput, match=r"actions have shape \(4,\) in place of \(3,\); this agent was trained on"):
        agent.check_environment(gym.wrappers.TransformAction(make_env(), lambda action: action[:3], wide))


def test_environments_of_other_kinds_of_spaces_are_refused():
    agent, env = make_agent("Pendulum-v1"), make_env("Pendulum-v1")
    discrete = gym.wrappers.TransformAction(env, int, gym.spaces.Discrete(2))
    message = "actions are discrete in place of a Box; this agent was trained on"
    with pytest.raises(InvalidInput, match=message):
        agent.check_environment(discrete)
    with pytest.raises(InvalidInput, match=message):
        agent.check_environment(SyncVectorEnv([lambda: discrete]))
    named = gym.spaces.Dict({"angle": env.observation_space})
    with pytest.raises(
        InvalidInput, match=r"observations .*a Dict in place of a Box.*trained on untrained for Pendulum-v1"
    ):
        agent.check_environment(gym.wrappers.TransformObservation(env, lambda angle: {"angle": angle}, named))


@pytest.mark.parametrize("mixer", ["aaren", "gru", "none"])
def test_a_saved_agent_acts_the_same(mixer, tmp_path):
    agent = make_agent(mixer=mixer)
    agent.save(tmp_path / "agent")
    loaded = DecisionAgent.load(str(tmp_path / "agent"))
    assert loaded.card == agent.card
    env = make_env(limit=30)
    for ours, theirs in zip(run_episode(loaded, env, 3), run_episode(agent, env, 3), strict=True):
        assert (ours == theirs).all()


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is missing"):
        DecisionAgent.load(tmp_path / "nowhere")


def test_acting_leaves_gradients_and_random_state_alone(agent):
    before = torch.get_rng_state()
    agent.model.train()
    agent = DecisionAgent(agent.model, agent.card)
    run_episode(agent, make_env(), 0)
    assert not agent.model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in agent.model.parameters())


@pytest.mark.parametrize("rows", [1, 2])
def test_sb3_evaluation_gives_the_returns_of_a_roll_out(rows):
    def make():
        return make_env(limit=20)

    episodes = 2 * rows
    theirs = DummyVecEnv([make] * rows)
    theirs.seed(3)
    agent = make_agent()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.filterwarnings("ignore", message="Evaluation environment is not wrapped")
        returns, lengths = evaluate_policy(
            agent, theirs, n_eval_episodes=episodes, return_episode_rewards=True, callback=agent.sb3_callback
        )
    ours = roll_out(make_agent(), SyncVectorEnv([make] * rows), episodes, seed=3)
    assert sorted(lengths) == sorted(ours.lengths.tolist())
    # Stable-Baselines3 hands rewards over in float32.
    np.testing.assert_allclose(sorted(returns), sorted(ours.returns), rtol=1e-3)


def test_predict_without_rewards_warns(agent):
    action, state = agent.predict(np.zeros(11))
    assert action.shape == (3,)
    with pytest.warns(RuntimeWarning, match="got no reward"):
        agent.predict(np.zeros(11), state, np.array([False]))


def test_predict_with_rewards_equals_act(agent):
    rng = np.random.default_rng(0)
    observations, rewards = rng.normal(size=(6, 2, 11)), rng.normal(size=(6, 2))
    starts = np.zeros((6, 2), dtype=bool)
    starts[0], starts[3, 1] = True, True
    other = make_agent()
    other.reset(num_envs=2, autoreset_mode=AutoresetMode.SAME_STEP)
    state = None
    for t in range(6):
        if t:
            agent.observe_reward(rewards[t])
        action, state = agent.predict(observations[t], state, starts[t])
        expected = other.act(observations[t], rewards[t] if t else None, starts[t] if t else False)
        assert (action == expected).all()


def test_predict_without_a_state_starts_anew(agent):
    first, state = agent.predict(np.ones((2, 11)))
    agent.observe_reward(np.ones(2))
    second, _ = agent.predict(np.ones((2, 11)), state)
    assert (first != second).any()
    assert (agent.predict(np.ones((2, 11)))[0] == first).all()


def test_random_actions_are_refused(agent):
    with pytest.raises(InvalidInput, match="pass deterministic=True"):
        agent.predict(np.zeros(11), deterministic=False)


@pytest.mark.parametrize("starts", [None, [False]])
def test_predict_without_a_state_in_a_loop_warns_each_time(agent, starts):
    given = () if starts is None else (np.array(starts),)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, _ = agent.predict(np.ones(11), None, *given)
    for _ in range(3):
        with pytest.warns(RuntimeWarning, match=r"again without a state.*state = agent.predict\(observation, state\)"):
            action, _ = agent.predict(np.ones(11), None, *given)
        assert (action == first).all()


def test_predict_without_a_state_is_quiet_where_an_episode_starts(agent):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            agent.reset()
            agent.predict(np.ones(11))
        _, state = agent.predict(np.ones(11), None, np.array([True]))
        for _ in range(2):
            agent.observe_reward(1.0)
            _, state = agent.predict(np.ones(11), state)
        agent.predict(np.ones(11))


EXECUTED = [
    ({}, "stream"),
    ({"layout": "fused", "reward": True}, "stream"),
    ({"timesteps": "learned"}, "stream"),
    ({"width": 256}, "stream"),
    ({"mixer": "softmax"}, "stream"),
    ({"mixer": "gru"}, "reset:50"),
    ({}, "window:50"),
    ({"reward": True}, "window:50"),
]


@pytest.mark.parametrize(("shape", "acting"), EXECUTED)
def test_executed_actions_equal_a_forward_over_them(shape, acting):
    """Another action than the agent's is executed at every third step, and the episode is the executed one's."""
    agent = acting_as(make_agent("HalfCheetah-v5", **shape), acting)
    env, rng = make_env("HalfCheetah-v5", 40), np.random.default_rng(0)
    observation, _ = env.reset(seed=0)
    agent.reset(20.0)
    observations, chosen, executed, rewards = [observation], [agent.act(observation)], [], []
    for t in range(39):
        override = rng.uniform(-1, 1, 6).astype(np.float32) if t % 3 == 0 else None
        executed.append(chosen[-1] if override is None else override)
        observation, reward, *_ = env.step(executed[-1])
        observations.append(observation)
        rewards.append(reward)
        chosen.append(agent.act(observation, reward, executed_action=override))
    expected = forward(
        agent, np.array(observations), np.array([*executed, chosen[-1]]), np.array([*rewards, 0.0]), 20.0
    )
    np.testing.assert_allclose(chosen, expected, rtol=0, atol=1e-4)
    blind = forward(agent, np.array(observations), np.array(chosen), np.array([*rewards, 0.0]), 20.0)
    assert np.abs(blind - expected).max() > 0.01


def test_executed_actions_of_a_batch_are_those_of_its_rows(agent):
    rng, singles = np.random.default_rng(0), [make_agent() for _ in range(3)]
    observations, rewards = rng.normal(size=(8, 3, 11)), rng.normal(size=(8, 3))
    executed, ended = rng.uniform(-1, 1, (8, 3, 3)), np.zeros((8, 3), dtype=bool)
    ended[4, 1] = True
    agent.reset(30.0, 3, AutoresetMode.SAME_STEP)
    for single in singles:
        single.reset(30.0)
    for t in range(8):
        together = agent.act(observations[t], *((rewards[t], ended[t], False, executed[t]) if t else ()))
        for row, single in enumerate(singles):
            if ended[t, row]:
                # What was executed last belongs to the episode that has ended.
                single.reset(30.0)
            last = () if t == 0 or ended[t, row] else (rewards[t, row], False, False, executed[t, row])
            np.testing.assert_allclose(together[row], single.act(observations[t, row], *last), rtol=0, atol=1e-5)


def test_executed_actions_outside_the_bounds_are_clipped_with_a_warning(agent):
    def second_action(executed):
        agent.reset()
        agent.act(np.ones(11))
        return agent.act(np.ones(11), 1.0, executed_action=executed)

    with pytest.warns(RuntimeWarning, match="executed_action is .* and was clipped"):
        clipped = second_action(np.array([3.0, -0.5, -7.0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(clipped, second_action(np.array([1.0, -0.5, -1.0])))


@pytest.mark.parametrize(
    ("rows", "executed", "message"),
    [
        (None, np.zeros(2), r"executed_action has shape \(2,\); expected \(3,\)"),
        (2, np.zeros(3), r"executed_action has shape \(3,\); expected \(2, 3\)"),
        (2, np.full((2, 3), np.nan), "executed_action holds a NaN"),
        (None, ["left", "right", "up"], "executed_action is not made of numbers"),
    ],
)
def test_executed_actions_that_do_not_fit_are_refused_and_the_episode_goes_on(agent, rows, executed, message):
    shape = (11,) if rows is None else (rows, 11)
    reward = 1.0 if rows is None else np.ones(rows)

    def second_action(refused):
        agent.reset(num_envs=rows)
        agent.act(np.ones(shape))
        if refused:
            with pytest.raises(InvalidInput, match=message):
                agent.act(np.ones(shape), reward, executed_action=executed)
        return agent.act(np.ones(shape), reward)

    assert (second_action(True) == second_action(False)).all()


def test_nothing_was_executed_before_the_first_action(agent):
    agent.reset()
    with pytest.raises(InvalidInput, match="before the agent's first action"):
        agent.act(np.zeros(11), executed_action=np.zeros(3))
    agent.act(np.zeros(11))


@pytest.mark.parametrize(("shape", "acting"), EXECUTED)
def test_copies_in_mid_episode_act_on_alike(shape, acting):
    agent = acting_as(make_agent("HalfCheetah-v5", **shape), acting)
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(20, 2, 17))
    agent.reset(20.0, 2)
    for t in range(10):
        agent.act(observations[t], np.ones(2) if t else None)
    copies = copy.deepcopy(agent), pickle.loads(pickle.dumps(agent))
    for t in range(10, 20):
        expected = agent.act(observations[t], np.ones(2))
        for each in copies:
            np.testing.assert_allclose(each.act(observations[t], np.ones(2)), expected, rtol=0, atol=1e-6)
    for each in (agent, *copies):
        each.reset(20.0, 2)
    expected = agent.act(observations[0])
    for each in copies:
        np.testing.assert_allclose(each.act(observations[0]), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mixer", ["aaren", "softmax", "gru"])
@pytest.mark.parametrize("rows", [None, 2])
def test_no_nan_acts(mixer, rows):
    agent = make_agent(mixer=mixer)
    with torch.no_grad():
        next(p for p in agent.model.parameters() if p.ndim > 1).fill_(torch.nan)
    agent.reset(num_envs=rows)
    with pytest.raises(InvalidInput, match=r"the model's action is nan in row 0; .*\(now 0.0 to 0.0\); reset"):
        agent.act(np.zeros(11 if rows is None else (rows, 11)))


def test_observations_beyond_float32_are_refused(agent):
    agent.reset()
    with pytest.raises(InvalidInput, match="observation holds a NaN or an infinite value, in float32"):
        agent.act(np.full(11, 1e300))


def test_rows_at_rest_do_not_run_out_of_timesteps():
    spec = EnvironmentSpec("HalfCheetah-v5", {"max_episode_steps": LIMIT})
    agent = make_agent("HalfCheetah-v5", timesteps="learned", max_steps=LIMIT)
    envs = make_vector(spec, 3)
    # Rows 1 and 2 rest for a whole episode, while row 0 plays its third one.
    assert roll_out(agent, envs, episodes=7, target_return=20.0).lengths.tolist() == [LIMIT] * 7
    envs.close()


def test_targets_beyond_what_the_model_tells_apart_are_said(tmp_path):
    agent = make_agent()
    most = 100 * float(agent.model.inputs.return_scale)
    assert agent.greatest_return == most
    with pytest.warns(RuntimeWarning, match=f"returns are scaled for up to {most:g}, and to it all targets beyond"):
        agent.reset(2 * most)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent.reset(most)


def test_a_vector_without_flags_warns_once():
    agent, envs = make_agent(), SyncVectorEnv([make_env] * 2)
    observation, _ = envs.reset(seed=0)
    agent.reset(num_envs=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        action = agent.act(observation)
    observation, reward, terminated, truncated, _ = envs.step(action)
    with pytest.warns(RuntimeWarning, match="neither terminated nor truncated of a vector environment"):
        agent.act(observation, reward)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent.act(observation, reward)
        agent.reset(num_envs=2)
        agent.act(observation)
        agent.act(observation, reward, terminated, truncated)
    envs.close()
