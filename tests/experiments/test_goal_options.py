import dataclasses

import pytest

from aaren_rl.data.hindsight import Hindsight
from aaren_rl.envs.goals import Goals
from aaren_rl.errors import InvalidInput
from aaren_rl.experiments import config as run_config
from aaren_rl.experiments.config import CONFIG, GOALS, RunConfig, parse, reading


def test_goals_stay_as_they_are_by_default():
    assert reading(RunConfig()).goals is None
    assert set(GOALS) <= set(run_config.DATA)


def test_the_command_line_says_how_goals_are_drawn(tmp_path):
    words = "--goals hindsight --relabel 0.5 --goal-draws future=0.5 geometric:0.9=0.5 --goal-distance 0.4"
    config = parse([*words.split(), "--goal-columns", "0", "1"])
    expected = Goals(Hindsight(0.5, 0.5, 0.5, 0.0, 0.9), 0.4, (0, 1))
    assert reading(config).goals == expected
    run_config.save(config, tmp_path / CONFIG)
    assert reading(run_config.load(tmp_path / CONFIG)).goals == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"goal_distance": 1.0}, "goal_distance is for hindsight relabelling; pass --goals hindsight"),
        ({"goal_columns": (0,)}, "goal_columns is for hindsight relabelling"),
        ({"relabel": 0.5}, "relabel or goal_draws is for hindsight relabelling"),
        ({"goals": "hindsight", "goal_draws": ("future=0.5",)}, "expected shares that sum to 1"),
        ({"goals": "hindsight", "goal_draws": ("futur=1",)}, "future"),
        ({"goals": "hindsight", "relabel": 2.0}, "share is 2.0"),
    ],
)
def test_goal_options_that_do_not_fit(settings, message):
    with pytest.raises(InvalidInput, match=message):
        dataclasses.replace(RunConfig(), **settings)


def test_unknown_goals(capsys):
    with pytest.raises(SystemExit):
        parse(["--goals", "foresight"])
    assert "foresight" in capsys.readouterr().err
