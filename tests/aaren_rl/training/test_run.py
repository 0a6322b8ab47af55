import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_training
import torch
from helpers import assert_same
from safetensors.torch import load_file, save_file
from tiny_training import checkpoints, logged, make_data, make_run, train, weights

from aaren_rl.checkpoint import digest, load_agent
from aaren_rl.errors import AarenError, CheckpointError, InvalidInput
from aaren_rl.training.log import read_metrics
from aaren_rl.training.run import Diverged, Interrupted

SCRIPT = Path(tiny_training.__file__)
LONG = 120


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The folder of a run of LONG updates that nothing disturbed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(folder, updates=LONG, **tiny_training.LONG)
    return folder


def size_of(model):
    """A made-up return that depends on all weights."""
    return {"return": sum(parameter.detach().abs().sum().item() for parameter in model.parameters())}


def assert_same_runs(ours, theirs, updates=20):
    """Equal agents, checkpoints and metrics, bit for bit."""
    assert_same("last", weights(ours / "last"), weights(theirs / "last"))
    for name in ("model.safetensors", "training.safetensors"):
        newest = Path("checkpoints") / f"{updates:09d}" / name
        # Moments, the state of the sampler and of the generator of dropout are in these files too.
        assert (ours / newest).read_bytes() == (theirs / newest).read_bytes(), name
    for name in ("train/loss", "train/gradient_norm", "validation/loss", "evaluation/return"):
        assert logged(ours, name) == logged(theirs, name), name


MODELS = [
    ({"layout": "interleaved"}, 0.0),
    ({"layout": "fused"}, 0.9),
    ({"mixer": "softmax"}, 0.0),
    ({"mixer": "gru"}, 0.9),
    ({"mixer": "none"}, 0.0),
]


@pytest.mark.parametrize(
    ("shape", "average", "context"),
    [
        (shape, average, context)
        for shape, average in MODELS
        for context in (5, "2+5", "episode", "packed", "carry:5")
        # A state that grows is not carried (test_learner.py).
        if (shape.get("mixer"), context) != ("softmax", "carry:5")
    ],
)
def test_resuming_equals_never_having_stopped(tmp_path, shape, average, context):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    schedule = {"shape": shape, "average": average, "context": context}
    train(whole, **schedule)
    train(parts, **schedule, updates=10)
    torch.manual_seed(1234)
    # Other weights and another random state, all of which the checkpoint must replace.
    resumed = make_run(parts, model_seed=99, **schedule)
    resumed.restore()
    assert resumed.learner.updates == 10
    resumed.run(progress=False)
    assert_same_runs(parts, whole)
    assert set(logged(parts, "train/loss")) == {5, 10, 15, 20}


def interrupt(folder, number, times=1):
    """Starts the run in another process and sends it signals once it has saved a checkpoint."""
    process = subprocess.Popen([sys.executable, str(SCRIPT), str(folder), str(LONG)])
    try:
        deadline = time.monotonic() + 60
        while not (folder / "checkpoints").exists() or not checkpoints(folder):
            assert time.monotonic() < deadline, "no checkpoint appeared"
            assert process.poll() is None, "the run ended before it could be interrupted"
            time.sleep(0.005)
        for _ in range(times):
            process.send_signal(number)
            time.sleep(0.01)
        return process.wait(60)
    finally:
        process.kill()
        process.wait()


def assert_resumes_to(folder, uninterrupted):
    resumed = make_run(folder, model_seed=99, updates=LONG, **tiny_training.LONG)
    resumed.restore()
    assert 0 < resumed.learner.updates < LONG
    resumed.run(progress=False)
    assert_same("last", weights(folder / "last"), weights(uninterrupted / "last"))
    # Points logged after the last checkpoint were dropped, and none is missing or doubled.
    assert [p["update"] for p in read_metrics(folder)] == [p["update"] for p in read_metrics(uninterrupted)]
    assert logged(folder, "train/loss").keys() == logged(uninterrupted, "train/loss").keys()


@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path, uninterrupted, times):
    # A second signal may come when the run is over and handles none any more.
    assert interrupt(tmp_path, signal.SIGINT, times) in ({3} if times == 1 else {3, -signal.SIGINT})
    assert not (tmp_path / "last").exists()
    assert_resumes_to(tmp_path, uninterrupted)


