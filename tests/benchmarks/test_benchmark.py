import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import benchmark
import by_mixer
import evaluating
import loading
import scanning
import setting
import stepping
import training
from aaren_rl.experiments import measuring
from aaren_rl.experiments.measuring import Row, alternate, compare, table

needs_peers = pytest.mark.skipif(
    not all(find_spec(name) for name in stepping.NEEDS), reason="the extra bench is not installed"
)


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command at sizes that take no time: (exit status, stdout, stderr)."""
    monkeypatch.setattr(measuring, "ROUNDS", 2)
    monkeypatch.setattr(setting, "MODEL", replace(setting.MODEL, width=16, blocks=1))
    monkeypatch.setattr(setting, "EPISODE", 20)
    monkeypatch.setattr(loading, "STEPS", 1_500)
    monkeypatch.setattr(scanning, "SIZES", ((2, 1, 5, 4),))
    for name, value in {"CALLS": 2, "BATCHES": (1, 3), "BATCH_CALLS": 5, "EARLY": 3, "LATE": 7}.items():
        monkeypatch.setattr(stepping, name, value)
    for name, value in {"STEPS": 2_000, "CALLS": 1, "TOKENS": (30, 60), "SOFTMAX_TOKENS": (30,)}.items():
        monkeypatch.setattr(training, name, value)
    monkeypatch.setattr(evaluating, "EPISODES", 2)
    threads = torch.get_num_threads()

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, arguments)])
        status = 0
        try:
            benchmark.main()
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    yield run
    torch.set_num_threads(threads)


@pytest.fixture
def measured(command, tmp_path):
    """Runs the command and returns what it wrote as JSON, after a look at its form."""

    def run(*arguments):
        path = tmp_path / "made" / "figures.json"
        status, out, errors = command(*arguments, "--json", path)
        assert status == 0, errors
        figures = json.loads(path.read_text())
        assert set(figures) == {"machine", "rows", "not_measured"}
        assert figures["machine"]["threads"] == 1
        assert figures["machine"]["packages"]["torch"] == torch.__version__
        for row in figures["rows"]:
            assert {"name", "value", "unit", "ratio"} <= set(row)
            assert np.isfinite(row["value"])
            assert f"| {row['name']} " in out
        return figures

    return run


def test_sides_play_in_turn_after_one_round_each_to_warm_up():
    played = []

    def side(name, seconds):
        own = iter(seconds)

        def play():
            played.append(name)
            return next(own)

        return play

    taken = alternate({"a": side("a", [9, 1, 2, 4]), "b": side("b", [9, 3, 8, 8])}, rounds=3)
    assert "".join(played) == "abababab"
    assert taken == {"a": [1, 2, 4], "b": [3, 8, 8]}
    row = compare("a vs b", taken["a"], taken["b"], taken["a"], "b / a", "ms")
    # Rounds give 3, 4 and 2: ratios are of pairs, not of medians.
    assert row == Row("a vs b", 2_000, "ms", 3, (2, 4), "b / a")


def test_a_side_gives_the_time_of_one_call(monkeypatch):
    clock = iter([10.0, 16.0])
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: next(clock))
    calls = []
    assert measuring.timed(lambda: calls.append(1), 3)() == 2
    assert len(calls) == 3


def test_table_is_markdown():
    head, line, first, second = table(
        [Row("fast", 1234.5, "us", 6.254, (5.9, 7.0), "theirs / ours"), Row("plain", 0.5, "s")]
    ).splitlines()
    assert [cell.strip() for cell in head.split("|")[1:-1]] == [
        "measurement",
        "value",
        "ratio (lowest to highest)",
        "ratio of",
    ]
    assert line == "|---|---|---|---|"
    assert [cell.strip() for cell in first.split("|")] == [
        *("", "fast", "1,234 us", "6.25 (5.9 to 7)", "theirs / ours", "")
    ]
    assert [cell.strip() for cell in second.split("|")] == ["", "plain", "0.5 s", "", "", ""]


def test_loading(measured):
    names = [row["name"] for row in measured("data")["rows"]]
    assert names == ["load 1,500 steps", "peak memory to load 1,500 steps"]


def test_evaluation_is_shared_between_environment_and_agent(measured):
    shares = {row["name"]: row["ratio"] for row in measured("eval")["rows"]}
    assert set(shares) == {"environment share of evaluation", "agent share of evaluation"}
    assert 0 < sum(shares.values()) <= 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_scan_without_a_gpu_says_what_is_missing(measured):
    figures = measured("scan")
    assert {row["name"] for row in figures["rows"]} == {f"scan {form}, B=2 H=1 T=5 D=4" for form in scanning.FORMS}
    assert min(row["ratio"] for row in figures["rows"]) == 1
    assert figures["not_measured"] == [{"name": "scan kernel vs copy bandwidth", "reason": "no CUDA device"}]


@needs_peers
def test_step(measured, tmp_path, monkeypatch):
    # One export instead of three, each of which takes torch many seconds.
    monkeypatch.setattr(stepping, "EXPORTED", {"exported step": ("interleaved", False)})
    figures = measured("step", "--plots", tmp_path / "plots")
    names = {row["name"] for row in figures["rows"]}
    assert names >= {
        "exported step vs hugging-face",
        "exported step vs streaming the weights",
        "agent.act vs hugging-face",
        "agent.act at step 7 vs step 3",
        "state bytes at step 7 vs step 3",
        "agent.act, batch 3, 95th percentile",
    }
    bytes_row = next(row for row in figures["rows"] if row["name"].startswith("state bytes"))
    assert (bytes_row["value"], bytes_row["ratio"]) == ((2 + 3 + 16 + 1) * 8, 1)
    assert [left["name"] for left in figures["not_measured"]] == ["agent.act vs d3rlpy", "agent.act, fused vs d3rlpy"]
    made = sorted((tmp_path / "plots").iterdir())
    assert [path.name for path in made] == ["ratios.png", "step-latency.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)


@needs_peers
def test_mixers(measured, monkeypatch):
    monkeypatch.setattr(by_mixer, "CONSTANT", ["aaren", "gru"])
    monkeypatch.setattr(by_mixer, "SEGMENTS", {"3 steps": (3, 2)})
    figures = measured("mixers")
    whats = ("agent.act, interleaved", "agent.act, fused", "update, 3 steps")
    assert {row["name"] for row in figures["rows"]} == {
        f"{what}, {mixer} vs aaren" for what in whats for mixer in ("aaren", "gru")
    }


@needs_peers
def test_train(measured, tmp_path):
    figures = measured("train", "--plots", tmp_path / "plots")
    names = [row["name"] for row in figures["rows"]]
    assert names[:6] == [
        "update interleaved vs hugging-face",
        "update fused vs hugging-face",
        "sampling vs update",
        "whole-episode update vs softmax",
        "update at 30 tokens",
        "update at 60 tokens",
    ]
    assert (tmp_path / "plots" / "update-by-tokens.png").exists()


@needs_peers
def test_hugging_face_acts_from_the_window_of_its_last_steps(monkeypatch):
    from hugging_face import HuggingFace

    monkeypatch.setattr(setting, "MODEL", replace(setting.MODEL, width=16, blocks=1))
    peer = HuggingFace()
    peer.model.eval()
    observations = torch.randn(30, setting.OBSERVATION_SIZE)
    taken = torch.stack([torch.as_tensor(peer.act(own.numpy(), 2.0)) for own in observations])
    with torch.inference_mode():
        predicted = peer.model(
            states=observations[None, 10:],
            actions=torch.cat([taken[10:29], torch.zeros(1, setting.ACTION_SIZE)])[None],
            returns_to_go=(3_600 - 2 * torch.arange(11.0, 31.0))[None, :, None] / 1_000,
            timesteps=torch.arange(11, 31)[None],
        ).action_preds
    torch.testing.assert_close(taken[-1], predicted[0, -1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "trian"),
        (["data", "--threads", "0"], "expected at least 1"),
    ],
)
def test_mistakes_end_with_status_two(command, arguments, message):
    status, out, errors = command(*arguments)
    assert status == 2
    assert message in out + errors
    assert "Traceback" not in out + errors


def test_missing_peer_is_named_with_what_to_install(command, monkeypatch):
    monkeypatch.setattr(training, "NEEDS", ("no_such_peer",))
    for what in ("train", "all"):
        status, out, errors = command(what)
        assert status == 2
        assert len(errors.splitlines()) == 1
        assert "no_such_peer, not installed" in errors
        assert "'.[bench]'" in errors
        # Before minutes were spent on the rest.
        assert "| load" not in out


@needs_peers
@pytest.mark.parametrize("python", ["nowhere", sys.executable])
def test_interpreter_without_d3rlpy_is_refused(command, python):
    status, _, errors = command("step", "--d3rlpy", python)
    assert status == 2
    assert len(errors.splitlines()) == 1
    assert ("cannot be run" if python == "nowhere" else "No module named 'd3rlpy'") in errors
    assert "pip install d3rlpy" in errors
