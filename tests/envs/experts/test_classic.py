import gymnasium as gym
import numpy as np
import pytest

from aaren_rl.envs.experts.tabular import DISCOUNT, _best_actions

RETURNS = [
    ("cartpole", "CartPole-v1", 500),
    ("mountaincar", "MountainCar-v0", -130),
    ("mountaincar", "MountainCarContinuous-v0", 88),
    ("pendulum", "Pendulum-v1", -400),
    ("acrobot", "Acrobot-v1", -150),
    ("tabular", "Taxi-v4", 3),
    ("tabular", "CliffWalking-v1", -13),
]


@pytest.mark.parametrize(("name", "env_id", "least"), RETURNS)
def test_controllers_solve_their_tasks(play, name, env_id, least):
    if env_id not in gym.registry:
        pytest.skip(f"this Gymnasium has no {env_id}")
    assert play(name, env_id, 10).returns.min() >= least


def test_pendulum_is_upright_in_the_end(play):
    # The usual return of a trained agent is some -150.
    assert play("pendulum", "Pendulum-v1", 20).returns.mean() > -200


def test_cartpole_mixture_has_the_mean_of_mixed_data(play):
    mixed = play("cartpole", "CartPole-v1", 300, mixture="mixed").returns
    # Shares of controllers with means of some 22, 198 and 500.
    assert mixed.mean() == pytest.approx(270, abs=35)
    assert 0.25 < (mixed == 500).mean() < 0.45
    assert 0.1 < (mixed < 60).mean() < 0.3


def test_best_actions_are_those_of_an_exhaustive_search():
    """FrozenLake without ice: the value of each state is the discounted way to the goal, by Floyd and Warshall."""
    from scipy.sparse.csgraph import shortest_path

    env = gym.make("FrozenLake-v1", is_slippery=False).unwrapped
    links = np.full((16, 16), np.inf)
    for state, actions in env.P.items():
        for [(_, following, _, _)] in actions.values():
            if following != state:
                links[state, following] = 1
    steps = shortest_path(np.where(np.isinf(links), 0, links))[:, 15]
    best = _best_actions(env.P)
    for state in range(15):
        if np.isfinite(steps[state]):
            [(_, following, _, _)] = env.P[state][int(best[state])]
            assert steps[following] == steps[state] - 1
    assert DISCOUNT < 1


def test_blackjack_loses_little(play):
    # Basic strategy without splits and doubles loses some 5 hundredths a game, random play some 40.
    assert play("blackjack", "Blackjack-v1", 4_000).returns.mean() > -0.1


def test_box2d_heuristics_play(play):
    pytest.importorskip("Box2D")
    assert play("lunarlander", "LunarLander-v3", 10).returns.mean() > 200
    assert play("lunarlander", "LunarLanderContinuous-v3", 10).returns.mean() > 200
    assert play("bipedalwalker", "BipedalWalker-v3", 10).returns.mean() > -60


@pytest.mark.parametrize("continuous", [True, False])
def test_racing_car_follows_the_track(play, continuous):
    pytest.importorskip("Box2D")
    # A car that leaves the track gains nothing more; random play has some -50.
    assert play("carracing", "CarRacing-v3", 1, {"continuous": continuous}, longest=250).returns.min() > 120
