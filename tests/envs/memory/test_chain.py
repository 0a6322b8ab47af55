import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.envs import baselines, collect
from aaren_rl.envs.catalogue import find
from aaren_rl.envs.environments import make
from aaren_rl.envs.evaluation import Protocol, evaluate
from aaren_rl.envs.memory import MEMORY_CHAIN, T_MAZE
from aaren_rl.envs.memory.chain import MemoryChain, PassiveTMaze
from aaren_rl.envs.readers.minari import read_folder
from aaren_rl.envs.references import reference_of
from aaren_rl.errors import InvalidInput

IDS = (T_MAZE, MEMORY_CHAIN)


def episode(env, seed, answer=None):
    """Observations, rewards and ends of an episode; the expert acts, or `answer` whatever is seen."""
    observations, rewards, ends = [env.reset(seed=seed)[0]], [], []
    while not (ends and ends[-1]):
        action = env.expert_action(observations) if answer is None else np.array([answer], dtype=np.float32)
        observation, reward, terminated, truncated, info = env.step(action)
        assert not truncated
        assert info == {}
        observations.append(observation)
        rewards.append(reward)
        ends.append(terminated)
    return np.stack(observations), rewards, ends


def binomial_bounds(n):
    """Where a fair coin's share of heads lies but once in a million times."""
    low, high = binom.interval(1 - 1e-6, n, 0.5)
    return low / n, high / n


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.filterwarnings("error::UserWarning")
def test_gymnasium_finds_nothing_to_say(env_id):
    env = gym.make(env_id)
    check_env(env.unwrapped, skip_render_check=True)
    env.close()


def test_our_make_takes_the_same_arguments():
    env = make(EnvironmentSpec(MEMORY_CHAIN, {"bits": 3, "shortest": 7, "longest": 7}))
    assert (env.observation_space.shape, env.action_space.shape) == ((6,), (1,))
    assert (env.unwrapped.bits, env.unwrapped.shortest, env.unwrapped.longest) == (3, 7, 7)
    env.close()


@settings(max_examples=60)
@given(bits=st.integers(1, 9), shortest=st.integers(1, 40), more=st.integers(0, 40), seed=st.integers(0, 2**31))
def test_expert_is_right_whatever_is_drawn(bits, shortest, more, seed):
    env = MemoryChain(bits, shortest, shortest + more)
    observations, rewards, ends = episode(env, seed)
    length = len(rewards) - 1
    assert shortest <= length <= shortest + more
    assert rewards == [0.0] * length + [1.0]
    assert ends == [False] * length + [True]
    # All bits at the first step, one question at the last, and nothing else.
    assert set(np.abs(observations[0, :bits])) == {1.0}
    assert not observations[0, bits:].any()
    assert not observations[1:length].any()
    assert not observations[length, :bits].any()
    assert sorted(observations[length, bits:]) == [0.0] * (bits - 1) + [1.0]
    assert not observations[length + 1].any()
    assert all(env.observation_space.contains(observation) for observation in observations)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31), answer=st.floats(-1, 1, width=32))
def test_reward_is_for_the_sign_of_the_last_action(seed, answer):
    env = MemoryChain(5, 1, 6)
    observations, rewards, _ = episode(env, seed, answer)
    asked = int(np.argmax(observations[-2, 5:]))
    assert rewards[-1] == float(answer * observations[0, asked] > 0)
    assert not any(rewards[:-1])


def test_t_maze_shows_cue_and_junction():
    env = PassiveTMaze(3, 3)
    observations, rewards, _ = episode(env, 0)
    cue = observations[0, 0]
    np.testing.assert_array_equal(observations, [[cue, 0], [0, 0], [0, 0], [0, 1], [0, 0]])
    assert rewards == [0, 0, 0, 1]


@pytest.mark.parametrize(("bits", "length"), [(1, 1), (1, 23), (3, 12)])
def test_nothing_after_the_first_step_tells_the_bits(bits, length):
    env = MemoryChain(bits, length, length)
    later = {}
    for seed in range(300):
        observations, rewards, _ = episode(env, seed)
        actions = [env.expert_action(observations[: t + 1]) for t in range(length)]
        asked = int(np.argmax(observations[length, bits:]))
        told = b"".join(array.tobytes() for array in [observations[1:], *actions, np.array(rewards)])
        later.setdefault(asked, {}).setdefault(tuple(observations[0, :bits]), set()).add(told)
    assert len(later) == bits
    for by_shown in later.values():
        # Several settings of the bits were met, and all go on alike, to the byte.
        assert len(by_shown) == 2**bits
        assert len(set.union(*by_shown.values())) == 1


@pytest.mark.parametrize("answer", [-1.0, 1.0, 0.3])
def test_answer_without_memory_is_right_half_of_the_time(answer):
    class Constant:
        def reset(self, target_return, num_envs, autoreset_mode):
            pass

        def act(self, observation, reward, terminated, truncated):
            return np.full((len(observation), 1), answer, dtype=np.float32)

    spec = EnvironmentSpec(T_MAZE, {"shortest": 1, "longest": 5})
    returns = evaluate(Constant(), Protocol(spec, 600, 0, None, reference_of(spec))).returns
    low, high = binomial_bounds(600)
    assert set(returns) == {0.0, 1.0}
    assert low <= returns.mean() <= high


