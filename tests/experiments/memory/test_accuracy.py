import numpy as np
import pytest

from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.envs.environments import make
from aaren_rl.envs.evaluation import confidence_interval, success_interval
from aaren_rl.envs.memory import PARITY, RECALL, T_MAZE, with_length
from aaren_rl.errors import InvalidInput
from aaren_rl.experiments.memory.accuracy import ROWS, accuracy


class Constant:
    """An agent that always gives one answer."""

    def __init__(self, spec, answer):
        self.card, self.answer = AgentCard(spec, "tests/any-v0", "bundled", (1.0,)), answer

    def reset(self, target_return, num_envs, autoreset_mode):
        pass

    def act(self, observation, reward, terminated, truncated):
        return np.stack([self.answer] * len(observation))


def alone(spec, seed, answer):
    """The return of one episode, played in a single environment."""
    env = make(spec)
    env.reset(seed=seed)
    total, ended = 0.0, False
    while not ended:
        _, reward, ended, _, _ = env.step(answer)
        total += reward
    env.close()
    return total


@pytest.mark.parametrize("task", [RECALL, PARITY])
def test_accuracy_is_the_mean_return_with_its_bootstrap(task):
    agent = Constant(EnvironmentSpec(task, {"length": 9}, 9), np.int64(1))
    found = accuracy(agent, 23, 12, 40)
    returns = np.array([alone(with_length(agent.card.environment, 23), seed, 1) for seed in range(40, 52)])
    assert (found.length, found.episodes, found.perfect) == (23, 12, 0)
    assert found.accuracy == pytest.approx(returns.mean())
    assert found.ci95 == pytest.approx(confidence_interval(returns, 40))


def test_one_answer_an_episode_has_wilsons_interval():
    agent = Constant(EnvironmentSpec(T_MAZE), np.ones(1, np.float32))
    found = accuracy(agent, 5, 30, 0)
    returns = [alone(with_length(agent.card.environment, 5), seed, 1.0) for seed in range(30)]
    assert found.accuracy == found.perfect / 30 == np.mean(returns)
    assert found.ci95 == success_interval(found.perfect, 30)


def test_single_episode_of_many_answers_has_no_interval():
    assert accuracy(Constant(EnvironmentSpec(PARITY), np.int64(0)), 7, 1, 0).ci95 is None


def test_more_episodes_than_rows_are_played_in_turns():
    done = []
    found = accuracy(Constant(EnvironmentSpec(PARITY), np.int64(0)), 3, ROWS + 7, 0, done.append)
    assert sum(done) == found.episodes == ROWS + 7


def test_task_says_which_lengths_are_too_short():
    with pytest.raises(InvalidInput, match="k is 9 in episodes of 8 steps"):
        accuracy(Constant(EnvironmentSpec(RECALL, {"k": 9, "length": 20}), np.int64(0)), 8, 2, 0)
    with pytest.raises(InvalidInput, match="0 episodes; expected at least 1"):
        accuracy(Constant(EnvironmentSpec(PARITY), np.int64(0)), 8, 0, 0)