def test_a_killed_run_resumes_to_the_same_weights(tmp_path, uninterrupted):
    assert interrupt(tmp_path, signal.SIGKILL) == -signal.SIGKILL
    assert_resumes_to(tmp_path, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_update(tmp_path, number):
    def evaluate(model):
        os.kill(os.getpid(), number)
        return {"return": 1.0}

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="stopped after update 10"):
        train(tmp_path, evaluate=evaluate)
    # The newest two: a damaged one costs little.
    assert checkpoints(tmp_path) == [5, 10]
    # The old handler comes back.
    assert signal.getsignal(number) == before


def test_a_signal_between_checkpoints_saves_one(tmp_path):
    def stop(update, metrics):
        if update == 7:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="stopped after update 7"):
        train(tmp_path, callbacks=[stop])
    assert checkpoints(tmp_path) == [5, 7]
    resumed = make_run(tmp_path, model_seed=99)
    resumed.restore()
    resumed.run(progress=False)
    train(tmp_path / "whole")
    assert_same("last", weights(tmp_path / "last"), weights(tmp_path / "whole" / "last"))


def test_best_is_the_agent_that_evaluated_best(tmp_path):
    returns = {10: 5.0, 20: 9.0, 30: 7.0, 40: 9.0}
    seen = {}

    def evaluate(model):
        assert not model.training
        update = 10 * (len(seen) + 1)
        seen[update] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        return {"return": returns[update], "normalized_score": returns[update] / 10}

    trained = train(tmp_path, updates=40, evaluate=evaluate)
    assert trained.best_update == 20
    assert (trained.last, trained.best) == (tmp_path / "last", tmp_path / "best")
    assert_same("best", weights(trained.best), seen[20])
    assert_same("last", weights(trained.last), seen[40])
    assert load_agent(trained.best)[1].updates == 20
    assert load_agent(trained.last)[1].updates == 40
    # All but the best and the newest checkpoint are dropped.
    assert checkpoints(tmp_path) == [20, 40]
    assert logged(tmp_path, "evaluation/return") == returns
    assert logged(tmp_path, "evaluation/normalized_score")[20] == 0.9
    assert json.loads((tmp_path / "evaluations.json").read_text()) == {
        "updates": 40,
        "best": [[20, 9.0]],
        "failed": [[]],
    }


def test_a_better_agent_replaces_the_checkpoint_of_the_best(tmp_path):
    returns = iter([1.0, 2.0])
    assert train(tmp_path, evaluate=lambda model: {"return": next(returns)}).best_update == 20
    assert checkpoints(tmp_path) == [20]


def test_without_an_evaluation_there_is_no_best(tmp_path):
    trained = train(tmp_path)
    assert (trained.best, trained.best_update) == (None, None)
    assert not (tmp_path / "best").exists()
    assert checkpoints(tmp_path) == [20]
    assert trained.seconds > 0


def test_the_best_so_far_survives_a_resume(tmp_path):
    train(tmp_path, updates=10, evaluate=lambda model: {"return": 5.0})
    resumed = make_run(tmp_path, evaluate=lambda model: {"return": 4.0})
    resumed.restore()
    (trained,) = resumed.run(progress=False)
    assert trained.best_update == 10
    assert load_agent(trained.best)[1].updates == 10


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_an_evaluation_leaves_training_as_it_was(tmp_path, average):
    """It may switch the model to evaluation mode, as agents do; dropout has to be back for the next update."""

    def evaluate(model):
        model.eval()
        return size_of(model)

    train(tmp_path / "evaluated", average=average, evaluate=evaluate)
    train(tmp_path / "plain", average=average)
    assert_same("last", weights(tmp_path / "evaluated" / "last"), weights(tmp_path / "plain" / "last"))


FAILURES = [
    RuntimeError("the simulator crashed"),
    InvalidInput("observation holds a NaN or an infinite value"),
    MemoryError("of the simulator"),
]


