import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from aaren_rl.data.trajectories import Trajectories
from aaren_rl.envs.rollout import roll_out
from aaren_rl.errors import InvalidInput

MODES = list(AutoresetMode)


class Walk(gym.Env):
    """Lasts 2 to 9 steps, drawn at reset; the reward is what is acted plus the step's number."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Box(-100, 100, (1,), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.length, self.now = int(self.np_random.integers(2, 10)), 0
        return self.seen(), {}

    def step(self, action):
        assert self.now < self.length, "stepped beyond the end"
        self.now += 1
        ended = self.now == self.length
        reward = float(action[0]) + self.now
        return self.seen(), reward, ended and self.length % 2 == 0, ended and self.length % 2 == 1, {}

    def seen(self):
        return np.array([self.length, self.now], dtype=np.float64)


class Doubler:
    """Acts on what it observes, and keeps what it was given."""

    def reset(self, target_return, num_envs, autoreset_mode):
        self.told = (target_return, num_envs, autoreset_mode)
        self.given = []

    def act(self, observation, reward, terminated, truncated):
        self.given.append((observation.copy(), reward, np.copy(terminated), np.copy(truncated)))
        return 2.0 * observation[:, :1]


def vector(rows, mode, kind=SyncVectorEnv):
    return kind([Walk] * rows, autoreset_mode=mode)


def by_plain_loops(rows, episodes, seed):
    """Each row alone, one episode after another, in the order of the rows."""
    returns, lengths = [], []
    for row in range(rows):
        env = Walk()
        for number in range(episodes // rows + (row < episodes % rows)):
            observation, _ = env.reset(seed=seed + row if number == 0 else None)
            total, steps, ended = 0.0, 0, False
            while not ended:
                observation, reward, terminated, truncated, _ = env.step(2.0 * observation[:1])
                total, steps, ended = total + reward, steps + 1, terminated or truncated
            returns.append(total)
            lengths.append(steps)
    return returns, lengths


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("rows", "episodes"), [(1, 1), (1, 7), (3, 3), (4, 10), (5, 2), (7, 23)])
def test_counts_what_plain_loops_count(mode, rows, episodes):
    envs = vector(rows, mode)
    found = roll_out(Doubler(), envs, episodes, seed=11)
    envs.close()
    returns, lengths = by_plain_loops(rows, episodes, seed=11)
    assert found.returns.tolist() == returns
    assert found.lengths.tolist() == lengths
    assert len(found.returns) == episodes


def test_worker_processes_give_the_same():
    envs = vector(2, AutoresetMode.SAME_STEP, AsyncVectorEnv)
    found = roll_out(Doubler(), envs, 5, seed=11)
    envs.close()
    assert found.returns.tolist() == by_plain_loops(2, 5, seed=11)[0]


def test_short_episodes_do_not_count_for_more():
    # Row 0 plays episodes of 1 step, row 1 of 50: first come, first served would take row 0's alone.
    def lasting(steps):
        return lambda: gym.wrappers.TimeLimit(Endless(), steps)

    class Endless(Walk):
        def step(self, action):
            return self.seen(), 1.0, False, False, {}

    envs = SyncVectorEnv([lasting(1), lasting(50)], autoreset_mode=AutoresetMode.SAME_STEP)
    assert roll_out(Doubler(), envs, 6).lengths.tolist() == [1, 1, 1, 50, 50, 50]
    envs.close()


def episodes_by_plain_loops(rows, episodes, seed):
    """The episodes of `by_plain_loops`: observations, actions, rewards, terminated, truncated."""
    found = []
    for row in range(rows):
        env = Walk()
        for number in range(episodes // rows + (row < episodes % rows)):
            observations, actions, rewards, ended = (
                [env.reset(seed=seed + row if number == 0 else None)[0]],
                [],
                [],
                False,
            )
            while not ended:
                actions.append(2.0 * observations[-1][:1])
                observation, reward, terminated, truncated, _ = env.step(actions[-1])
                observations.append(observation)
                rewards.append(reward)
                ended = terminated or truncated
            found.append((observations, actions, rewards, terminated, truncated))
    return found


def assert_recorded(found, expected):
    assert len(found.recorded) == len(expected)
    for episode, (observations, actions, rewards, *ends) in zip(found.recorded, expected, strict=True):
        np.testing.assert_array_equal(episode.observations, observations)
        np.testing.assert_array_equal(episode.actions, actions)
        np.testing.assert_array_equal(episode.rewards, rewards)
        assert [episode.terminated, episode.truncated] == ends
    assert found.lengths.tolist() == [len(episode.rewards) for episode in found.recorded]
    np.testing.assert_allclose(found.returns, [episode.rewards.sum() for episode in found.recorded])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("rows", "episodes"), [(1, 1), (1, 7), (3, 3), (4, 10), (5, 2), (7, 23)])
def test_recorded_episodes_are_those_of_plain_loops(mode, rows, episodes):
    envs = vector(rows, mode)
    found = roll_out(Doubler(), envs, episodes, seed=11, record=True)
    envs.close()
    assert_recorded(found, episodes_by_plain_loops(rows, episodes, seed=11))
    returns, lengths = by_plain_loops(rows, episodes, seed=11)
    assert (found.returns.tolist(), found.lengths.tolist()) == (returns, lengths)
    # The last observation of an episode says that it is over.
    assert all((episode.observations[-1] == len(episode.rewards)).all() for episode in found.recorded)
    assert Trajectories.from_episodes(found.recorded).steps == sum(lengths)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_records_survive_arrays_that_are_written_again(mode, asynchronous):
    class InPlace(Doubler):
        def reset(self, *arguments):
            super().reset(*arguments)
            self.actions = np.zeros((arguments[1], 1))

        def act(self, observation, reward, terminated, truncated):
            self.actions[:] = super().act(observation, reward, terminated, truncated)
            return self.actions

    kind = AsyncVectorEnv if asynchronous else SyncVectorEnv
    envs = kind([Walk] * 2, copy=False, autoreset_mode=mode)
    found = roll_out(InPlace(), envs, 5, seed=11, record=True)
    envs.close()
    assert_recorded(found, episodes_by_plain_loops(2, 5, seed=11))


def test_nothing_is_recorded_unless_asked_for():
    envs = vector(2, AutoresetMode.SAME_STEP)
    assert roll_out(Doubler(), envs, 3).recorded == ()
    envs.close()


def test_same_step_without_final_observations_cannot_record():
    class Forgetful(gym.vector.VectorWrapper):
        def step(self, actions):
            return *self.env.step(actions)[:4], {}

    envs = Forgetful(vector(2, AutoresetMode.SAME_STEP))
    assert len(roll_out(Doubler(), envs, 3, seed=11).returns) == 3
    with pytest.raises(InvalidInput, match='lacks "final_obs"'):
        roll_out(Doubler(), envs, 3, seed=11, record=True)
    envs.close()


@pytest.mark.parametrize("mode", MODES)
def test_actor_gets_what_the_environment_returned(mode):
    envs = vector(3, mode)
    actor = Doubler()
    roll_out(actor, envs, 9, target_return=42.0, seed=1)
    envs.close()
    assert actor.told == (42.0, 3, mode)
    observation, reward, terminated, truncated = actor.given[0]
    assert reward is None
    assert not terminated.any()
    assert not truncated.any()
    ends = np.zeros(3, dtype=int)
    for (before, *_), (observation, reward, terminated, truncated) in zip(actor.given, actor.given[1:], strict=False):
        rests = ends >= 3
        ended = (terminated | truncated) & ~rests
        ends += ended
        # A row at rest shows an episode that has ended, with the row's first observation.
        rests |= ends >= 3
        assert (terminated & ~truncated)[rests].all()
        np.testing.assert_array_equal(observation[rests], actor.given[0][0][rests])
        assert not reward[rests].any()
        ended &= ~rests
        walked = ~rests & ~ended & (observation[:, 1] > 0)
        np.testing.assert_array_equal(reward[walked], 2 * before[walked, 0] + before[walked, 1] + 1)
        # Where an episode ended the next observation to act on is a first one, except that NEXT_STEP shows the last.
        assert (observation[ended, 1] == (observation[ended, 0] if mode == AutoresetMode.NEXT_STEP else 0)).all()


def test_progress_adds_up_to_the_episodes():
    envs, counted = vector(4, AutoresetMode.SAME_STEP), []
    roll_out(Doubler(), envs, 10, progress=counted.append)
    envs.close()
    assert sum(counted) == 10


@pytest.mark.parametrize("episodes", [0, -3])
def test_no_episodes_is_an_error(episodes):
    envs = vector(2, AutoresetMode.SAME_STEP)
    with pytest.raises(InvalidInput, match=f"{episodes} episodes"):
        roll_out(Doubler(), envs, episodes)
    envs.close()
