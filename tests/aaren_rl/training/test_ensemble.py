import runpy
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from aaren_rl.checkpoint import load_agent
from aaren_rl.errors import InvalidInput
from aaren_rl.training.ensemble import train_together
from aaren_rl.training.log import read_metrics
from aaren_rl.training.run import Interrupted

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def make_trainer():
    return runpy.run_path(str(Path(__file__).with_name("interruptible_run.py")))["make_trainer"]


@pytest.fixture
def make_all(make_trainer, tmp_path):
    def make(name, **changes):
        shape = {"dropout": 0.0, **changes.pop("shape", {})}
        settings = {"updates": 12, "evaluate_every": 6, "checkpoint_every": 6, "average": 0.5, **changes}
        return [make_trainer(tmp_path / f"{name}-{seed}", shape=shape, seed=seed, **settings) for seed in SEEDS]

    return make


def assert_close(ours, theirs, tolerance=1e-5):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=tolerance)


def weights(folder):
    return load_agent(folder)[0].state_dict()


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        ({}, {}),
        ({"layout": "fused", "timesteps": "sinusoidal"}, {"accumulate": 2}),
        ({}, {"context": "episode", "average": 0.0}),
        ({"mixer": "softmax"}, {}),
        ({"mixer": "none"}, {}),
        ({"mixer": "mingru"}, {}),
    ],
    ids=["interleaved", "fused", "episodes", "softmax", "none", "mingru"],
)
def test_runs_trained_together_equal_runs_trained_alone(make_all, shape, changes):
    alone = make_all("alone", shape=shape, **changes)
    together = make_all("together", shape=shape, **changes)
    finished = train_together(together, progress=False)
    for trainer, beside, result in zip(alone, together, finished, strict=True):
        own = trainer.run(progress=False)
        assert_close(weights(result.last), weights(own.last))
        assert_close(beside.model.state_dict(), trainer.model.state_dict())
        ours, theirs = (
            [point for point in read_metrics(folder) if "loss" in point] for folder in (beside.folder, trainer.folder)
        )
        assert [point["update"] for point in ours] == [point["update"] for point in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
            assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-3)
    # Seeds differ, or the above would prove little.
    first, second, _ = (trainer.model.head.weight for trainer in together)
    assert not torch.allclose(first, second)


def test_runs_resumed_together_equal_runs_that_never_stopped(make_all):
    whole = make_all("whole")
    train_together(whole, progress=False)
    train_together(make_all("parts", updates=6), progress=False)
    resumed = make_all("parts")
    for trainer in resumed:
        trainer.restore()
    train_together(resumed, progress=False)
    for trainer, other in zip(resumed, whole, strict=True):
        assert_close(trainer.model.state_dict(), other.model.state_dict(), 1e-7)
        assert_close(trainer.acting.state_dict(), other.acting.state_dict(), 1e-7)


def test_a_signal_saves_all_runs_at_the_same_update(make_all):
    trainers = make_all("stopped", updates=100_000, evaluate_every=100_000, checkpoint_every=100_000)
    main = threading.get_ident()

    def interrupt():
        while trainers[0].update < 3:
            time.sleep(0.01)
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Interrupted, match="go on with --resume"):
        train_together(trainers, progress=False)
    saved = [[int(path.name) for path in (trainer.folder / "checkpoints").iterdir()] for trainer in trainers]
    assert saved == [[trainers[0].update]] * len(SEEDS)


def test_runs_that_differ_in_more_than_their_seed_are_refused(make_all):
    first, second, third = make_all("one")
    with pytest.raises(InvalidInput, match="need equal models"):
        train_together([first, second, make_all("other", shape={"width": 8})[2]], progress=False)
    third.run(progress=False)
    with pytest.raises(InvalidInput, match=r"updates \[0, 0, 12\]"):
        train_together([first, second, third], progress=False)
    with pytest.raises(InvalidInput, match="equal models, schedules"):
        train_together([first, make_all("rate", learning_rate=0.5)[0]], progress=False)
    with pytest.raises(InvalidInput, match="at least one"):
        train_together([], progress=False)
    with pytest.raises(InvalidInput, match="one after another"):
        train_together(make_all("dropout", shape={"dropout": 0.1}), progress=False)
    with pytest.raises(InvalidInput, match="runs of mixer 'gru' are not trained together; run them one after another"):
        train_together(make_all("gru", shape={"mixer": "gru"}), progress=False)