def failing_at(failing, error=FAILURES[0]):
    """An evaluation that fails at some updates, of a run that evaluates every 10."""
    numbers = itertools.count(10, 10)

    def evaluate(model):
        if next(numbers) in failing:
            raise error
        return size_of(model)

    return evaluate


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_an_evaluation_that_fails_costs_itself_only(tmp_path, average, error):
    lines = []
    run = make_run(tmp_path / "failing", failing_at({10}, error), updates=30, average=average)
    run.say = lines.append
    (trained,) = run.run(progress=False)
    train(tmp_path / "whole", evaluate=size_of, updates=30, average=average)
    assert_same("last", weights(trained.last), weights(tmp_path / "whole" / "last"))
    (failed,) = trained.failed_evaluations
    assert failed["update"] == 10
    assert str(error) in failed["message"]
    assert type(error).__name__ in failed["message"] or isinstance(error, AarenError)
    (line,) = lines
    assert "evaluation after update 10 failed and is left out, training goes on" in line
    assert failed["message"] in line
    assert set(logged(tmp_path / "failing", "evaluation/return")) == {20, 30}
    assert set(logged(tmp_path / "failing", "validation/loss")) == {10, 20, 30}
    assert trained.best_update in (20, 30)


def test_a_run_whose_evaluations_all_fail_ends_without_a_best(tmp_path):
    trained = train(tmp_path, evaluate=failing_at({10, 20}))
    assert [failed["update"] for failed in trained.failed_evaluations] == [10, 20]
    assert trained.best is None
    assert load_agent(trained.last)[1].updates == 20


def test_the_checkpoint_is_there_before_the_evaluation(tmp_path):
    seen = []

    def evaluate(model):
        seen.append(checkpoints(tmp_path)[-1])
        raise RuntimeError("the simulator crashed")

    train(tmp_path, evaluate=evaluate, checkpoint_every=1000)
    assert seen == [10, 20]


@pytest.mark.parametrize("fails_again", [False, True])
def test_a_failed_evaluation_is_made_up_for_by_a_resume(tmp_path, fails_again):
    train(tmp_path, evaluate=failing_at({10}), updates=10)
    assert logged(tmp_path, "evaluation/return") == {}
    resumed = make_run(tmp_path, evaluate=failing_at({10} if fails_again else ()), model_seed=99)
    resumed.restore()
    (trained,) = resumed.run(progress=False)
    assert [failed["update"] for failed in trained.failed_evaluations] == ([10] if fails_again else [])
    assert set(logged(tmp_path, "evaluation/return")) == ({20} if fails_again else {10, 20})
    train(tmp_path / "whole", evaluate=size_of)
    assert_same("last", weights(tmp_path / "last"), weights(tmp_path / "whole" / "last"))
    # No point is logged twice.
    assert [p["update"] for p in read_metrics(tmp_path)] == [p["update"] for p in read_metrics(tmp_path / "whole")]


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("cut", [10, 20])
def test_an_evaluation_that_a_signal_cut_is_made_up_for(tmp_path, average, cut):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(whole, average=average, evaluate=size_of)
    numbers = itertools.count(10, 10)

    def evaluate(model):
        if next(numbers) == cut:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        return size_of(model)

    began = time.monotonic()
    with pytest.raises(Interrupted, match=f"stopped after update {cut}, its checkpoint is saved"):
        train(parts, average=average, evaluate=evaluate)
    assert time.monotonic() - began < 30
    assert cut in checkpoints(parts)
    assert cut in logged(parts, "train/loss")
    assert cut not in logged(parts, "evaluation/return")
    assert not (parts / "last").exists()
    calls = []
    resumed = make_run(
        parts, evaluate=size_of, callbacks=[lambda *call: calls.append(call)], model_seed=99, average=average
    )
    resumed.restore()
    assert resumed.learner.updates == cut
    (trained,) = resumed.run(progress=False)
    # It begins with the evaluation, and makes every update after it once.
    assert calls[0][0] == cut
    assert "evaluation/return" in calls[0][1]
    assert [update for update, metrics in calls if "evaluation/return" not in metrics] == [*range(cut + 1, 21)]
    assert_same_runs(parts, whole)
    assert_same("best", weights(trained.best), weights(whole / "best"))
    assert [p["update"] for p in read_metrics(parts)] == [p["update"] for p in read_metrics(whole)]


