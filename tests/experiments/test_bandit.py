import json

import numpy as np
import pytest

from aaren_rl.experiments.comparison.bandit import _score_of_the_rest, chosen_scores


def test_every_agent_is_tried_before_one_is_tried_again():
    returns = [np.full(3, value) for value in (0.0, 1.0, 2.0)]
    found = chosen_scores(returns, [0.0, 10.0, 20.0], 3, trials=4_000)
    # Without noise the best of those tried is known: the mean over all orders of the best of one, of two, of three.
    assert found == pytest.approx([10.0, (10 + 20 + 20) / 3, 20.0], abs=0.5)


def test_more_episodes_find_the_better_agent_more_often():
    rng = np.random.default_rng(0)
    returns = [rng.normal(mean, 1.0, 200) for mean in (0.0, 0.5)]
    found = chosen_scores(returns, [0.0, 1.0], 200, trials=500)
    assert found[0] == pytest.approx(0.5, abs=0.1)
    assert found[1] < found[20] < found[199]
    assert found[199] > 0.9
    assert (found == chosen_scores(returns, [0.0, 1.0], 200, trials=500)).all()


def test_equal_returns_choose_at_random():
    found = chosen_scores([np.ones(5), np.ones(5)], [0.0, 1.0], 6, trials=4_000)
    assert found == pytest.approx([0.5] * 6, abs=0.05)


def test_units_of_the_returns_do_not_matter():
    rng = np.random.default_rng(1)
    returns = [rng.normal(mean, 1.0, 50) for mean in (0.0, 0.3, 0.6)]
    scores = [0.0, 1.0, 2.0]
    scaled = [1000 * one - 7 for one in returns]
    assert chosen_scores(scaled, scores, 30, 200) == pytest.approx(chosen_scores(returns, scores, 30, 200))


def test_half_of_the_episodes_score(trained):
    result = json.loads((trained[1] / "result.json").read_text())
    rest = np.mean(result["returns"][1::2])
    assert _score_of_the_rest(result) == pytest.approx(100 * (rest + 20.272305) / (3234.3 + 20.272305), abs=0.01)
