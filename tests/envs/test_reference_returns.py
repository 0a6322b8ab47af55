import sys

import gymnasium as gym
import numpy as np
import pytest

from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.envs import references
from aaren_rl.envs.catalogue import find
from aaren_rl.envs.reference_returns import Returns, measure, to_toml
from aaren_rl.errors import InvalidInput
from aaren_rl.experiments.referencing import without_reference
from aaren_rl.scripts import references as script

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def returns(environment, random=(0.0, 1.0), behaviour=(4.0, 6.0)):
    return Returns("some-set", environment, "somebody", np.array(random), np.array(behaviour))


def test_returns_are_those_of_random_actions_and_of_the_expert():
    found = measure(find("pendulum-expert"), 3, 0)
    assert (len(found.random), len(found.behaviour)) == (3, 3)
    assert found.made_by == "scripted expert pendulum"
    assert -2_000 < found.random.mean() < found.behaviour.mean() < 0
    again = measure(find("pendulum-expert"), 3, 0)
    assert (again.random == found.random).all()
    assert (again.behaviour == found.behaviour).all()
    # Uniformly random actions of the environment's own space, here over many episodes of 200 steps.
    env = gym.make("Pendulum-v1")
    env.action_space.seed(0)
    totals = []
    for seed in range(20):
        env.reset(seed=seed)
        totals.append(sum(float(env.step(env.action_space.sample())[1]) for _ in range(200)))
    assert found.random.mean() == pytest.approx(np.mean(totals), abs=4 * np.std(totals) / np.sqrt(3))


def test_episodes_of_several_behaviours_are_measured_together():
    found = measure(find("hopper-medium-replay"), 14, 0)
    assert len(found.behaviour) == 14
    assert found.random.mean() < found.behaviour.mean()


def test_rows_are_read_as_a_table(monkeypatch):
    environment = EnvironmentSpec("Pendulum-v1", {"g": 9.0}, 150)
    rows = tomllib.loads(to_toml([returns(environment)]))
    table = references._table("experts")
    monkeypatch.setattr(references, "_table", lambda name: {**table, **rows} if name == "experts" else {"returns": {}})
    (row,) = references._experts()
    assert row.environment == environment
    assert row.package == "gymnasium"
    assert (row.reference.random, row.reference.expert) == (0.5, 5.0)
    assert "2 episodes each" in row.source


def test_no_score_is_held_against_what_is_no_better_than_random_actions():
    with pytest.raises(InvalidInput, match="some-set: somebody returns 0.5 on average, random actions 0.5"):
        to_toml([returns(EnvironmentSpec("Pendulum-v1"), behaviour=(0.0, 1.0))])


def test_environments_that_a_table_has_are_not_measured_unasked():
    names = {entry.name for entry in without_reference()}
    assert not names & {"hopper-medium", "cartpole-expert", "pendulum-expert", "pointmaze-stitch", "pointmaze-medium"}
    assert "babyai-boss-level" in names
    assert not any(name.endswith("-fullobs") for name in names)


def test_what_no_table_can_hold_is_not_measured():
    with pytest.raises(InvalidInput, match="pointmaze-stitch is collected otherwise than it is evaluated"):
        measure(find("pointmaze-stitch"), 1, 0)
    with pytest.raises(InvalidInput, match="in a wrapped environment"):
        measure(find("babyai-boss-level-fullobs"), 1, 0)


def test_command(command, tmp_path):
    status, out, _ = command(script.main, "pendulum-expert", "--episodes", "2", "--out", "rows.toml")
    assert status == 0
    assert "pendulum-expert: random -" in out
    (row,) = tomllib.loads((tmp_path / "rows.toml").read_text())["environments"]
    assert (row["id"], row["episodes"]) == ("Pendulum-v1", 2)
    status, _, errors = command(script.main, "pendulum-exprt")
    assert status == 2
    assert "did you mean 'pendulum-expert'" in errors


def test_a_data_set_that_nothing_here_makes_is_refused(command):
    status, _, errors = command(script.main, "ant-medium", "--episodes", "1")
    assert status == 2
    assert "no behaviour is bundled for ant-medium" in errors