def test_an_evaluation_that_was_made_is_not_made_again(tmp_path):
    calls = []

    def evaluate(model):
        calls.append(size_of(model))
        return calls[-1]

    train(tmp_path, updates=10, evaluate=evaluate)
    resumed = make_run(tmp_path, evaluate=evaluate)
    resumed.restore()
    resumed.run(progress=False)
    assert len(calls) == 2
    assert logged(tmp_path, "evaluation/return") == {10: calls[0]["return"], 20: calls[1]["return"]}


def test_an_evaluation_without_a_return_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match=r"evaluate gave \['score'\]; expected 'return'"):
        train(tmp_path, evaluate=lambda model: {"score": 1.0})


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "{}",
        "[]",
        '{"updates": 10, "best": [["x", 1.0]], "failed": [[]]}',
        '{"updates": 10, "best": [], "failed": []}',
    ],
)
def test_damaged_evaluations_cost_the_best_agent_only(tmp_path, content):
    train(tmp_path, updates=10, evaluate=size_of)
    (tmp_path / "evaluations.json").write_text(content)
    resumed, lines = make_run(tmp_path, evaluate=size_of), []
    resumed.say = lines.append
    resumed.restore()
    (line,) = lines
    assert "evaluations.json" in line
    assert "going on without the best agent until now" in line
    (trained,) = resumed.run(progress=False)
    # The newest checkpoint is evaluated again.
    assert set(logged(tmp_path, "evaluation/return")) == {10, 20}
    assert trained.best_update in (10, 20)


class Recorder:
    """A callback that notes its calls, and when it is entered and left."""

    def __init__(self, ends=lambda update, metrics: None):
        self.ends, self.calls, self.events = ends, [], []

    def __enter__(self):
        self.events.append("entered")
        return self

    def __exit__(self, kind, *error):
        self.events.append(("left", kind))

    def __call__(self, update, metrics):
        assert self.events == ["entered"]
        self.calls.append((update, dict(metrics)))
        return self.ends(update, metrics)


def test_a_callback_sees_every_update_and_all_metrics(tmp_path):
    recorder = Recorder()
    train(tmp_path, callbacks=[recorder], evaluate=size_of)
    assert [update for update, metrics in recorder.calls if "evaluation/return" not in metrics] == [*range(1, 21)]
    assert [update for update, metrics in recorder.calls if "evaluation/return" in metrics] == [10, 20]
    assert [update for update, metrics in recorder.calls if "train/loss" in metrics] == [5, 10, 15, 20]
    points = [{"update": update, **metrics} for update, metrics in recorder.calls if metrics]
    assert points == read_metrics(tmp_path)


@pytest.mark.parametrize(
    ("ends", "last", "best"),
    [
        # Between logged points, at one, and at an evaluation.
        (lambda update, metrics: update == 13, 13, 13),
        (lambda update, metrics: update == 5, 5, 5),
        (lambda update, metrics: "evaluation/return" in metrics, 10, 10),
        (lambda update, metrics: update == 13 and None, 20, 20),
    ],
    ids=["between", "logged", "evaluation", "never"],
)
def test_a_callback_can_end_the_run(tmp_path, ends, last, best):
    first, second, updates = Recorder(ends), Recorder(), iter(range(100))
    trained = train(tmp_path, callbacks=[first, second], evaluate=lambda model: {"return": float(next(updates))})
    assert (trained.best_update, trained.last, trained.best) == (best, tmp_path / "last", tmp_path / "best")
    assert load_agent(trained.last)[1].updates == last
    assert load_agent(trained.best)[1].updates == best
    # The others are called with the last update too, and it is logged, checked and saved as the last of a run is.
    assert second.calls == first.calls
    assert {update for update, _ in first.calls} == {*range(1, last + 1)}
    # Wherever it ends, both the metrics of the last updates and those of the last evaluation come.
    assert [update for update, metrics in first.calls if "train/loss" in metrics][-1] == last
    assert [update for update, metrics in first.calls if "evaluation/return" in metrics][-1] == last
    assert max(logged(tmp_path, "train/loss")) == last
    assert max(logged(tmp_path, "validation/loss")) == max(logged(tmp_path, "evaluation/return")) == last
    assert last in checkpoints(tmp_path)


