"""Environments that rest, fail, or stand in worker processes."""

import json
import os
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.envs.baselines import random_actor
from aaren_rl.envs.environments import make, make_vector
from aaren_rl.envs.evaluation import Protocol, evaluate, result
from aaren_rl.envs.rollout import roll_out
from aaren_rl.errors import EpisodeFailed, InvalidInput

HOPPER = EnvironmentSpec("Hopper-v5", {"max_episode_steps": 40})


class Small(gym.Env):
    """Counts what is open and what is stepped; lasts as long as it is told."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    opened = most = stepped = resets = 0

    def __init__(self, lengths=(3,)):
        self.lengths = lengths
        type(self).opened += 1
        type(self).most = max(self.most, self.opened)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        type(self).resets += 1
        self.left = int(self.np_random.choice(self.lengths))
        return np.zeros(2, np.float32), {}

    def step(self, action):
        type(self).stepped += 1
        self.left -= 1
        return np.zeros(2, np.float32), 1.0, self.left == 0, False, {}

    def close(self):
        type(self).opened -= 1


class Robot(Small):
    def __init__(self):
        super().__init__()
        if self.opened > 1:
            type(self).opened -= 1
            raise ConnectionError("port 5005 is taken")


class Licensed(Small):
    """Three of them may be open."""

    def __init__(self):
        super().__init__()
        if self.opened > 3:
            type(self).opened -= 1
            raise RuntimeError("no licence\nleft")


class Faulty(Small):
    """Fails in one way at the fourth step of the second episode of the row that was seeded with 12."""

    def __init__(self, fault):
        super().__init__(lengths=(6,))
        self.fault, self.seeded, self.episode = fault, None, 0

    def reset(self, *, seed=None, options=None):
        self.seeded = self.seeded if seed is None else seed
        self.episode += 1
        if self.fault == "reset" and self.seeded == 12 and self.episode == 2:
            raise OSError("the arm is stuck")
        return super().reset(seed=seed)

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        if (self.seeded, self.episode, self.left) == (12, 2, 2):
            if self.fault == "error":
                raise ZeroDivisionError("division by zero")
            if self.fault == "exit":
                os._exit(7)
            observation = {
                "nan": np.array([0, np.nan], np.float32),
                "infinite": np.array([np.inf, 0], np.float32),
                "shape": np.zeros(3, np.float32),
            }.get(self.fault, observation)
            reward = {"reward": np.nan, "rewards": np.zeros(2), "no reward": None}.get(self.fault, reward)
        return observation, reward, terminated, truncated, info


class Stuck(Faulty):
    """Cannot be closed either."""

    def close(self):
        super().close()
        raise RuntimeError("the lock does not open")


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for kind in (Small, Robot, Licensed, Faulty, Stuck, Goal):
        name = f"resting/{kind.__name__}-v0"
        gym.register(name, kind)
        for count in ("opened", "most", "stepped", "resets"):
            monkeypatch.setattr(kind, count, 0, raising=False)
    yield
    for kind in (Small, Robot, Licensed, Faulty, Stuck, Goal):
        del gym.registry[f"resting/{kind.__name__}-v0"]


class Still:
    """Does nothing, in as many rows as there are."""

    def reset(self, target_return, num_envs, autoreset_mode):
        self.rows = num_envs

    def act(self, observation, reward, terminated, truncated):
        assert np.isfinite(observation).all()
        assert reward is None or np.isfinite(reward).all()
        return np.zeros((self.rows, 1), np.float32)


def small(lengths):
    return EnvironmentSpec("resting/Small-v0", {"lengths": lengths})


@pytest.mark.parametrize("lengths", [(10, 10, 10, 200), (1, 50), (7,)])
def test_nothing_is_simulated_that_is_not_counted(lengths):
    envs = make_vector(small(lengths), 8)
    found = roll_out(Still(), envs, 21)
    envs.close()
    assert found.lengths.sum() == Small.stepped
    assert Small.resets == 21


def test_more_rows_than_episodes_leave_rows_untouched():
    envs = make_vector(small((3,)), 8)
    assert roll_out(Still(), envs, 2).lengths.tolist() == [3, 3]
    assert roll_out(Still(), envs, 3).lengths.tolist() == [3, 3, 3]
    envs.close()
    assert (Small.stepped, Small.resets) == (15, 5)


def everything(found):
    parts = [found.returns.tolist(), found.lengths.tolist()]
    for episode in found.recorded:
        parts += [episode.observations.tolist(), episode.actions.tolist(), episode.rewards.tolist()]
        parts += [episode.terminated, episode.truncated]
    return parts


@pytest.mark.parametrize(("rows", "episodes"), [(1, 3), (4, 4), (5, 13), (6, 2)])
def test_resting_gives_the_episodes_of_gymnasiums_vectors(rows, episodes):
    found = []
    for kind in ("in turn", "two processes", "three processes", SyncVectorEnv):
        if kind is SyncVectorEnv:
            envs = SyncVectorEnv([lambda: make(HOPPER)] * rows, autoreset_mode=AutoresetMode.SAME_STEP)
        else:
            envs = make_vector(HOPPER, rows, {"in turn": 1, "two processes": 2, "three processes": 3}[kind])
        found.append(everything(roll_out(random_actor(HOPPER, 3), envs, episodes, seed=5, record=True)))
        envs.close()
    assert found[0] == found[1] == found[2] == found[3]


def test_rows_in_several_processes_are_all_of_them():
    envs = make_vector(HOPPER, 5, processes=2)
    assert [group.rows for group in envs._groups] == [(0, 1, 2), (3, 4)]
    assert len({group._process.pid for group in envs._groups} | {os.getpid()}) == 3
    processes = [group._process for group in envs._groups]
    envs.close()
    assert [process.exitcode for process in processes] == [0, 0]


@pytest.mark.parametrize(("kind", "instances"), [("Robot", 1), ("Licensed", 3), ("Small", 5)])
def test_no_more_instances_are_open_than_asked_for(kind, instances):
    spec = EnvironmentSpec(f"resting/{kind}-v0")
    actor = random_actor(spec)
    protocol = Protocol(spec, 10, 4, None, None, instances=instances)
    found = evaluate(actor, protocol)
    figures = result(found, protocol)
    assert found.lengths.tolist() == [3] * 10
    counter = globals()[kind]
    assert (counter.most, counter.opened) == (instances, 0)
    assert (figures["instances"], figures["processes"]) == (instances, 1)
    assert figures["seeds"] == list(range(4, 4 + instances))


def test_instances_beyond_what_can_be_open_are_an_error_that_says_so():
    for kind, number, cause in (
        ("Robot", 2, "ConnectionError: port 5005 is taken"),
        ("Licensed", 4, "RuntimeError: no licence left"),
    ):
        protocol = Protocol(EnvironmentSpec(f"resting/{kind}-v0"), 10, 0, None, None)
        with pytest.raises(
            EpisodeFailed, match=rf"cannot be made, instance {number} of 10: .*{cause}; .*fewer"
        ) as caught:
            evaluate(Still(), protocol)
        assert (caught.value.row, caught.value.environment) == (number - 1, f"resting/{kind}-v0")
        assert globals()[kind].opened == 0
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("processes", [1, 2])
def test_an_unknown_environment_is_named_wherever_it_would_be_made(processes):
    with pytest.raises(InvalidInput, match="unknown environment 'Hoper-v5'"):
        make_vector(EnvironmentSpec("Hoper-v5"), 3, processes)


FAULTS = {
    "error": "ZeroDivisionError: division by zero",
    "nan": r"the observation is nan at \[1\]",
    "infinite": r"the observation is inf at \[0\]",
    "shape": r"the observation has shape \(3,\); expected \(2,\)",
    "reward": "the reward is nan",
    "rewards": r"the reward has shape \(2,\); expected a number",
    "no reward": "the reward is nan",
}


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_environment_is_reported_with_episode_step_and_seed(fault, processes):
    protocol = Protocol(EnvironmentSpec("resting/Faulty-v0", {"fault": fault}), 9, 10, None, None, 4, processes)
    told = r"failed at step 4 of episode 2 of 2 in row 2 \(seed 12\): "
    with pytest.raises(
        EpisodeFailed, match=f"environment resting/Faulty-v0 {told}{FAULTS[fault]}; to play it again: --seed 12 --inst"
    ) as caught:
        evaluate(Still(), protocol)
    found = caught.value
    assert (found.row, found.episode, found.episodes, found.seed, found.step) == (2, 2, 2, 12, 4)
    assert found.environment == "resting/Faulty-v0"
    assert Faulty.opened == 0
    # What the message says plays it again.
    with pytest.raises(EpisodeFailed, match=rf"step 4 of episode 2 of 2 in row 0 \(seed 12\): {FAULTS[fault]}"):
        evaluate(Still(), Protocol(protocol.environment, 2, 12, None, None, instances=1))


@pytest.mark.parametrize("processes", [1, 2])
def test_the_cause_of_a_failure_is_chained(processes):
    spec = EnvironmentSpec("resting/Faulty-v0", {"fault": "error"})
    with pytest.raises(EpisodeFailed) as caught:
        evaluate(Still(), Protocol(spec, 9, 10, None, None, 4, processes))
    if processes > 1:
        assert "in step\n" in str(caught.value.__cause__)
        assert "ZeroDivisionError: division by zero" in str(caught.value.__cause__)
    else:
        assert type(caught.value.__cause__) is ZeroDivisionError


def test_a_failing_reset_is_step_0():
    spec = EnvironmentSpec("resting/Faulty-v0", {"fault": "reset"})
    with pytest.raises(EpisodeFailed, match="at the reset of episode 2 of 2 in row 2.*OSError: the arm") as caught:
        evaluate(Still(), Protocol(spec, 8, 10, None, None, 4))
    assert (caught.value.row, caught.value.episode, caught.value.step) == (2, 2, 0)


def test_a_worker_process_that_dies_is_reported():
    spec = EnvironmentSpec("resting/Faulty-v0", {"fault": "exit"})
    message = "in one of the rows 2 to 3, .*seeds 12 to 13: its worker process ended with exit code 7"
    with pytest.raises(EpisodeFailed, match=message):
        evaluate(Still(), Protocol(spec, 8, 10, None, None, 4, processes=2))


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("fault", ["nan", "reward"])
def test_values_that_nobody_can_act_on_are_found_in_every_autoreset_mode(mode, fault):
    envs = SyncVectorEnv([lambda: Faulty(fault)] * 4, autoreset_mode=mode)
    message = rf"Faulty failed at step 4 of episode 2 of 2 in row 2 \(seed 12\): {FAULTS[fault]}"
    with pytest.raises(EpisodeFailed, match=message):
        roll_out(Still(), gym.wrappers.vector.RecordEpisodeStatistics(envs), 8, seed=10)
    envs.close()


@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
def test_foreign_vectors_that_fail_are_reported_with_their_seeds(kind):
    envs = kind([lambda: Faulty("error")] * 4, autoreset_mode=AutoresetMode.SAME_STEP)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        message = r"in one of the rows 0 to 3, .*seeds 10 to 13: ZeroDivisionError: division by zero"
        with pytest.raises(EpisodeFailed, match=message) as caught:
            roll_out(Still(), envs, 8, seed=10)
    assert caught.value.row is None
    envs.close()


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_failures_of_rows_at_rest_are_nobodys(mode):
    # Row 2 has played its only episode when its second one fails.
    envs = SyncVectorEnv([lambda: Faulty("nan")] * 3 + [lambda: Small((30,))], autoreset_mode=mode)
    found = roll_out(Still(), envs, 4, seed=10)
    assert found.lengths.tolist() == [6, 6, 6, 30]
    envs.close()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_close_that_fails_hides_nothing(processes):
    spec = EnvironmentSpec("resting/Stuck-v0", {"fault": "error"})
    with (
        pytest.warns(RuntimeWarning, match="resting/Stuck-v0 was not closed in row 3: RuntimeError: the lock"),
        pytest.raises(EpisodeFailed, match="ZeroDivisionError"),
    ):
        evaluate(Still(), Protocol(spec, 8, 10, None, None, 4, processes))
    assert Stuck.opened == 0
    spec = EnvironmentSpec("resting/Stuck-v0", {"fault": "none"})
    with pytest.warns(RuntimeWarning, match="was not closed in row 0"):
        assert len(evaluate(Still(), Protocol(spec, 8, 10, None, None, 4, processes)).returns) == 8


@pytest.mark.parametrize("wrong", [{"instances": 0}, {"instances": -2}, {"processes": 0}, {"episodes": 0}])
def test_numbers_that_cannot_be_are_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(InvalidInput, match=f"{value} {name}; expected at least 1"):
        Protocol(**{"environment": HOPPER, "episodes": 3, "seed": 0, "target_return": None, "reference": None, **wrong})


class Goal(gym.Env):
    """Ten steps; says in some way whether the goal is reached, which it is at some steps."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, how):
        self.how = how

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.now, self.at = 0, int(self.np_random.integers(1, 19))
        # What a reset says is of no step.
        return np.zeros(1, np.float32), {"success": True} if self.how == "reset" else {}

    def step(self, action):
        self.now += 1
        there = self.now == self.at
        info = {
            "passing": {"success": there},
            "float": {"is_success": np.float32(there)},
            "array": {"success": np.array(there)},
            "sparse": {"success": 1} if there else {},
            "at the end": {"goal_achieved": self.at <= 10} if self.now == 10 else {},
        }.get(self.how, {"other": 1.0})
        return np.zeros(1, np.float32), 0.0, False, self.now == 10, info