@pytest.mark.parametrize("name", ["t-maze-expert", "memory-chain-expert"])
def test_random_and_expert_score_zero_and_a_hundred(name):
    entry = find(name)
    spec = EnvironmentSpec(entry.environments["bundled"].id, {"shortest": 2, "longest": 9})
    random = evaluate(baselines.random_actor(spec), Protocol(spec, 600, 0, None, entry.reference)).returns
    low, high = binomial_bounds(600)
    assert low <= random.mean() <= high
    # Each row plays several episodes, so the expert must forget the one before.
    expert = baselines.BehaviourActor(baselines.behaviour_policies(entry))
    returns = evaluate(expert, Protocol(spec, 120, 0, None, entry.reference)).returns
    assert returns.tolist() == [1.0] * 120
    assert entry.reference.score(returns.mean()) == 100


def test_bits_questions_and_lengths_are_drawn_uniformly():
    env = MemoryChain(2, 1, 4)
    episodes = [episode(env, seed)[0] for seed in range(800)]
    low, high = binomial_bounds(800)
    assert low <= np.mean([observations[0, 0] > 0 for observations in episodes]) <= high
    assert low <= np.mean([observations[0, 0] == observations[0, 1] for observations in episodes]) <= high
    assert low <= np.mean([observations[-2, 2] == 1 for observations in episodes]) <= high
    counts = np.bincount([len(observations) - 2 for observations in episodes])
    assert counts[0] == 0
    assert len(counts) == 5
    assert (np.abs(counts[1:] / 800 - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 800)).all()


def test_seed_gives_the_episode_and_resets_go_on_from_it():
    one, other = PassiveTMaze(1, 9), PassiveTMaze(1, 9)
    for seed in (4, None, None):
        np.testing.assert_array_equal(episode(one, seed)[0], episode(other, seed)[0])
    drawn = {len(episode(one, None)[1]) for _ in range(60)}
    assert len(drawn) > 3


def test_length_of_a_test_is_exact():
    env = make(EnvironmentSpec(T_MAZE, {"shortest": 9600, "longest": 9600}))
    observations, rewards, _ = episode(env.unwrapped, 1)
    assert len(rewards) == 9601
    assert rewards[-1] == 1.0
    assert observations[:9600, 1].sum() == 0
    env.close()


@pytest.mark.parametrize(
    ("env_id", "kwargs", "message"),
    [
        (T_MAZE, {"shortest": 0}, "shortest is 0; expected a whole number, at least 1"),
        (T_MAZE, {"longest": 2.5}, "longest is 2.5; expected a whole number"),
        (T_MAZE, {"shortest": True}, "shortest is True; expected a whole number"),
        (T_MAZE, {"shortest": 9, "longest": 8}, "lengths from 9 to 8; expected shortest to be at most longest"),
        (T_MAZE, {"bits": 2}, "cannot be made: .*bits"),
        (MEMORY_CHAIN, {"bits": 0}, "bits is 0; expected a whole number, at least 1"),
        (MEMORY_CHAIN, {"bits": "4"}, "bits is '4'; expected a whole number"),
    ],
)
def test_arguments_that_do_not_fit(env_id, kwargs, message):
    with pytest.raises(InvalidInput, match=message):
        make(EnvironmentSpec(env_id, kwargs))


@pytest.mark.parametrize(("name", "bits"), [("t-maze-expert", 1), ("memory-chain-expert", 4)])
def test_data_come_back_from_minari_as_the_expert_made_them(name, bits):
    entry = find(name)
    read = read_folder(collect.collect(entry, 1_500, progress=False))
    trajectories, environment, dataset_id = read.trajectories, read.collected_in, read.id
    assert (environment, dataset_id) == (entry.environments["bundled"], entry.bundled_id)
    assert trajectories.steps >= 1_500
    assert trajectories.lengths.min() >= 2
    assert trajectories.lengths.max() <= entry.horizon == 151
    assert (trajectories.returns == 1).all()
    # The return-to-go is 1 at every step: it tells nothing.
    assert (trajectories.returns_to_go == 1).all()
    assert trajectories.terminated.all()
    assert not trajectories.truncated.any()
    starts, ends = trajectories.offsets[:-1], trajectories.offsets[1:] - 1
    asked = trajectories.observations[ends, bits:]
    right = (trajectories.observations[starts, :bits] * asked).sum(1)
    np.testing.assert_array_equal(trajectories.actions[ends, 0], right)
    assert set(right) == {-1.0, 1.0}
    others = np.ones(trajectories.steps, dtype=bool)
    others[ends] = False
    assert trajectories.actions[others].tobytes() == bytes(4 * others.sum())