def test_a_run_that_a_callback_ended_can_go_on(tmp_path):
    train(tmp_path / "whole")
    train(tmp_path / "parts", callbacks=[lambda update, metrics: update == 13])
    resumed = make_run(tmp_path / "parts", model_seed=99)
    resumed.restore()
    assert resumed.learner.updates == 13
    resumed.run(progress=False)
    assert_same("last", weights(tmp_path / "parts" / "last"), weights(tmp_path / "whole" / "last"))


def test_callbacks_that_are_context_managers_are_left(tmp_path):
    recorder = Recorder()
    train(tmp_path / "good", callbacks=[recorder])
    assert recorder.events == ["entered", ("left", None)]

    def fail(update, metrics):
        raise RuntimeError("a callback's mistake")

    recorder = Recorder()
    with pytest.raises(RuntimeError, match="a callback's mistake"):
        train(tmp_path / "bad", callbacks=[recorder, fail])
    assert recorder.events == ["entered", ("left", RuntimeError)]


def test_the_progress_bar_goes_on_from_a_resume(tmp_path, capfd):
    train(tmp_path, updates=10)
    resumed = make_run(tmp_path)
    resumed.restore()
    resumed.run()
    shown = capfd.readouterr().err
    assert "10/20" in shown
    assert "20/20" in shown
    assert "loss=" in shown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": make_data(episodes=11)}, "data.episodes differs, 12 there and 11 here: the data are not those"),
        ({"shape": {"width": 32}}, "model.width is 16 there and 32 here; leave --width out, a resumed run keeps it"),
        ({"shape": {"layout": "fused"}}, "model.layout is interleaved there and fused here; leave --layout out"),
        ({"seed": 1}, "seeds is [0] there and [1] here; resume with the seeds"),
        ({"held_out": 0.5}, "data.held_out is 0.2 there and 0.5 here; leave --held-out out"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_the_field(tmp_path, changes, message):
    train(tmp_path, updates=5)
    other = make_run(tmp_path, **changes)
    before = other.learner.state_dict()
    with pytest.raises(CheckpointError) as caught:
        other.restore()
    assert message in str(caught.value)
    assert_same("the learner", other.learner.state_dict(), before)


def test_a_folder_without_checkpoints_is_not_resumed(tmp_path):
    with pytest.raises(CheckpointError, match="has no checkpoint to resume from"):
        make_run(tmp_path / "elsewhere").restore()


FILES = ("training.safetensors", "training.json", "model.safetensors", "agent.json")


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_without_an_older_one_is_named(tmp_path, name, damage):
    train(tmp_path, updates=5)
    damage(tmp_path / "checkpoints" / "000000005" / name)
    with pytest.raises(CheckpointError, match=f"checkpoint 000000005 .*{name}.*no older one is left"):
        make_run(tmp_path).restore()


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """The folder of a run of 20 updates that was stopped after 17, with the checkpoints of 15 and 17."""
    folder = tmp_path_factory.mktemp("interrupted")

    def stop(update, metrics):
        if update == 17:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train(folder, callbacks=[stop], evaluate=size_of)
    assert checkpoints(folder) == [10, 15, 17]
    return folder


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, interrupted, name, damage):
    folder, lines = shutil.copytree(interrupted, tmp_path / "run"), []
    damage(folder / "checkpoints" / "000000017" / name)
    resumed = make_run(folder, evaluate=size_of, model_seed=99)
    resumed.say = lines.append
    resumed.restore()
    assert resumed.learner.updates == 15
    (line,) = lines
    assert line.startswith("checkpoint 000000017 is damaged: ")
    assert name in line
    assert line.endswith("going on from the one before, 000000015")
    resumed.run(progress=False)
    train(tmp_path / "whole", evaluate=size_of)
    assert_same_runs(folder, tmp_path / "whole")
    assert [p["update"] for p in read_metrics(folder)] == [p["update"] for p in read_metrics(tmp_path / "whole")]


@pytest.mark.parametrize("changes", [{"updates": 16}, {"updates": "17"}, {"seconds": None}, {"seconds": float("nan")}])
def test_a_state_that_contradicts_its_checkpoint_is_damage(tmp_path, interrupted, changes):
    folder = shutil.copytree(interrupted, tmp_path / "run")
    file = folder / "checkpoints" / "000000017" / "training.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    resumed = make_run(folder)
    resumed.restore()
    assert resumed.learner.updates == 15


