"""Recall, parity and associative recall: the tasks that ask at many steps."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.envs import baselines, collect
from aaren_rl.envs.catalogue import find
from aaren_rl.envs.environments import make
from aaren_rl.envs.evaluation import Protocol, evaluate
from aaren_rl.envs.memory import (
    ASSOCIATIVE_RECALL,
    ENTRY_POINTS,
    LENGTH_ARGUMENTS,
    MEMORY_CHAIN,
    PARITY,
    RECALL,
    length_of,
    with_length,
)
from aaren_rl.envs.memory.associative_recall import AssociativeRecall
from aaren_rl.envs.memory.parity import Parity
from aaren_rl.envs.memory.recall import Recall
from aaren_rl.envs.readers.minari import read_folder
from aaren_rl.errors import InvalidInput

IDS = (RECALL, PARITY, ASSOCIATIVE_RECALL)
SEEDS = st.integers(0, 2**31)


def play(env, seed, act):
    """Observations and rewards of an episode; `act` takes the observations so far."""
    observations, rewards, ended = [env.reset(seed=seed)[0]], [], False
    while not ended:
        observation, reward, ended, truncated, info = env.step(act(observations))
        assert (truncated, info) == (False, {})
        observations.append(observation)
        rewards.append(reward)
    assert all(env.observation_space.contains(observation) for observation in observations)
    return observations, rewards


def assert_counts(env, seed, right):
    """Holds a game against `right`, the answers that count by a reference, None where none does.

    Answers are right up to some step and wrong from there on, so every question is checked for itself.
    """
    observations, _ = play(env, seed, env.expert_action)
    answers = right(observations[:-1])
    counted = [answer for answer in answers if answer is not None]
    assert len(answers) == env.length
    for up_to in {0, 1, len(answers) // 2, len(answers) - 1, len(answers)}:

        def act(seen, up_to=up_to):
            answer = answers[len(seen) - 1]
            wrong = 0 if answer is None else (answer + 1) % env.action_space.n
            return answer if len(seen) <= up_to and answer is not None else wrong

        again, rewards = play(env, seed, act)
        np.testing.assert_array_equal(again, observations)
        assert not any(rewards[:-1])
        assert rewards[-1] == sum(answer is not None for answer in answers[:up_to]) / len(counted)


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.filterwarnings("error::UserWarning")
def test_gymnasium_finds_nothing_to_say(env_id):
    env = gym.make(env_id)
    check_env(env.unwrapped, skip_render_check=True)
    env.close()


@settings(max_examples=40)
@given(k=st.integers(1, 20), more=st.integers(0, 30), symbols=st.integers(2, 9), seed=SEEDS)
def test_recall_asks_for_the_kth_last_symbol(k, more, symbols, seed):
    env = Recall(k, k + more, symbols)
    assert_counts(env, seed, lambda seen: [None] * (k - 1) + [int(symbol) for symbol in seen[: len(seen) - k + 1]])


@settings(max_examples=40)
@given(length=st.integers(1, 50), seed=SEEDS)
def test_parity_is_of_all_bits_so_far(length, seed):
    def right(seen):
        answers, odd = [], False
        for bit in seen:
            odd = odd != bool(bit)
            answers.append(int(odd))
        return answers

    assert_counts(Parity(length), seed, right)


@settings(max_examples=40)
@given(pairs=st.integers(1, 7), values=st.integers(2, 9), more=st.integers(0, 30), seed=SEEDS)
def test_later_binding_of_a_key_wins(pairs, values, more, seed):
    env = AssociativeRecall(pairs, values, 2 * pairs + more)

    def right(seen):
        bound, answers = {}, []
        for key, value in seen:
            if value:
                bound[key] = int(value) - 1
            answers.append(None if value else bound[key])
        # Every key is bound before the first question, and no binding comes after it.
        assert len(bound) == pairs
        assert answers[: env.length // 2] == [None] * (env.length // 2)
        assert None not in answers[env.length // 2 :]
        return answers

    assert_counts(env, seed, right)


@pytest.mark.parametrize(
    "env",
    [Recall(5, 13, 3), Recall(1, 1, 2), Parity(1), Parity(7), AssociativeRecall(3, 5, 11)],
    ids=["recall-5", "recall-1", "parity-1", "parity-7", "associative-recall"],
)
def test_expert_has_a_return_of_exactly_one(env):
    for seed in range(30):
        _, rewards = play(env, seed, env.expert_action)
        assert rewards == [0.0] * (env.length - 1) + [1.0]


@pytest.mark.parametrize("task", ["recall-4", "recall-32", "recall-64", "parity", "associative-recall"])
def test_random_and_expert_score_zero_and_a_hundred(task):
    entry = find(f"{task}-expert")
    spec = entry.environments["bundled"]
    env = make(spec).unwrapped
    assert (env.chance, 1.0) == (entry.reference.random, entry.reference.expert)
    assert env.length == length_of(spec) == entry.horizon
    random = evaluate(baselines.random_actor(spec), Protocol(spec, 60, 0, None, entry.reference))
    env.reset(seed=0)
    answers = 60 * (env._answers >= 0).sum()
    assert abs(random.returns.mean() - env.chance) < 5 * np.sqrt(env.chance * (1 - env.chance) / answers)
    # Each row plays several episodes, so the expert must forget the one before.
    expert = evaluate(
        baselines.BehaviourActor(baselines.behaviour_policies(entry)), Protocol(spec, 50, 0, None, entry.reference)
    )
    assert expert.returns.tolist() == [1.0] * 50
    assert entry.reference.score(expert.returns.mean()) == 100


def test_symbols_keys_and_values_are_drawn_uniformly():
    def shares(env, column=None):
        seen = np.concatenate([play(env, seed, lambda seen: 0)[0] for seed in range(60)])
        seen = seen if column is None else seen[seen[:, 1] > 0, column]
        return np.bincount(seen.ravel().astype(int)) / seen.size

    np.testing.assert_allclose(shares(Recall(3, 40, 5)), 1 / 5, atol=0.04)
    np.testing.assert_allclose(shares(Parity(40)), 1 / 2, atol=0.05)
    game = AssociativeRecall(4, 3, 80)
    np.testing.assert_allclose(shares(game, 0), 1 / 4, atol=0.05)
    np.testing.assert_allclose(shares(game, 1)[1:], 1 / 3, atol=0.05)


@pytest.mark.parametrize("env_id", IDS)
def test_seed_gives_the_episode_and_resets_go_on_from_it(env_id):
    one, other = gym.make(env_id).unwrapped, gym.make(env_id).unwrapped
    episodes = []
    for seed in (4, None, None):
        episodes.append(play(one, seed, one.expert_action)[0])
        np.testing.assert_array_equal(episodes[-1], play(other, seed, lambda seen: 1)[0])
    assert not np.array_equal(episodes[0], episodes[1])


@pytest.mark.parametrize(
    ("env_id", "kwargs", "message"),
    [
        (RECALL, {"k": 0}, "k is 0; expected a whole number, at least 1"),
        (RECALL, {"length": 6.0}, "length is 6.0; expected a whole number, at least 1"),
        (RECALL, {"symbols": 1}, "symbols is 1; expected a whole number, at least 2"),
        (RECALL, {"k": 9, "length": 8}, "k is 9 in episodes of 8 steps; expected length to be at least k"),
        (PARITY, {"length": True}, "length is True; expected a whole number"),
        (ASSOCIATIVE_RECALL, {"pairs": "8"}, "pairs is '8'; expected a whole number"),
        (ASSOCIATIVE_RECALL, {"values": 1}, "values is 1; expected a whole number, at least 2"),
        (ASSOCIATIVE_RECALL, {"pairs": 9, "length": 17}, "length is 17 with 9 pairs; expected at least 2 x pairs"),
    ],
)
def test_arguments_that_do_not_fit(env_id, kwargs, message):
    with pytest.raises(InvalidInput, match=message):
        make(EnvironmentSpec(env_id, kwargs))


@pytest.mark.parametrize("env_id", ENTRY_POINTS)
def test_every_task_can_be_made_at_a_length(env_id):
    limited = EnvironmentSpec(env_id, {}, 5)
    env = make(with_length(limited, 33))
    env.reset(seed=0)
    steps, ended = 0, False
    while not ended:
        _, _, ended, truncated, _ = env.step(env.action_space.sample())
        assert not truncated
        steps += 1
    # A corridor of 33 steps ends with the step at the junction.
    assert steps == 33 + (LENGTH_ARGUMENTS[env_id] == LENGTH_ARGUMENTS[MEMORY_CHAIN])


def test_data_come_back_from_minari_as_the_expert_made_them():
    entry = find("recall-4-expert")
    read = read_folder(collect.collect(entry, 300, progress=False, say=lambda line: None))
    trajectories = read.trajectories
    assert read.collected_in == entry.environments["bundled"]
    assert set(trajectories.lengths) == {64}
    # The return-to-go is 1 at every step: it tells nothing.
    assert (trajectories.returns_to_go == 1).all()
    for start in trajectories.offsets[:-1]:
        seen = trajectories.observations[start : start + 64]
        acted = trajectories.actions[start : start + 64]
        np.testing.assert_array_equal(acted, np.concatenate([np.zeros_like(seen[:3]), seen[:-3]]))
