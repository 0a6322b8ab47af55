import dataclasses
import json
import os
import re
import shutil
import signal
import sys

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from aaren_rl.agents import DecisionAgent
from aaren_rl.agents.explorer import Explorer
from aaren_rl.checkpoint import AgentCard, weights_digest
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.spaces import Box, DiscreteSpace
from aaren_rl.data.trajectories import Episode, Trajectories
from aaren_rl.envs.environments import make_vector
from aaren_rl.envs.evaluation import Protocol, evaluate
from aaren_rl.envs.rollout import roll_out
from aaren_rl.errors import InvalidInput
from aaren_rl.experiments import finetuning
from aaren_rl.experiments.config import RunConfig
from aaren_rl.experiments.finetuning_options import Options, check_run
from aaren_rl.experiments.online_buffer import EPISODES, Buffer
from aaren_rl.model import DecisionModel, ModelConfig, Scaling
from aaren_rl.scripts.finetune import main
from aaren_rl.training.config import TrainingConfig
from aaren_rl.training.learner import SingleLearner

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHORT = [
    *("--steps", "60", "--round-episodes", "2", "--round-updates", "3"),
    *("--buffer", "4", "--episodes", "3"),
]


def test_a_run_goes_on_in_its_environment(command, run_folder, tmp_path):
    before = DecisionAgent.load(run_folder / "last")
    status, out, errors = command(main, run_folder / "last", *SHORT, "--out", "online")
    assert status == 0, errors
    assert "exploring: the agent adds noise of 0.1 to its actions" in out
    assert "--target" not in out
    found = json.loads((tmp_path / "online" / "result.json").read_text())
    assert found["weights_sha256"] == weights_digest(tmp_path / "online" / "last")
    assert found["acting"] == "stream"
    assert found["online_steps"] >= 60
    assert found["updates"] == 6 + 3 * found["online_rounds"]
    assert found["before"]["updates"] == 6
    protocol = Protocol(EnvironmentSpec("Hopper-v5"), 3, 0, found["target"], None)
    np.testing.assert_allclose(found["before"]["returns"], evaluate(before, protocol).returns, atol=2e-3)
    after = DecisionAgent.load(tmp_path / "online" / "last")
    assert after.card.updates == found["updates"]
    np.testing.assert_allclose(found["returns"], evaluate(after, protocol).returns, atol=2e-3)
    points = [json.loads(line) for line in (tmp_path / "online" / "metrics.jsonl").read_text().splitlines()]
    assert [point["update"] for point in points] == [9 + 3 * number for number in range(found["online_rounds"])]
    assert points[-1]["online/steps"] == found["online_steps"]
    changed = [
        name
        for name, weight in after.model.state_dict().items()
        if not torch.equal(weight, before.model.state_dict()[name])
    ]
    assert "head.linear.weight" in changed
    # The offline run is as it was.
    np.testing.assert_array_equal(
        before.model.head.linear.weight.detach(),
        DecisionAgent.load(run_folder / "last").model.head.linear.weight.detach(),
    )


def test_the_folder_of_the_run_will_do_and_agents_that_sample_sample(command, tiny, tmp_path):
    from aaren_rl.scripts.train import main as train

    status, _, errors = command(train, *tiny, "--head", "gaussian", "--run", "run")
    assert status == 0, errors
    status, out, errors = command(main, "run", *SHORT)
    assert status == 0, errors
    assert "exploring: the agent samples its actions" in out
    assert (tmp_path / "run-online" / "last" / "model.safetensors").exists()


def test_what_cannot_go_on_is_refused(command, run_folder, tmp_path):
    shutil.copytree(run_folder / "last", tmp_path / "alone" / "agent")
    for agent in (tmp_path / "alone" / "agent", run_folder / "best"):
        status, _, errors = command(main, agent)
        assert status == 2
        assert "is neither a run, with its config.toml, nor the last agent in one" in errors
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "note.txt").write_text("mine")
    status, _, errors = command(main, run_folder, "--out", "taken")
    assert status == 2
    assert "taken is there already" in errors
    shutil.rmtree(run_folder / "checkpoints")
    status, _, errors = command(main, run_folder, "--out", "online")
    assert status == 2
    assert "has no checkpoint to resume from" in errors
    assert not (tmp_path / "online").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": 2}, "has several seeds; give the folder of one"),
        ({"env": "arrays"}, "was trained on arrays, which are not saved"),
        ({"goals": "hindsight"}, "trained with hindsight goals"),
        ({"model": ModelConfig(return_to_go=False)}, "trained without returns"),
        ({"training": TrainingConfig(context="carry:5")}, "--context carry:5, which carries a state"),
    ],
)
def test_runs_that_cannot_go_on_are_refused(changes, said, tmp_path):
    with pytest.raises(InvalidInput, match=said):
        check_run(RunConfig(**changes), tmp_path)