def sign_tensors(checkpoint, change):
    """Changes the tensors of a checkpoint, and their digest with them."""
    path, state = checkpoint / "training.safetensors", checkpoint / "training.json"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    said = {**json.loads(state.read_text()), "sha256": digest(path.read_bytes())}
    state.write_text(json.dumps(said))


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.update({"optimiser.model.head.linear.bias.exp_avg": torch.zeros(100_000)}),
        lambda tensors: tensors.update({"random.cpu": torch.zeros(5056, dtype=torch.uint8)}),
        lambda tensors: tensors.update({"objective.model.head.linear.bias": torch.full((2,), torch.nan)}),
        lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("optimiser.")],
    ],
)
def test_a_checkpoint_of_tensors_that_do_not_fit_is_not_loaded(tmp_path, interrupted, change):
    """Even if its digest is right: another program may have written it."""
    folder, lines = shutil.copytree(interrupted, tmp_path / "run"), []
    sign_tensors(folder / "checkpoints" / "000000017", change)
    resumed = make_run(folder)
    resumed.say = lines.append
    resumed.restore()
    assert resumed.learner.updates == 15
    assert "checkpoint 000000017 is damaged: " in lines[0]


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "agent.json"])
def test_a_damaged_best_agent_costs_itself_only(tmp_path, interrupted, name, damage):
    folder, lines = shutil.copytree(interrupted, tmp_path / "run"), []
    damage(folder / "checkpoints" / "000000010" / name)
    resumed = make_run(folder, evaluate=lambda model: {"return": -1e9}, model_seed=99)
    resumed.say = lines.append
    resumed.restore()
    assert resumed.learner.updates == 17
    (line,) = lines
    assert "the best agent, of update 10, is damaged and left out" in line
    assert name in line
    (trained,) = resumed.run(progress=False)
    # The next one is the best, however bad.
    assert trained.best_update == 20


def test_a_best_agent_that_is_damaged_until_the_end_is_left_out(tmp_path):
    lines = []

    def spoil(update, metrics):
        if update == 20 and "evaluation/return" in metrics:
            cut(tmp_path / "checkpoints" / "000000010" / "model.safetensors")

    returns = iter([2.0, 1.0])
    run = make_run(tmp_path, lambda model: {"return": next(returns)}, callbacks=[spoil])
    run.say = lines.append
    (trained,) = run.run(progress=False)
    assert (trained.best, trained.best_update) == (None, None)
    assert load_agent(trained.last)[1].updates == 20
    assert "the best agent, of update 10, is damaged" in lines[0]


def test_a_run_begun_on_another_device_goes_on_and_says_so(tmp_path, interrupted):
    folder, lines = shutil.copytree(interrupted, tmp_path / "run"), []

    def as_on_a_gpu(tensors):
        tensors |= {"random.cuda": torch.zeros(16, dtype=torch.uint8), "random.sampler": torch.arange(16).byte()}

    newest = folder / "checkpoints" / "000000017"
    sign_tensors(newest, as_on_a_gpu)
    state = {**json.loads((newest / "training.json").read_text()), "device": "cuda"}
    # As versions before wrote it, beside what identifies the data.
    state["data"]["device"] = "cuda"
    (newest / "training.json").write_text(json.dumps(state))
    resumed = make_run(folder, evaluate=size_of)
    resumed.say = lines.append
    resumed.restore()
    assert resumed.learner.updates == 17
    (line,) = lines
    assert "the run was on cuda until update 17 and goes on on cpu: not bit for bit" in line
    (trained,) = resumed.run(progress=False)
    assert load_agent(trained.last)[1].updates == 20


def test_a_run_drawn_on_another_device_goes_on_and_says_so(tmp_path, interrupted):
    folder, lines = shutil.copytree(interrupted, tmp_path / "run"), []
    newest = folder / "checkpoints" / "000000017"
    sign_tensors(newest, lambda tensors: tensors.update({"random.sampler": torch.arange(16).byte()}))
    resumed = make_run(folder, evaluate=size_of)
    resumed.say = lines.append
    resumed.restore()
    (line,) = lines
    assert "batches were drawn on cuda until update 17 and are drawn on cpu from now on" in line


