import copy
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aaren_rl.checkpoint import load_agent
from aaren_rl.data.sampler import Sampler, hold_out
from aaren_rl.errors import CheckpointError, DataError, InvalidInput
from aaren_rl.mixers import state_tensors
from aaren_rl.model import ModelConfig
from aaren_rl.training.log import RunLog, draw_curve, log_hyperparameters, read_metrics
from aaren_rl.training.run import Diverged, Evaluation, Interrupted, TrainingConfig, _means

SCRIPT = Path(__file__).with_name("interruptible_run.py")
LONG = 120


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The order of sums, and so the last bits, may depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def small():
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def make_trainer(small):
    return small["make_trainer"]


@pytest.fixture(scope="module")
def uninterrupted(make_trainer, tmp_path_factory):
    """The folder of a run of LONG updates that nothing disturbed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    make_trainer(folder, updates=LONG, checkpoint_every=20, evaluate_every=60).run(progress=False)
    return folder


def checkpoints(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").glob("[0-9]*"))


def weights(folder):
    return load_agent(folder)[0].state_dict()


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def losses(folder):
    return {point["update"]: point["loss"] for point in read_metrics(folder) if "loss" in point}


def validation_losses(folder):
    return [point["validation_loss"] for point in read_metrics(folder) if "validation_loss" in point]


@pytest.mark.parametrize(
    "shape", [{"layout": "fused"}, {"timesteps": "learned"}, {"mixer": "softmax"}, {"mixer": "gru"}]
)
def test_the_loss_goes_down(tmp_path, make_trainer, shape):
    trainer = make_trainer(tmp_path, shape={"dropout": 0.0, **shape}, updates=60, learning_rate=2e-2, batch_size=8)
    trainer.run(progress=False)
    logged = list(losses(tmp_path).values())
    assert logged[-1] < 0.3 * logged[0]
    assert validation_losses(tmp_path)[-1] < 0.5 * validation_losses(tmp_path)[0]


def test_a_mixer_that_looks_at_values_is_not_recorded_as_a_cuda_graph():
    gpu = torch.device("cuda")
    recordable = {"aaren": True, "none": True, "mingru": True, "gru": False, "lstm": False, "aaren,gru": False}
    for mixer, recorded in recordable.items():
        assert _means(TrainingConfig(precision="float32"), gpu, ModelConfig(mixer=mixer, blocks=2))[2] == recorded
    with pytest.raises(InvalidInput, match="mixer 'gru' cannot be recorded as CUDA graphs; pass --graphs auto"):
        _means(TrainingConfig(precision="float32", graphs="yes"), gpu, ModelConfig(mixer="gru"))


@pytest.mark.parametrize("context", [5, "2+5", "episode", "packed", "carry:5"])
@pytest.mark.parametrize(
    ("shape", "average"),
    [
        ({"layout": "interleaved"}, 0.0),
        ({"layout": "fused"}, 0.9),
        ({"mixer": "softmax"}, 0.0),
        ({"mixer": "gru"}, 0.9),
        ({"mixer": "none"}, 0.0),
    ],
)
def test_resuming_equals_never_having_stopped(tmp_path, make_trainer, shape, average, context):
    if context == "carry:5" and shape.get("mixer") == "softmax":
        with pytest.raises(InvalidInput, match="carries a state of constant size; that of mixer 'softmax' grows"):
            make_trainer(tmp_path, shape=shape, context=context)
        return
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    schedule = {"shape": shape, "average": average, "context": context}
    make_trainer(whole, **schedule).run(progress=False)
    make_trainer(parts, **schedule, updates=10).run(progress=False)
    torch.manual_seed(1234)
    # Other weights and another random state, all of which the checkpoint must replace.
    resumed = make_trainer(parts, model_seed=99, **schedule)
    resumed.restore()
    assert resumed.update == 10
    resumed.run(progress=False)
    assert_same(weights(parts / "last"), weights(whole / "last"))
    names = "model.safetensors", "training.safetensors"
    for name in names:
        newest = Path("checkpoints") / "000000020" / name
        # Moments, the state of the sampler and of the generator of dropout are in these files too.
        assert (parts / newest).read_bytes() == (whole / newest).read_bytes(), name
    assert losses(parts) == losses(whole)
    assert validation_losses(parts) == validation_losses(whole)


def test_a_carried_segment_is_trained_from_the_state_that_the_ones_before_left(tmp_path, make_trainer):
    """As one pass over all segments, whose gradient stops at their borders."""
    trainer = make_trainer(tmp_path, shape={"dropout": 0.0}, context="carry:6", learning_rate=1e-9, warmup=0)
    sampler = copy.deepcopy(trainer.sampler)
    batches = [sampler.sample() for _ in range(4)]
    whole = [torch.cat([batch[i] for batch in batches], 1) for i in range(4)]
    with torch.no_grad():
        _, expected = trainer.model(*whole)
    losses = []
    for _ in range(4):
        trainer.prepare_update()
        losses.append(float(trainer._do_update()[0]))
    for ours, theirs in zip(state_tensors(trainer.carried), state_tensors(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        assert not ours.requires_grad
    assert np.mean(losses) == pytest.approx(trainer.model.loss(*whole).item(), rel=1e-4)


def interrupt(folder, number):
    """Starts the run in another process and sends it a signal once it has saved a checkpoint."""
    process = subprocess.Popen([sys.executable, str(SCRIPT), str(folder), str(LONG)])
    try:
        deadline = time.monotonic() + 60
        while not (folder / "checkpoints").exists() or not checkpoints(folder):
            assert time.monotonic() < deadline, "no checkpoint appeared"
            assert process.poll() is None, "the run ended before it could be interrupted"
            time.sleep(0.005)
        process.send_signal(number)
        return process.wait(60)
    finally:
        process.kill()
        process.wait()


def assert_resumes_to(folder, make_trainer, uninterrupted):
    resumed = make_trainer(folder, model_seed=99, updates=LONG, checkpoint_every=20, evaluate_every=60)
    resumed.restore()
    assert 0 < resumed.update < LONG
    resumed.run(progress=False)
    assert_same(weights(folder / "last"), weights(uninterrupted / "last"))
    # Points logged after the last checkpoint were dropped, and none is missing or doubled.
    assert [p["update"] for p in read_metrics(folder)] == [p["update"] for p in read_metrics(uninterrupted)]
    assert losses(folder).keys() == losses(uninterrupted).keys()


def test_an_interrupted_run_saves_and_resumes_to_the_same_weights(tmp_path, make_trainer, uninterrupted):
    assert interrupt(tmp_path, signal.SIGINT) == 3
    assert not (tmp_path / "last").exists()
    assert_resumes_to(tmp_path, make_trainer, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_update_and_the_old_handler_comes_back(tmp_path, make_trainer, number):
    def evaluate(model):
        os.kill(os.getpid(), number)
        return Evaluation(1.0)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="stopped after update 10"):
        make_trainer(tmp_path, evaluate=evaluate).run(progress=False)
    assert checkpoints(tmp_path) == [10]
    assert signal.getsignal(number) == before


def test_a_killed_run_resumes_to_the_same_weights(tmp_path, make_trainer, uninterrupted):
    assert interrupt(tmp_path, signal.SIGKILL) == -signal.SIGKILL
    assert_resumes_to(tmp_path, make_trainer, uninterrupted)


def test_accumulating_averages_the_gradients_of_consecutive_batches(tmp_path, make_trainer, small):
    shape = {"dropout": 0.0}
    schedule = {"updates": 1, "batch_size": 8, "accumulate": 2, "warmup": 0, "held_out": 0.0, "clip": 1e9}
    trainer = make_trainer(tmp_path / "accumulated", shape=shape, **schedule)
    trainer.run(progress=False)
    # The same by hand: two batches of the same sampler, the mean of their losses, one step of AdamW.
    data = small["make_data"]()
    by_hand = make_trainer(tmp_path / "by-hand", shape=shape, **schedule).model
    sampler = Sampler(data, hold_out(data.episodes, 0.0, 0)[0], 8, 5)
    optimiser = torch.optim.AdamW(by_hand.parameters(), lr=1e-3, weight_decay=1e-4)
    (sum(by_hand.loss(*sampler.sample()) for _ in range(2)) / 2).backward()
    for ours, theirs in zip(trainer.model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-8)
    optimiser.step()
    for ours, theirs in zip(trainer.model.parameters(), by_hand.parameters(), strict=True):
        # Where a gradient is next to nothing, AdamW's first step depends on its rounding.
        sure = theirs.grad.abs() > 1e-6
        torch.testing.assert_close(ours[sure], theirs[sure], rtol=1e-5, atol=1e-6)
    assert next(iter(losses(tmp_path / "accumulated"))) == 1


def test_the_learning_rate_rises_linearly_and_stays(tmp_path, make_trainer):
    make_trainer(tmp_path, warmup=10, learning_rate=1e-3, log_every=1).run(progress=False)
    rates = [point["learning_rate"] for point in read_metrics(tmp_path) if "learning_rate" in point]
    np.testing.assert_allclose(rates, [1e-3 * min(1, update / 10) for update in range(1, 21)])


def test_the_gradient_is_clipped(tmp_path, make_trainer):
    trainer = make_trainer(tmp_path, updates=1, clip=1e-3)
    trainer.run(progress=False)
    norm = torch.stack([p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)
    # What is logged is the norm before.
    assert read_metrics(tmp_path)[0]["gradient_norm"] > 1e-2


def test_the_average_that_acts_moves_less_than_the_weights(tmp_path, make_trainer):
    trainer = make_trainer(tmp_path, average=0.99, learning_rate=1e-2)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.run(progress=False)

    def moved(model):
        return sum((p - b).square().sum() for p, b in zip(model.parameters(), before, strict=True)).item()

    acting = load_agent(tmp_path / "last")[0]
    assert 0 < moved(acting) < moved(trainer.model)


def test_a_learned_embedding_shorter_than_an_episode_is_refused(tmp_path, make_trainer):
    with pytest.raises(InvalidInput, match="longest episode has 15 steps, the learned timestep embedding holds 14"):
        make_trainer(tmp_path, shape={"timesteps": "learned", "max_steps": 14})
    make_trainer(tmp_path, shape={"timesteps": "learned", "max_steps": 15}, context="episode").run(progress=False)


def test_best_is_the_agent_that_evaluated_best_and_last_the_last(tmp_path, make_trainer):
    returns = {10: 5.0, 20: 9.0, 30: 7.0, 40: 9.0}
    seen = {}

    def evaluate(model):
        assert not model.training
        update = 10 * (len(seen) + 1)
        seen[update] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        return Evaluation(returns[update], score=returns[update] / 10)

    trained = make_trainer(tmp_path, updates=40, evaluate=evaluate).run(progress=False)
    assert trained.best_update == 20
    assert (trained.last, trained.best) == (tmp_path / "last", tmp_path / "best")
    assert_same(weights(trained.best), seen[20])
    assert_same(weights(trained.last), seen[40])
    assert load_agent(trained.best)[1].updates == 20
    assert load_agent(trained.last)[1].updates == 40
    # All but the best and the newest checkpoint are dropped.
    assert checkpoints(tmp_path) == [20, 40]
    points = {p["update"]: p for p in read_metrics(tmp_path) if "evaluation_return" in p}
    assert {update: point["evaluation_return"] for update, point in points.items()} == returns
    assert points[20]["evaluation_score"] == 0.9


def test_without_an_evaluation_there_is_no_best_and_one_checkpoint(tmp_path, make_trainer):
    trained = make_trainer(tmp_path).run(progress=False)
    assert (trained.best, trained.best_update) == (None, None)
    assert not (tmp_path / "best").exists()
    assert checkpoints(tmp_path) == [20]
    assert trained.seconds > 0


def test_the_best_so_far_survives_a_resume(tmp_path, make_trainer):
    make_trainer(tmp_path, updates=10, evaluate=lambda model: Evaluation(5.0)).run(progress=False)
    resumed = make_trainer(tmp_path, evaluate=lambda model: Evaluation(4.0))
    resumed.restore()
    trained = resumed.run(progress=False)
    assert trained.best_update == 10
    assert load_agent(trained.best)[1].updates == 10


def test_nothing_held_out_means_no_validation(tmp_path, make_trainer):
    make_trainer(tmp_path, held_out=0.0).run(progress=False)
    assert validation_losses(tmp_path) == []
    assert len(losses(tmp_path)) == 4


def test_the_validation_loss_is_that_of_the_held_out_episodes(tmp_path, make_trainer, small):
    trained = make_trainer(tmp_path, context=100).run(progress=False)
    data = small["make_data"]()
    model = load_agent(trained.last)[0]
    total = steps = 0
    for episode in hold_out(data.episodes, 0.2, 0)[1]:
        where = slice(data.offsets[episode], data.offsets[episode + 1])
        arrays = (data.observations, data.actions, data.returns_to_go, np.arange(data.steps) - data.offsets[episode])
        arguments = [torch.from_numpy(array[where]).unsqueeze(0) for array in arrays]
        total += model.loss(*arguments).item() * data.lengths[episode]
        steps += data.lengths[episode]
    assert validation_losses(tmp_path)[-1] == pytest.approx(total / steps, rel=1e-4)


def test_metrics_and_tensorboard_hold_the_same_points(tmp_path, make_trainer):
    trainer = make_trainer(tmp_path, evaluate=lambda model: Evaluation(3.0, 0.5))
    trainer.run(progress=False)
    log_hyperparameters(tmp_path, {"context": 5, "device": torch.device("cpu")}, {"evaluation/return": 3.0})
    board = EventAccumulator(str(tmp_path)).Reload()
    expected = {
        "train/loss": "loss",
        "train/gradient_norm": "gradient_norm",
        "train/learning_rate": "learning_rate",
        "throughput/updates_per_second": "updates_per_second",
        "throughput/steps_per_second": "steps_per_second",
        "throughput/seconds_checking": "seconds_checking",
        "validation/loss": "validation_loss",
        "evaluation/return": "evaluation_return",
        "evaluation/normalized_score": "evaluation_score",
    }
    assert set(expected) <= set(board.Tags()["scalars"])
    points = read_metrics(tmp_path)
    for tag, name in expected.items():
        logged = {point["update"]: point[name] for point in points if name in point}
        shown = {event.step: event.value for event in board.Scalars(tag) if event.step}
        assert shown == pytest.approx(logged, rel=1e-5), tag
    assert set(losses(tmp_path)) == {5, 10, 15, 20}


def test_a_cut_off_last_line_of_the_metrics_is_left_out(tmp_path):
    log = RunLog(tmp_path)
    for update in (1, 2, 3):
        log.write(update, {"loss": float(update)})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"update": 4, "lo')
    assert [point["update"] for point in read_metrics(tmp_path)] == [1, 2, 3]
    # Going on from update 2 drops what was logged after it.
    log = RunLog(tmp_path, update=2)
    log.write(3, {"loss": 30.0})
    log.close()
    assert losses(tmp_path) == {1: 1.0, 2: 2.0, 3: 30.0}


@pytest.mark.parametrize("shape", [{"layout": "interleaved"}, {"layout": "fused"}, {"mixer": "softmax"}])
def test_bf16_trains_about_as_float32_does(tmp_path, make_trainer, shape):
    for precision in ("float32", "bf16"):
        trainer = make_trainer(
            tmp_path / precision, shape={"dropout": 0.0, **shape}, precision=precision, updates=30, learning_rate=1e-2
        )
        trainer.run(progress=False)
        assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    full, half = (np.array(list(losses(tmp_path / precision).values())) for precision in ("float32", "bf16"))
    assert not np.array_equal(full, half)
    np.testing.assert_allclose(half, full, rtol=0.15)


def test_resuming_with_other_data_or_another_model_is_refused(tmp_path, make_trainer, small):
    make_trainer(tmp_path, updates=5).run(progress=False)
    with pytest.raises(CheckpointError, match="was trained on .* asked to go on with"):
        make_trainer(tmp_path, data=small["make_data"](episodes=11)).restore()
    with pytest.raises(CheckpointError, match="asked to resume"):
        make_trainer(tmp_path, shape={"width": 32}).restore()
    with pytest.raises(CheckpointError, match="has no checkpoint to resume from"):
        make_trainer(tmp_path / "elsewhere").restore()


def test_resuming_from_a_damaged_checkpoint_is_refused(tmp_path, make_trainer):
    make_trainer(tmp_path, updates=5).run(progress=False)
    for name in ("training.safetensors", "training.json", "model.safetensors"):
        damaged = tmp_path / f"without-{name}"
        shutil.copytree(tmp_path / "checkpoints", damaged / "checkpoints")
        path = damaged / "checkpoints" / "000000005" / name
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(CheckpointError, match=name):
            make_trainer(damaged).restore()


def test_a_half_written_checkpoint_is_not_resumed_from(tmp_path, make_trainer):
    make_trainer(tmp_path, updates=5).run(progress=False)
    (tmp_path / "checkpoints" / ".000000010.partial-1").mkdir()
    resumed = make_trainer(tmp_path)
    resumed.restore()
    assert resumed.update == 5


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, make_trainer):
    trainer = make_trainer(tmp_path)
    torch.nn.init.constant_(trainer.model.head.bias, torch.nan)
    with pytest.raises(Diverged, match="not finite at update 5"):
        trainer.run(progress=False)


def test_weights_that_are_not_finite_never_replace_a_checkpoint(tmp_path, make_trainer):
    trainer = make_trainer(tmp_path, updates=9, checkpoint_every=3, log_every=100, evaluate_every=100)

    def spoil(*_):
        if trainer.update == 4:
            torch.nn.init.constant_(trainer.model.head.bias, torch.nan)

    trainer.model.head.register_forward_hook(spoil)
    with pytest.raises(Diverged, match="update 6"):
        trainer.run(progress=False)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000000003"]


def test_a_new_run_does_not_take_the_folder_of_another(tmp_path, make_trainer):
    make_trainer(tmp_path, updates=5).run(progress=False)
    before = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(InvalidInput, match="holds a run already"):
        make_trainer(tmp_path, updates=5).run(progress=False)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_resuming_beyond_the_updates_asked_for_is_refused(tmp_path, make_trainer):
    make_trainer(tmp_path, updates=5).run(progress=False)
    with pytest.raises(CheckpointError, match="beyond the 4 updates"):
        make_trainer(tmp_path, updates=4).restore()


@pytest.mark.parametrize(
    "changes",
    [
        {"updates": 0},
        {"batch_size": 0},
        {"context": 0},
        {"accumulate": 0},
        {"log_every": 0},
        {"evaluate_every": 0},
        {"checkpoint_every": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"clip": -1.0},
        {"warmup": -1},
        {"weight_decay": -1.0},
    ],
)
def test_schedules_that_cannot_be_are_refused(changes):
    with pytest.raises(InvalidInput, match=next(iter(changes))):
        TrainingConfig(**changes)


def test_the_learning_curve_is_a_picture(tmp_path, make_trainer):
    with pytest.raises(DataError, match="holds no points to draw"):
        draw_curve(tmp_path, "nothing")
    make_trainer(tmp_path, evaluate=lambda model: Evaluation(3.0)).run(progress=False)
    plain = draw_curve(tmp_path, "a run").read_bytes()
    assert plain.startswith(b"\x89PNG")
    assert draw_curve(tmp_path, "a run", behaviour_return=2.0).read_bytes() != plain
