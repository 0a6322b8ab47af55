import dataclasses
import json

import numpy as np
import pytest

import aaren_rl
from aaren_rl.agents import DecisionAgent, OnnxAgent
from aaren_rl.checkpoint import load_agent
from aaren_rl.data.environment_spec import EnvironmentSpec, Wrapper
from aaren_rl.errors import CheckpointError, DataError, InvalidInput
from aaren_rl.stepping.onnx import to_onnx

SMALL = {"updates": 12, "width": 16, "blocks": 1, "batch_size": 4, "log_every": 4, "warmup": 2, "progress": False}


@pytest.fixture
def data():
    rng = np.random.default_rng(0)

    def episode(steps):
        observations = rng.normal(size=(steps + 1, 3))
        return aaren_rl.Episode(observations, np.tanh(observations[:-1, :1]), rng.normal(size=steps), terminated=True)

    return aaren_rl.Trajectories.from_episodes(episode(steps) for steps in (9, 4, 12, 7, 5))


def weights(folder):
    return {name: tensor.numpy() for name, tensor in load_agent(folder)[0].state_dict().items()}


def test_own_arrays_without_an_environment(data, tmp_path, capsys):
    agent = aaren_rl.fit(data, folder=tmp_path / "run", **SMALL)
    assert isinstance(agent, DecisionAgent)
    assert (agent.card.environment, agent.card.source, agent.card.updates) == (None, "arrays", 12)
    assert agent.card.target_returns[0] == pytest.approx(data.returns.max())
    low, high = agent.action_space.bounds()
    assert (low, high) == (data.actions.min(), data.actions.max())
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["environment"], result["episodes"], result["updates"]) == (None, 0, 12)
    assert "mean" not in result
    assert capsys.readouterr().out == ""


def test_a_named_dataset_equals_the_command_line(surroundings, run_folder, tmp_path, monkeypatch):
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    settings = {"source": "bundled", "device": "cpu", "width": 16, "blocks": 1, "updates": 6, "batch_size": 4}
    settings |= {"episodes": 2, "check_episodes": 1, "evaluate_every": 3, "checkpoint_every": 3, "log_every": 1}
    aaren_rl.fit("hopper-medium", folder=tmp_path / "run", progress=False, **settings)
    ours, theirs = weights(tmp_path / "run" / "last"), weights(run_folder / "last")
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_callback_ends_the_run_and_resume_finishes_it(data, tmp_path):
    whole = aaren_rl.fit(data, folder=tmp_path / "whole", **SMALL)
    aaren_rl.fit(data, folder=tmp_path / "run", callbacks=[lambda update, metrics: update == 5], **SMALL)
    assert load_agent(tmp_path / "run" / "last")[1].updates == 5
    agent = aaren_rl.fit(data, folder=tmp_path / "run", resume=True, progress=False)
    assert agent.card == whole.card
    ours, theirs = weights(tmp_path / "run" / "last"), weights(tmp_path / "whole" / "last")
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_resume_takes_more_updates_and_other_data_are_refused(data, tmp_path):
    aaren_rl.fit(data, folder=tmp_path / "run", **SMALL)
    agent = aaren_rl.fit(data, folder=tmp_path / "run", resume=True, updates=15, progress=False)
    assert agent.card.updates == 15
    other = dataclasses.replace(data, rewards=data.rewards + 1)
    with pytest.raises(CheckpointError, match="data.sha256 differs: the data are not those"):
        aaren_rl.fit(other, folder=tmp_path / "run", resume=True, progress=False)
    with pytest.raises(CheckpointError, match="is missing"):
        aaren_rl.fit(data, folder=tmp_path / "none", resume=True, progress=False)
    with pytest.raises(InvalidInput, match="resume without a folder"):
        aaren_rl.fit(data, resume=True)
    with pytest.raises(InvalidInput, match="holds a run already"):
        aaren_rl.fit(data, folder=tmp_path / "run", **SMALL)