def test_a_half_written_checkpoint_is_not_resumed_from(tmp_path):
    train(tmp_path, updates=5)
    (tmp_path / "checkpoints" / ".000000010.partial-1").mkdir()
    resumed = make_run(tmp_path)
    resumed.restore()
    assert resumed.learner.updates == 5


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    run = make_run(tmp_path)
    torch.nn.init.constant_(run.learner.model.head.linear.bias, torch.nan)
    with pytest.raises(Diverged) as caught:
        run.run(progress=False)
    message = str(caught.value)
    assert "not finite at update 5: train/loss is nan, train/gradient_norm is nan" in message
    assert "the weight head.linear.bias holds a NaN or infinity" not in message
    assert "holds a NaN or infinity; start again with a --learning-rate below 0.001" in message


def test_an_infinite_loss_with_finite_weights_says_so(tmp_path):
    run = make_run(tmp_path, checkpoint_every=2, log_every=2)
    loss = run.learner.model.head_loss

    def infinite(*given):
        return loss(*given) * 0 + (torch.inf if run.learner.updates == 3 else 1.0)

    run.learner.model.head_loss = infinite
    with pytest.raises(Diverged) as caught:
        run.run(progress=False)
    message = str(caught.value)
    assert "not finite at update 4: train/loss is inf" in message
    assert "the weights are finite; go on from update 2 with --resume" in message


def test_weights_that_are_not_finite_are_named_though_the_loss_is(tmp_path):
    """An average may go astray that training does not look at."""
    run = make_run(tmp_path, average=0.9, checkpoint_every=3)

    def spoil(update, metrics):
        if update == 4:
            torch.nn.init.constant_(run.learner.acting.head.linear.bias, torch.inf)

    run.callbacks = [spoil]
    with pytest.raises(Diverged, match="at update 6: the weight head.linear.bias holds a NaN or infinity; go on from"):
        run.run(progress=False)
    assert checkpoints(tmp_path) == [3]


def test_weights_that_are_not_finite_replace_no_checkpoint(tmp_path):
    run = make_run(tmp_path, updates=9, checkpoint_every=3, log_every=100, evaluate_every=100)

    def spoil(*_):
        if run.learner.updates == 4:
            torch.nn.init.constant_(run.learner.model.head.linear.bias, torch.nan)

    run.learner.model.head.register_forward_hook(spoil)
    with pytest.raises(Diverged, match="update 6"):
        run.run(progress=False)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000000003"]


def test_a_new_run_does_not_take_the_folder_of_another(tmp_path):
    train(tmp_path, updates=5)
    before = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(InvalidInput, match="holds a run already"):
        train(tmp_path, updates=5)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_resuming_beyond_the_updates_asked_for_is_refused(tmp_path):
    train(tmp_path, updates=5)
    with pytest.raises(CheckpointError, match="beyond the 4 updates"):
        make_run(tmp_path, updates=4).restore()


def test_seconds_add_up_over_a_resume(tmp_path):
    first = train(tmp_path, updates=10).seconds
    resumed = make_run(tmp_path)
    resumed.restore()
    assert resumed.seconds == first
    (trained,) = resumed.run(progress=False)
    speeds = logged(tmp_path, "throughput/updates_per_second")
    np.testing.assert_allclose(trained.seconds, sum(5 / speed for speed in speeds.values()), rtol=1e-6)


def test_a_signal_while_the_run_finishes_loses_no_agent(tmp_path, monkeypatch):
    """Ctrl-C that comes while `last` is written waits for it."""
    from aaren_rl import checkpoint

    save = checkpoint.save_agent

    def interrupted(folder, *agent):
        os.kill(os.getpid(), signal.SIGINT)
        save(folder, *agent)

    monkeypatch.setattr(checkpoint, "save_agent", interrupted)
    trained = train(tmp_path, updates=5)
    assert load_agent(trained.last)[1].updates == 5


