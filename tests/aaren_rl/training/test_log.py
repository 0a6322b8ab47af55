import subprocess
import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_training import logged, train

from aaren_rl.errors import CheckpointError, DataError
from aaren_rl.training.log import RunLog, draw_curve, log_hyperparameters, read_metrics


def test_metrics_and_tensorboard_hold_the_same_points(tmp_path):
    train(tmp_path, evaluate=lambda model: {"return": 3.0, "normalized_score": 0.5})
    log_hyperparameters(tmp_path, {"context": 5, "device": torch.device("cpu")}, {"evaluation/return": 3.0})
    board = EventAccumulator(str(tmp_path)).Reload()
    expected = {
        "train/loss",
        "train/gradient_norm",
        "train/learning_rate",
        "throughput/updates_per_second",
        "throughput/steps_per_second",
        "throughput/seconds_checking",
        "validation/loss",
        "evaluation/return",
        "evaluation/normalized_score",
    }
    assert expected <= set(board.Tags()["scalars"])
    assert {name for point in read_metrics(tmp_path) for name in point} == expected | {"update"}
    for tag in expected:
        shown = {event.step: event.value for event in board.Scalars(tag) if event.step}
        assert shown == pytest.approx(logged(tmp_path, tag), rel=1e-5), tag
    assert set(logged(tmp_path, "train/loss")) == {5, 10, 15, 20}
    assert set(logged(tmp_path, "validation/loss")) == {10, 20}


def test_a_cut_off_last_line_of_the_metrics_is_left_out(tmp_path):
    with RunLog(tmp_path) as log:
        for update in (1, 2, 3):
            log(update, {"train/loss": float(update)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"update": 4, "train/lo')
    assert [point["update"] for point in read_metrics(tmp_path)] == [1, 2, 3]
    # Going on from update 2 drops what was logged after it.
    with RunLog(tmp_path, update=2) as log:
        log(3, {"train/loss": 30.0})
        # Between two logged points there is nothing to write.
        log(4, {})
    assert logged(tmp_path, "train/loss") == {1: 1.0, 2: 2.0, 3: 30.0}
    assert [point["update"] for point in read_metrics(tmp_path)] == [1, 2, 3]


def test_the_learning_curve_is_a_picture(tmp_path):
    with pytest.raises(DataError, match="holds no points to draw"):
        draw_curve(tmp_path, "nothing")
    train(tmp_path, evaluate=lambda model: {"return": 3.0})
    plain = draw_curve(tmp_path, "a run").read_bytes()
    assert plain.startswith(b"\x89PNG")
    assert draw_curve(tmp_path, "a run", behaviour_return=2.0).read_bytes() != plain


@pytest.mark.parametrize(
    "damage",
    [
        b"[1]",
        b"3",
        b'{"loss": 1.0}',
        b'{"update": "5"}',
        b'{"update": 5, "train/loss": "low"}',
        b"\xff\xfe",
        b"[" * 9999,
        b"",
    ],
)
def test_damaged_lines_of_the_metrics_are_left_out(tmp_path, damage):
    with RunLog(tmp_path) as log:
        for update in (1, 2, 3):
            log(update, {"train/loss": float(update)})
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([lines[0], damage, lines[2]]) + b"\n")
    expected = [{"update": 1, "train/loss": 1.0}, {"update": 3, "train/loss": 3.0}]
    assert read_metrics(tmp_path) == expected
    # A resume writes the whole ones anew.
    with RunLog(tmp_path, update=3):
        pass
    assert read_metrics(tmp_path) == expected
    assert draw_curve(tmp_path, "title").exists()


@pytest.mark.parametrize("kilobytes", [4, 8, 12, 16, 20])
def test_a_full_disk_is_one_error_without_a_traceback(tmp_path, kilobytes, capfd):
    """Metrics and events fill a file system of some kilobytes."""
    (tmp_path / "disk").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(tmp_path / "disk")], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("nobody may mount a file system here")

    def fill():
        with RunLog(tmp_path / "disk" / "run") as log:
            for update in range(1, 3_000):
                log(update, {"train/loss": float(update)})

    try:
        with pytest.raises(CheckpointError, match="the log in .* cannot be written: .*No space left"):
            fill()
    finally:
        subprocess.run(["umount", "-l", str(tmp_path / "disk")], check=True)
    time.sleep(0.1)
    assert "Traceback" not in capfd.readouterr().err