@pytest.mark.parametrize("whole", [0, 1])
def test_ctrl_c_says_what_is_kept(command, run_folder, tmp_path, monkeypatch, whole):
    rounds = []

    def stopped(*arguments, record=False, **options):
        rounds.extend([1] * record)
        if len(rounds) > whole:
            raise KeyboardInterrupt
        return evaluate(*arguments, record=record, **options)

    monkeypatch.setattr(finetuning, "evaluate", stopped)
    status, _, errors = command(main, run_folder, *SHORT, "--steps", "1000", "--out", "online")
    assert status == 130
    if not whole:
        assert "nothing was learned, and online is removed" in errors
        assert not (tmp_path / "online").exists()
        return
    assert "the agent after 1 rounds (" in errors
    assert "or go on with scripts/finetune.py --resume online" in errors
    assert DecisionAgent.load(tmp_path / "online" / "last").card.updates == 9
    found = json.loads((tmp_path / "online" / "result.json").read_text())
    assert found["stopped"]
    assert found["before"]["episodes"] == 3
    assert found["options"]["learning_rate"] == pytest.approx(1e-4)


def test_dropout_stays_on_without_an_average(command, tiny, tmp_path, monkeypatch):
    from aaren_rl.scripts.train import main as train

    status, _, errors = command(train, *tiny, "--average", "0", "--dropout", "0.1", "--run", "run")
    assert status == 0, errors
    modes = []
    update = SingleLearner.update

    def watched(self):
        modes.append(self.model.training)
        return update(self)

    monkeypatch.setattr(SingleLearner, "update", watched)
    status, _, errors = command(main, "run", *SHORT)
    assert status == 0, errors
    assert modes
    assert all(modes)