@pytest.mark.parametrize("signals", [1, 2])
def test_two_signals_save_what_one_saves(tmp_path, monkeypatch, signals):
    """The second comes while the first one's checkpoint is written."""
    from aaren_rl import checkpoint

    write = checkpoint.write_agent

    def interrupted(*agent):
        for _ in range(signals - 1):
            os.kill(os.getpid(), signal.SIGINT)
        write(*agent)

    def stop(update, metrics):
        if update == 7:
            monkeypatch.setattr(checkpoint, "write_agent", interrupted)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="stopped after update 7, its checkpoint is saved"):
        train(tmp_path, callbacks=[stop])
    assert checkpoints(tmp_path) == [5, 7]


def test_a_third_signal_stops_at_once_and_loses_no_earlier_checkpoint(tmp_path):
    def stop(update, metrics):
        if update == 7:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, callbacks=[stop])
    assert checkpoints(tmp_path) == [5]
    resumed = make_run(tmp_path)
    resumed.restore()
    assert resumed.learner.updates == 5


def test_a_signal_before_the_first_update_says_that_nothing_is_saved(tmp_path):
    class Impatient:
        def __enter__(self):
            os.kill(os.getpid(), signal.SIGINT)
            return self

        def __exit__(self, *error):
            pass

        def __call__(self, update, metrics):
            pass

    run = make_run(tmp_path, callbacks=[Impatient()])
    # A callback that is a context manager for Python's eyes too.
    with pytest.raises(Interrupted, match="stopped before the first update; nothing is saved"):
        run.run(progress=False)
    assert checkpoints(tmp_path) == []


def test_a_return_that_is_no_number_is_never_the_best(tmp_path):
    returns = iter([float("nan"), 1.0])
    trained = train(tmp_path, evaluate=lambda model: {"return": next(returns)})
    assert trained.best_update == 20


def test_an_evaluation_takes_no_random_numbers_from_training(tmp_path):
    """Not even when the run is resumed from before it."""

    def evaluate(model):
        return {"return": torch.rand(7).sum().item()}

    train(tmp_path / "whole", evaluate=evaluate)
    train(tmp_path / "cut", evaluate=evaluate, updates=10)
    resumed = make_run(tmp_path / "cut", evaluate=evaluate)
    resumed.restore()
    resumed.run(progress=False)
    train(tmp_path / "plain")
    for other in ("cut", "plain"):
        assert_same("last", weights(tmp_path / other / "last"), weights(tmp_path / "whole" / "last"))


def test_returns_of_numpy_are_returns(tmp_path):
    trained = train(tmp_path, evaluate=lambda model: {"return": np.float32(1.5), "steps": np.int64(3)})
    assert trained.best_update == 10
    assert logged(tmp_path, "evaluation/steps") == {10: 3.0, 20: 3.0}


def test_evaluations_of_an_earlier_run_are_forgotten(tmp_path):
    train(tmp_path, evaluate=lambda model: {"return": 100.0})
    shutil.rmtree(tmp_path / "checkpoints")
    returns = iter([1.0, 2.0])
    trained = train(tmp_path, evaluate=lambda model: {"return": next(returns)})
    assert trained.best_update == 20


def test_resuming_with_other_spaces_is_refused(tmp_path):
    train(tmp_path, updates=5)
    other = make_run(tmp_path)
    for model in (other.learner.model, other.learner.acting):
        model.action_space = dataclasses.replace(model.action_space, high=(3.0, 3.0))
    with pytest.raises(CheckpointError, match=r"spaces.actions.high is \[1.0, 1.0\] there and \[3.0, 3.0\] here"):
        other.restore()


def moved(data, name):
    """The data with one array changed."""
    array = getattr(data, name)
    return dataclasses.replace(data, **{name: ~array if array.dtype == bool else array + 0.5})


@pytest.mark.parametrize(
    "change",
    [
        *(lambda data, name=name: moved(data, name) for name in ("observations", "actions", "rewards")),
        *(lambda data, name=name: moved(data, name) for name in ("terminated", "truncated", "final_observations")),
        lambda data: dataclasses.replace(data, final_observations=None),
        lambda data: dataclasses.replace(data, terminated=data.truncated, truncated=data.terminated),
    ],
)
def test_resuming_with_data_that_differ_anywhere_is_refused(tmp_path, change):
    train(tmp_path, updates=5)
    with pytest.raises(CheckpointError, match="data.sha256 differs: the data are not those that the run began with"):
        make_run(tmp_path, data=change(make_data())).restore()
