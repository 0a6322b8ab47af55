import dataclasses
import json
from importlib.metadata import version

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from helpers import Steady

from aaren_rl.data.environment_spec import EnvironmentSpec, Wrapper
from aaren_rl.data.reference import Reference
from aaren_rl.envs import evaluation
from aaren_rl.envs.baselines import random_actor
from aaren_rl.envs.episodes import Episodes
from aaren_rl.envs.evaluation import Protocol, confidence_interval, evaluate, result, success_interval
from aaren_rl.errors import InvalidInput

HOPPER = EnvironmentSpec("Hopper-v5", {"terminate_when_unhealthy": False, "max_episode_steps": 20})
REFERENCE = Reference("a table", 10.0, 110.0)


def protocol(episodes=3, seed=7, target=None, reference=REFERENCE):
    return Protocol(HOPPER, episodes, seed, target, reference)


def episodes(returns):
    return Episodes(np.array(returns, dtype=np.float64), np.arange(1, len(returns) + 1))


def test_evaluation_depends_on_its_seed_alone():
    found = {
        run: evaluate(random_actor(HOPPER, seed=1), protocol(seed=seed)).returns.tolist()
        for run, seed in (("first", 7), ("again", 7), ("other", 8))
    }
    assert found["first"] == found["again"] != found["other"]
    assert len(found["first"]) == 3


def test_lengths_end_at_the_time_limit():
    assert evaluate(random_actor(HOPPER), protocol(episodes=5)).lengths.tolist() == [20] * 5


def test_result_holds_the_figures_and_the_protocol():
    figures = result(episodes([10, 60, 110, 20]), protocol(4, 7, 3600.0), source="bundled", checkpoint="last")
    assert json.loads(json.dumps(figures)) == figures
    assert figures["mean"] == 50
    assert figures["normalized_score"] == pytest.approx(40)
    assert figures["std"] == pytest.approx(np.std([10, 60, 110, 20]))
    assert figures["mean_length"] == 2.5
    assert figures["ci95"] == pytest.approx([bound - 10 for bound in figures["ci95_return"]])
    assert figures["ci95_return"][0] < 50 < figures["ci95_return"][1]
    assert (figures["episodes"], figures["seeds"], figures["target"]) == (4, [7, 8, 9, 10], 3600.0)
    assert (figures["environment"], figures["environment_kwargs"]) == ("Hopper-v5", HOPPER.kwargs)
    assert (figures["reference"], figures["source"], figures["checkpoint"]) == ("a table", "bundled", "last")
    assert (figures["returns"], figures["lengths"]) == ([10, 60, 110, 20], [1, 2, 3, 4])
    for name in ("torch", "gymnasium", "mujoco", "minari", "numpy"):
        assert figures["versions"][name] == version(name)


def test_no_reference_means_no_score():
    figures = result(episodes([1, 2]), protocol(2, reference=None))
    assert figures["normalized_score"] is figures["ci95"] is figures["reference"] is None
    assert figures["mean"] == 1.5


@pytest.mark.parametrize(("wanted", "rows"), [(1, 1), (24, 24), (25, 25), (100, 25)])
def test_seeds_are_one_per_row(wanted, rows):
    assert result(episodes([1, 2]), protocol(wanted, 3))["seeds"] == list(range(3, 3 + rows))


@pytest.mark.parametrize("count", [2, 5, 25, 100])
def test_interval_agrees_with_a_plain_bootstrap(count):
    returns = np.random.default_rng(count).gamma(2.0, 500.0, count)
    rng = np.random.default_rng(0)
    means = [returns[rng.integers(0, count, count)].mean() for _ in range(20_000)]
    low, high = confidence_interval(returns)
    np.testing.assert_allclose((low, high), np.percentile(means, (2.5, 97.5)), atol=0.05 * np.ptp(means))
    assert low < returns.mean() < high


def test_one_episode_has_no_interval_and_equal_ones_a_point():
    assert confidence_interval(np.array([4.0])) is None
    assert confidence_interval(np.full(9, 4.0)) == (4, 4)


def test_interval_is_the_same_for_the_same_seed():
    returns = np.random.default_rng(0).normal(size=20)
    assert confidence_interval(returns, 1) == confidence_interval(returns, 1) != confidence_interval(returns, 2)


def test_no_episodes_is_an_error():
    with pytest.raises(InvalidInput, match="0 episodes"):
        evaluate(random_actor(HOPPER), protocol(episodes=0))


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (0, 40), (7, 40), (40, 40), (50, 100), (1, 1)])
def test_success_interval_is_wilsons(successes, n):
    # Wilson's closed form, with the 97.5% quantile of the normal distribution.
    z, p = 1.959963984540054, successes / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    np.testing.assert_allclose(success_interval(successes, n), (centre - half, centre + half), atol=1e-9)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 4), (5, 4), (0, 0)])
def test_success_interval_of_impossible_counts(successes, n):
    with pytest.raises(InvalidInput, match=f"{successes} successes in {n} episodes"):
        success_interval(successes, n)


@pytest.mark.parametrize("wrapped", [(), (Wrapper("DelayObservation", {"delay": 1}),)], ids=["bare", "wrapped"])
def test_an_episode_without_an_end_is_an_error_that_names_the_horizon(wrapped, monkeypatch):
    monkeypatch.setattr(evaluation, "UNLIMITED", 300)
    monkeypatch.setitem(gym.registry, "tests/Endless-v0", EnvSpec("tests/Endless-v0", Steady))
    spec = EnvironmentSpec("tests/Endless-v0", wrappers=wrapped)
    actor = random_actor(spec)
    with pytest.raises(InvalidInput, match="not ended after 300 steps.*--horizon"):
        evaluation.evaluate(actor, Protocol(spec, 2, 0, None, None))
    limited = dataclasses.replace(spec, max_episode_steps=400)
    assert set(evaluation.evaluate(actor, Protocol(limited, 2, 0, None, None)).lengths) == {400}


def test_an_environment_that_limits_itself_has_a_later_guard(monkeypatch):
    class Limited(Steady):
        max_steps = 350

        def reset(self, **options):
            self.steps = 0
            return super().reset(**options)

        def step(self, action):
            self.steps += 1
            return *super().step(action)[:3], self.steps >= self.max_steps, {}

    monkeypatch.setattr(evaluation, "UNLIMITED", 300)
    monkeypatch.setitem(gym.registry, "tests/Limited-v0", EnvSpec("tests/Limited-v0", Limited))
    # The list of packages says so without an instance.
    monkeypatch.setattr(evaluation, "limits_itself", lambda spec: True)
    spec = EnvironmentSpec("tests/Limited-v0")
    protocol = Protocol(spec, 2, 0, None, None)
    figures = result(evaluate(actor := random_actor(spec), protocol), protocol)
    assert (figures["lengths"], figures["max_episode_steps"]) == ([350, 350], None)
    # One that says so and never ends is an error all the same.
    monkeypatch.setattr(evaluation, "LIMITS_ITSELF", 340)
    with pytest.raises(InvalidInput, match="not ended after 340 steps.*--horizon"):
        evaluate(actor, protocol)