def wins(rows, episodes, seed):
    """Whether each episode reaches its goal, from the generators alone."""
    found = []
    for row in range(rows):
        rng = gym.utils.seeding.np_random(seed + row)[0]
        found += [bool(rng.integers(1, 19) <= 10) for _ in range(episodes // rows + (row < episodes % rows))]
    return found


@pytest.mark.parametrize("vector", [*AutoresetMode, "resting", "processes"])
@pytest.mark.parametrize("how", ["passing", "float", "array", "sparse", "at the end"])
def test_success_is_counted_wherever_infos_report_it(how, vector):
    rows, episodes = 3, 17
    if vector in ("resting", "processes"):
        envs = make_vector(EnvironmentSpec("resting/Goal-v0", {"how": how}), rows, 1 + (vector == "processes"))
    else:
        envs = SyncVectorEnv([lambda: Goal(how)] * rows, autoreset_mode=vector)
    found = roll_out(Still(), envs, episodes, seed=40)
    envs.close()
    expected = wins(rows, episodes, 40)
    assert found.success.tolist() == expected
    assert 0 < sum(expected) < episodes
    protocol = Protocol(EnvironmentSpec("resting/Goal-v0"), episodes, 40, None, None, rows)
    figures = result(found, protocol)
    assert json.loads(json.dumps(figures)) == figures
    assert figures["success_rate"] == sum(expected) / episodes
    assert figures["success_ci95"][0] < figures["success_rate"] < figures["success_ci95"][1]
    assert (figures["success_rule"], figures["successes"]) == (
        "its info says so at any step of the episode",
        expected,
    )


@pytest.mark.parametrize("mode", [*AutoresetMode, "resting"])
@pytest.mark.parametrize("how", ["nothing", "reset"])
def test_no_step_that_says_so_means_no_success_rate(how, mode):
    if mode == "resting":
        envs = make_vector(EnvironmentSpec("resting/Goal-v0", {"how": how}), 2)
    else:
        envs = SyncVectorEnv([lambda: Goal(how)] * 2, autoreset_mode=mode)
    found = roll_out(Still(), envs, 5)
    envs.close()
    assert found.success is None
    figures = result(found, Protocol(EnvironmentSpec("resting/Goal-v0"), 5, 0, None, None))
    assert figures["success_rate"] is figures["success_ci95"] is figures["success_rule"] is None