@pytest.mark.parametrize("field", ["steps", "round_episodes", "round_updates", "buffer", "episodes"])
def test_options_below_one_are_refused(field):
    with pytest.raises(InvalidInput, match=f"{field} is 0; expected at least 1"):
        Options(**{field: 0})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seed": -1}, "seed is -1; expected at least 0"),
        ({"noise": float("nan")}, "noise is nan; expected a number from 0 on"),
        ({"explore": float("inf")}, "explore is inf; expected a return"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; expected a positive number"),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(InvalidInput, match=said):
        Options(**options)


def trajectories(lengths, value, seed=0):
    rng = np.random.default_rng(seed)
    steps = sum(lengths)
    ends = np.zeros(len(lengths), dtype=bool)
    return Trajectories(
        np.full((steps, 2), value),
        rng.uniform(-1, 1, (steps, 1)),
        rng.normal(size=steps),
        np.concatenate([[0], np.cumsum(lengths)]),
        ends,
        ~ends,
    )


def test_other_data_leave_weights_moments_and_draws_as_they_are():
    torch.manual_seed(0)
    spaces = Box.unbounded((2,)), Box.bounded([-1.0], [1.0])
    model = DecisionModel(ModelConfig(width=8, blocks=1), *spaces, Scaling.identity(spaces[0]))
    learner = SingleLearner(model, trajectories((9, 7, 5), 1.0), TrainingConfig(updates=9, batch_size=4, context=3))
    for _ in range(3):
        learner.update()
    before, drawn = learner.state_dict(), learner.sampler.generator.get_state()
    learner.take(trajectories((4, 6), 2.0))
    after = learner.state_dict()
    assert set(before) == set(after)
    for name, value in before.items():
        assert torch.equal(value, after[name]), name
    assert torch.equal(learner.sampler.generator.get_state(), drawn)
    segment = learner.sampler.sample()
    assert (segment.observations[segment.valid] == 2.0).all()
    learner.update()
    steps = [value for name, value in learner.state_dict().items() if name.endswith(".step")]
    assert {float(step) for step in steps} == {4.0}


def test_data_of_a_carried_state_stay():
    spaces = Box.unbounded((2,)), Box.bounded([-1.0], [1.0])
    model = DecisionModel(ModelConfig(width=8, blocks=1), *spaces, Scaling.identity(spaces[0]))
    config = TrainingConfig(updates=9, batch_size=2, context="carry:3", held_out=0)
    learner = SingleLearner(model, trajectories((9, 7, 5), 1.0), config)
    with pytest.raises(InvalidInput, match="those that carry a state, belong to the data before"):
        learner.take(trajectories((4, 6), 2.0))


def test_the_best_episodes_come_last():
    data = trajectories((2, 3, 4, 1), 0.0, seed=3)
    assert Buffer(data, 3, "newest").trajectories.returns.tolist() == sorted(data.returns)[1:]
    assert Buffer(data, None, "best").trajectories.returns.tolist() == sorted(data.returns)


@pytest.mark.parametrize("most", [None, 3, 100])
@pytest.mark.parametrize("keep", ["newest", "best"])
def test_a_buffer_keeps_what_it_says_and_is_read_back(tmp_path, most, keep):
    """Against lists of returns, sorted by hand; the files of episodes that are gone go."""
    buffer = Buffer(trajectories((2, 3, 4, 1), 0.0, seed=3), most, keep)
    expected = sorted(trajectories((2, 3, 4, 1), 0.0, seed=3).returns)[-(most or 99) :]
    for number in range(4):
        new = trajectories((5, 2), float(number), seed=10 + number)
        buffer.take(new)
        expected = [*expected, *new.returns]
        expected = (sorted(expected) if keep == "best" else expected)[-(most or 99) :]
        assert buffer.trajectories.returns.tolist() == expected
        saved = json.loads(json.dumps(buffer.save(tmp_path)))
        buffer.drop_files(tmp_path)
        read = Buffer(trajectories((2, 3, 4, 1), 0.0, seed=3), most, keep)
        read.restore(tmp_path, saved)
        assert read.recorded == 2 * (number + 1)
        assert read.trajectories.sha256 == buffer.trajectories.sha256
        # Goes on as the one that was saved.
        buffer = read
    values = set(np.unique(buffer.trajectories.observations))
    assert len(list((tmp_path / EPISODES).iterdir())) == sum(number in values for number in range(1, 4)) + any(
        file["first"] == 4 for file in saved["files"]
    )


def test_images_parts_and_choices_are_read_back(tmp_path):
    rng = np.random.default_rng(0)

    def episodes():
        seen = {"camera": rng.integers(0, 255, (5, 8, 8, 3), dtype=np.uint8), "speed": rng.normal(size=(5, 2))}
        return [Episode(seen, rng.integers(0, 3, 4), rng.normal(size=4), terminated=True) for _ in range(2)]

    offline = Trajectories.from_episodes(episodes())
    spaces = offline.observation_space, DiscreteSpace((), (3,), (0,))
    buffer, read = (Buffer(dataclasses.replace(offline, action_space=spaces[1]), None, "newest") for _ in range(2))
    buffer.take(Trajectories.from_episodes(episodes(), *spaces))
    read.restore(tmp_path, buffer.save(tmp_path))
    assert read.trajectories.sha256 == buffer.trajectories.sha256
    assert read.trajectories.observations["camera"].dtype == np.uint8


def resumed(command, folder, *options):
    status, out, errors = command(main, "--resume", folder, *options)
    assert status == 0, errors
    return out


@pytest.mark.parametrize("way", [[], ["--keep", "best", "--buffer", "3"]])
def test_a_resumed_fine_tuning_equals_one_that_ran_through(command, run_folder, tmp_path, way, monkeypatch):
    """On one thread: weights, metrics, episodes and results, in three parts, of which Ctrl-C ends the second."""
    torch.set_num_threads(1)
    for name, steps in (("whole", 150), ("parts", 30)):
        status, _, errors = command(main, run_folder, *SHORT, *way, "--steps", steps, "--out", name)
        assert status == 0, errors
    with monkeypatch.context() as patch:
        plays = []

        def stopped(*arguments, record=False, **options):
            plays.append(record)
            if plays.count(True) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return evaluate(*arguments, record=record, **options)

        patch.setattr(finetuning, "evaluate", stopped)
        status, _, errors = command(main, "--resume", "parts", "--steps", "150")
    assert status == 130
    assert plays == [True, True]
    # The settings are those of the second part.
    out = resumed(command, "parts")
    assert re.search(r"going on after round \d+ \(\d+ steps\) of parts", out)
    assert "edited" not in out
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for name in ("last/model.safetensors", "checkpoint/training.safetensors", "metrics.jsonl"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes(), name
    files = [sorted((folder / EPISODES).iterdir()) for folder in (whole, parts)]
    whole_names, names = ([path.name for path in each] for each in files)
    assert names == whole_names
    assert all(ours.read_bytes() == theirs.read_bytes() for ours, theirs in zip(*files, strict=True))
    ours, theirs = (json.loads((folder / "result.json").read_text()) for folder in (parts, whole))
    assert ours == theirs
    assert ours["online_rounds"] >= 3


def test_a_finished_fine_tuning_says_so_and_an_edited_one_too(command, run_folder, tmp_path):
    status, _, errors = command(main, run_folder, *SHORT, "--out", "online")
    assert status == 0, errors
    status, _, errors = command(main, "--resume", "online")
    assert status == 2
    assert "online is finished: all of" in errors
    assert "pass more --steps" in errors
    # Without the evaluation it is not.
    (tmp_path / "online" / "result.json").unlink()
    shutil.rmtree(tmp_path / "online" / "last")
    resumed(command, "online")
    assert json.loads((tmp_path / "online" / "result.json").read_text())["before"]["updates"] == 6
    assert DecisionAgent.load(tmp_path / "online" / "last").card.updates > 6
    config = tmp_path / "online" / "config.toml"
    # A file does not say what is imported.
    edited = config.read_text().replace("round_updates = 3", "round_updates = 1")
    config.write_text(edited.replace("imports = []", 'imports = ["nowhere"]'))
    assert config.read_text().count("nowhere") == 2
    more = json.loads((tmp_path / "online" / "result.json").read_text())["online_steps"] + 1
    out = resumed(command, "online", "--steps", more)
    assert "config.toml was edited since it was written; its settings count as they stand now" in out
    points = [json.loads(line)["update"] for line in (tmp_path / "online" / "metrics.jsonl").read_text().splitlines()]
    assert points[-1] - points[-2] == 1
    saved = tomllib.loads(config.read_text())["finetuning"]
    assert (saved["steps"], saved["round_updates"], saved["buffer"], saved["episodes"]) == (more, 1, 4, 3)


def test_what_is_damaged_is_named(command, run_folder, tmp_path):
    status, _, errors = command(main, run_folder, *SHORT, "--out", "online")
    assert status == 0, errors
    (tmp_path / "online" / "result.json").unlink()
    (episodes, *_) = sorted((tmp_path / "online" / EPISODES).iterdir())
    state, tensors = (tmp_path / "online" / "checkpoint" / f"training.{kind}" for kind in ("json", "safetensors"))
    for path, said in (
        (episodes, "is not the file that was saved"),
        (tensors, "is not the file that was saved"),
        (state, "training.json is not as it was saved, and a fine-tuning keeps no earlier checkpoint"),
    ):
        content = path.read_bytes()
        place = content.index(b'"rounds": ') + 10 if path == state else len(content) - 3
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        status, _, errors = command(main, "--resume", "online")
        assert status == 2
        assert path.name in errors
        assert said in errors
        path.write_bytes(content)
    episodes.unlink()
    status, _, errors = command(main, "--resume", "online")
    assert (status, "is missing; the folder is incomplete" in errors) == (2, True)
    shutil.rmtree(state.parent)
    status, _, errors = command(main, "--resume", "online")
    assert (status, "online has no whole round to go on from" in errors) == (2, True)


def test_runs_and_fine_tunings_are_told_apart(command, run_folder, tmp_path):
    from aaren_rl.scripts.train import main as train

    status, _, errors = command(main, run_folder, *SHORT, "--out", "online")
    assert status == 0, errors
    for program, words in ((main, ["online"]), (main, ["online/last"]), (train, ["--resume", "online"])):
        status, _, errors = command(program, *words)
        assert status == 2
        assert "online is a fine-tuning; go on with it by scripts/finetune.py --resume" in errors
    for words, said in (
        (["--resume", run_folder], "is no fine-tuning, its config.toml has no [finetuning]"),
        (["--resume", "nowhere"], "is missing; expected the folder of a run"),
        (["--resume", "online", "--out", "other"], "leave out the agent and --out"),
        ([run_folder, "--resume", "online"], "leave out the agent and --out"),
        ([], "give the folder of a run, as runs/RUN, or --resume"),
        ([run_folder, "--out", "online"], "online is there already; go on with it (--resume online)"),
    ):
        status, _, errors = command(main, *words)
        assert status == 2
        assert said in errors


def test_other_data_are_noticed(command, run_folder, tmp_path):
    status, _, errors = command(main, run_folder, *SHORT, "--out", "online")
    assert status == 0, errors
    config = tmp_path / "online" / "config.toml"
    config.write_text(config.read_text().replace("keep_best = 1.0", "keep_best = 0.5"))
    status, _, errors = command(main, "--resume", "online", "--steps", "1000")
    assert status == 2
    assert "the data are not those that online began with" in errors


def make_agent(actions):
    torch.manual_seed(0)
    spaces = Box.unbounded((3,)), actions
    model = DecisionModel(ModelConfig(width=8, blocks=1), *spaces, Scaling.identity(spaces[0]))
    return DecisionAgent(model, AgentCard(EnvironmentSpec("Pendulum-v1"), "mine", "arrays", (-100.0,)))


def test_an_explorer_does_what_the_agent_learns_of():
    agent = make_agent(Box.bounded([-2.0], [2.0]))
    envs = make_vector(EnvironmentSpec("Pendulum-v1", max_episode_steps=20), 3)
    seen = []
    act = agent.act

    def watched(*arguments, executed_action=None):
        seen.append(executed_action)
        return act(*arguments, executed_action=executed_action)

    agent.act = watched
    found = roll_out(Explorer(agent, 0.3, seed=1), envs, 3, -100.0, 0, record=True)
    envs.close()
    done = np.stack([episode.actions for episode in found.recorded], 1)  # (steps, rows, 1)
    assert seen[0] is None
    np.testing.assert_array_equal(np.stack(seen[1:]), done[: len(seen) - 1])
    assert np.abs(done).max() <= 2.0
    quiet = roll_out(
        make_agent(Box.bounded([-2.0], [2.0])),
        make_vector(EnvironmentSpec("Pendulum-v1"), 1),
        1,
        -100.0,
        0,
        record=True,
    )
    assert np.abs(done[:5, 0] - quiet.recorded[0].actions[:5]).max() > 0.05


def test_an_explorer_without_noise_is_the_agent():
    explorer, agent = Explorer(make_agent(Box.bounded([-2.0], [2.0])), 0.0, 0), make_agent(Box.bounded([-2.0], [2.0]))
    for actor in (explorer, agent):
        actor.reset(-100.0, 2, AutoresetMode.NEXT_STEP)
    none = np.zeros(2, dtype=bool)
    for step in range(6):
        observation, reward = np.full((2, 3), step / 5), None if step == 0 else np.full(2, -1.0)
        ours = explorer.act(observation, reward, none, none)
        np.testing.assert_allclose(ours, agent.act(observation, reward, none, none), atol=1e-6)


def test_noise_on_whole_numbers_goes_both_ways():
    explorer = Explorer(make_agent(Box.bounded([0], [10], dtype="int64")), 0.1, 0)
    explorer.agent.act = lambda *arguments, **options: np.full((500, 1), 5)
    done = explorer.act(np.zeros((500, 3)), None, None, None)
    assert done.dtype.kind == "i"
    assert abs(done.mean() - 5) < 0.15
    assert {4, 5, 6} <= set(done.flatten().tolist())


def test_noise_that_fits_no_action_is_refused():
    with pytest.raises(InvalidInput, match="noise is for actions that are vectors"):
        Explorer(make_agent(DiscreteSpace((), (3,), (0,))), 0.1, 0)
    with pytest.raises(InvalidInput, match="noise is -1; expected a number from 0 on"):
        Explorer(make_agent(Box.bounded([-2.0], [2.0])), -1, 0)