def test_command_line_says_how_a_run_on_arrays_goes_on(data, tmp_path, command):
    from aaren_rl.scripts.train import main

    aaren_rl.fit(data, folder=tmp_path / "run", **SMALL)
    status, _, errors = command(main, "--resume", tmp_path / "run")
    assert status == 2
    assert "go on with aaren_rl.fit(data, folder=" in errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"updats": 3}, "unknown setting 'updats'; did you mean 'updates'"),
        ({"env": "hopper-medium"}, "env is no setting of fit; use its argument data"),
        ({"env_id": "Hopper-v5"}, "use its argument environment"),
        ({"run": "here"}, "use its argument folder"),
        ({"seeds": 3}, "fit trains one agent"),
        ({"updates": 0}, "updates is 0; expected at least 1"),
        ({"updates": "many"}, "updates is 'many'"),
        ({"mixer": "aren"}, "did you mean 'aaren'"),
        ({"preset": "quik"}, "unknown preset 'quik'"),
        ({"environment": "Hoper-v5"}, "unknown environment 'Hoper-v5'.*once its package is imported, with --import"),
        ({"environment": object()}, "environment is a object; expected a Gymnasium id or an EnvironmentSpec"),
    ],
)
def test_mistakes_are_named(data, tmp_path, settings, message):
    with pytest.raises(InvalidInput, match=message):
        aaren_rl.fit(data, folder=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_data_that_do_not_fit_the_environment_are_refused(data, tmp_path):
    with pytest.raises(
        DataError,
        match=r"does not fit Hopper-v5: .* the environment \(11,\).*arguments of Hopper-v5",
    ):
        aaren_rl.fit(data, environment="Hopper-v5", folder=tmp_path / "run", **SMALL)
    wrapped = EnvironmentSpec("Hopper-v5", wrappers=(Wrapper("TimeAwareObservation"),))
    with pytest.raises(InvalidInput, match="has wrappers, which data by name bring along"):
        aaren_rl.fit("hopper-medium", environment=wrapped)


def test_load_gives_agents_and_exported_agents(data, tmp_path):
    agent = aaren_rl.fit(data, folder=tmp_path / "run", **SMALL)
    loaded = aaren_rl.load(tmp_path / "run" / "last", acting="reset:5")
    assert (type(loaded), str(loaded.acting)) == (DecisionAgent, "reset:5")
    to_onnx(agent.model, agent.card, tmp_path / "exported")
    exported = aaren_rl.load(str(tmp_path / "exported"))
    assert type(exported) is OnnxAgent
    for one in (agent, exported):
        one.reset(1.0)
    observation = np.ones(3, np.float32)
    np.testing.assert_allclose(exported.act(observation), agent.act(observation), atol=1e-5)
    with pytest.raises(CheckpointError, match=r"agent\.json is missing"):
        aaren_rl.load(tmp_path / "nowhere")


def test_a_taken_folder_is_refused_before_data_are_fetched(data, tmp_path, monkeypatch):
    from aaren_rl.envs import sources

    aaren_rl.fit(data, folder=tmp_path / "run", **SMALL)
    monkeypatch.setattr(sources, "load", None)
    with pytest.raises(InvalidInput, match="holds a run already; go on with it .*in Python resume=True"):
        aaren_rl.fit("hopper-medium", folder=tmp_path / "run", **SMALL)


def test_other_data_are_refused_with_what_to_pass():
    for data in (None, {"observations": np.zeros((3, 2))}, [1, 2]):
        with pytest.raises(InvalidInput, match=r"data is a \w+; expected .* Trajectories.from_episodes"):
            aaren_rl.fit(data)


def test_runs_without_a_folder_get_names_of_their_own(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(3):
        aaren_rl.fit(data, **{**SMALL, "updates": 1})
    assert len(list((tmp_path / "runs").iterdir())) == 3


def test_unknown_options_of_load_are_named(data, tmp_path):
    agent = aaren_rl.fit(data, folder=tmp_path / "run", **SMALL)
    with pytest.raises(InvalidInput, match="unknown option 'devise'; did you mean 'device'"):
        aaren_rl.load(tmp_path / "run" / "last", devise="cpu")
    assert dir(aaren_rl) == sorted(aaren_rl.__all__)
    assert agent.card.environment is None


def test_a_constant_action_away_from_zero_trains(tmp_path):
    rng = np.random.default_rng(0)
    data = aaren_rl.Trajectories.from_episodes(
        aaren_rl.Episode(rng.normal(size=(9, 2)), np.full((9, 1), 100.0), np.ones(9), truncated=True) for _ in range(3)
    )
    agent = aaren_rl.fit(data, folder=tmp_path / "run", **SMALL)
    agent.reset()
    assert agent.act(np.zeros(2)) == pytest.approx(100.0, rel=1e-5)


def test_a_warm_up_longer_than_the_run_is_said(data, tmp_path, capsys):
    aaren_rl.fit(data, folder=tmp_path / "run", **{**SMALL, "warmup": 1_000, "progress": True})
    assert "the learning rate rises over 1000 updates, and this run has 12" in capsys.readouterr().out
