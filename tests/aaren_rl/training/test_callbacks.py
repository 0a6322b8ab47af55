"""What callbacks do to a run: metrics of their own, and its end."""

import json
import math
import warnings

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_training import CARD, checkpoints, logged, make_learner, make_run, train, weights

from aaren_rl.errors import InvalidInput
from aaren_rl.training.callbacks import EarlyStop, call_all
from aaren_rl.training.ensemble import EnsembleLearner
from aaren_rl.training.log import read_metrics
from aaren_rl.training.run import Run


def test_metrics_of_a_callback_are_logged_and_seen_by_those_behind_it(tmp_path):
    before, behind = [], []

    def add(update, metrics):
        if "train/loss" in metrics:
            metrics["mine/twice"] = 2 * metrics["train/loss"]
        if update == 7:
            # Between two logged points, and of NumPy and torch.
            metrics["mine/count"], metrics["mine/half"] = np.int64(3), torch.tensor(0.5)

    callbacks = [lambda *call: before.append(dict(call[1])), add, lambda *call: behind.append(dict(call[1]))]
    train(tmp_path, callbacks=callbacks)
    twice = {update: 2 * loss for update, loss in logged(tmp_path, "train/loss").items()}
    assert logged(tmp_path, "mine/twice") == twice
    assert len(twice) == 4
    assert (logged(tmp_path, "mine/count"), logged(tmp_path, "mine/half")) == ({7: 3.0}, {7: 0.5})
    assert [point for point in behind if point] == [
        {name: value for name, value in point.items() if name != "update"} for point in read_metrics(tmp_path)
    ]
    assert not any(name.startswith("mine/") for point in before for name in point)
    board = EventAccumulator(str(tmp_path)).Reload()
    shown = {event.step: event.value for event in board.Scalars("mine/twice")}
    assert shown == pytest.approx(twice)


def test_metrics_of_a_callback_go_to_every_seed(tmp_path):
    def add(update, metrics):
        if "train/loss" in metrics:
            metrics["mine/loss"] = metrics["train/loss"]

    learners = [make_learner(model_seed=seed, shape={"dropout": 0.0}, seed=seed) for seed in range(2)]
    run = Run(EnsembleLearner(learners), CARD, tmp_path, callbacks=[add])
    run.run(progress=False)
    found = [logged(folder, "mine/loss") for folder in run.folders]
    losses = [logged(folder, "train/loss") for folder in run.folders]
    assert len(losses[0]) == 4
    for update in losses[0]:
        mean = sum(each[update] for each in losses) / len(losses)
        assert [each[update] for each in found] == pytest.approx([mean] * len(found))


def test_metrics_before_an_interruption_are_dropped_as_the_runs_are(tmp_path):
    def add(update, metrics):
        metrics["mine/update"] = update
        if update == 13:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        train(tmp_path, callbacks=[add])
    assert checkpoints(tmp_path)[-1] == 10
    resumed = make_run(tmp_path, callbacks=[lambda update, metrics: metrics.__setitem__("mine/update", -update)])
    resumed.restore()
    resumed.run(progress=False)
    points = [(point["update"], point["mine/update"]) for point in read_metrics(tmp_path)]
    assert [value for update, value in points if update <= 10 and value > 0] == [*range(1, 11), 10]
    assert all(value == -update for update, value in points if update > 10)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda metrics: metrics.update({"train/loss": 0.0}), "changed the metric 'train/loss'"),
        (lambda metrics: metrics.clear(), "changed the metric 'train/loss'"),
        (lambda metrics: metrics.update({"mine": "0.5"}), "'mine' with the value '0.5'; expected a number"),
        (lambda metrics: metrics.update({"mine": None}), "'mine' with the value None; expected a number"),
        (lambda metrics: metrics.update({"mine": np.zeros(2)}), "'mine' with the value array"),
        (lambda metrics: metrics.update({"mine": torch.zeros(2)}), "'mine' with the value tensor"),
        (lambda metrics: metrics.update({"update": 3}), "named 'update'; expected a tag"),
        (lambda metrics: metrics.update({3: 3.0}), "named 3; expected a tag"),
        (lambda metrics: {"mine": 1.0}, "a callback returned a dict; expected True to end the run, or None"),
    ],
)
def test_mistakes_in_callbacks_are_named(change, said):
    with pytest.raises(InvalidInput, match=said):
        call_all([lambda update, metrics: change(metrics)], 1, {"train/loss": 0.5, "validation/loss": math.nan})


def test_a_point_whose_callback_fails_is_logged(tmp_path):
    def fail(update, metrics):
        metrics["mine/loss"] = "high"

    with pytest.raises(InvalidInput, match="mine/loss"):
        train(tmp_path, callbacks=[lambda update, metrics: update == 5 and fail(update, metrics)])
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["update"] == 5


VALUES = [3.0, 2.0, math.nan, 2.0, 1.5, 1.5, 1.7, 1.4]


@pytest.mark.parametrize(
    ("better", "patience", "ends", "best"),
    [
        ("lower", 1, 3, 2.0),
        ("lower", 2, 4, 2.0),
        ("lower", 3, None, 1.4),
        ("higher", 2, 3, 3.0),
        ("higher", 8, None, 3.0),
    ],
)
def test_a_run_stops_after_points_without_a_better_one(better, patience, ends, best):
    stop = EarlyStop("validation/loss", better, patience)
    with stop:
        ended = []
        for update, value in enumerate(VALUES, 1):
            assert stop(update, {}) is False
            ended.append(call_all([stop], update, {"validation/loss": value})[0])
            if ended[-1]:
                break
    assert ended == [False] * ((ends or len(VALUES) + 1) - 1) + [True] * (ends is not None)
    assert stop.best == best


def test_early_stopping_ends_a_run_as_its_last_update_would(tmp_path):
    returns = iter([1.0, 5.0, 4.0, 5.0, 9.0])
    stop = EarlyStop("evaluation/return", "higher", 2)
    settings = {"evaluate_every": 3, "updates": 15}
    trained = train(tmp_path / "early", evaluate=lambda model: {"return": next(returns)}, callbacks=[stop], **settings)
    assert (trained.best_update, stop.best) == (6, 5.0)
    assert list(logged(tmp_path / "early", "evaluation/return")) == [3, 6, 9, 12]
    train(tmp_path / "whole", **{**settings, "updates": 12})
    ours, theirs = weights(tmp_path / "early" / "last"), weights(tmp_path / "whole" / "last")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_metric_that_never_came_is_said(tmp_path):
    with pytest.warns(RuntimeWarning, match="ended without a metric 'validation/los'"):
        train(tmp_path / "one", callbacks=[EarlyStop("validation/los", "lower", 1)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(tmp_path / "two", callbacks=[EarlyStop("validation/loss", "lower", 9)])


def test_early_stopping_out_of_range_is_refused():
    with pytest.raises(InvalidInput, match="better is 'max'; expected one of lower, higher"):
        EarlyStop("validation/loss", "max", 3)
    with pytest.raises(InvalidInput, match="patience is 0; expected at least 1 point"):
        EarlyStop("validation/loss", "lower", 0)
