"""The attacks of scripts/stress.py: short runs, and planted faults that they must see."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from aaren_rl.agents import DecisionAgent
from aaren_rl.errors import DataError, InvalidInput
from aaren_rl.experiments.stress import formats, fuzz, processes, readers, rows, samples, stream
from aaren_rl.experiments.stress.attack import Request, explain
from aaren_rl.experiments.stress.commands import Command
from aaren_rl.experiments.stress.disturbances import Undisturbed
from aaren_rl.experiments.stress.faults import ATTACKS, Faults, Try
from aaren_rl.experiments.stress.formats import FORMATS, Format
from aaren_rl.experiments.stress.mutations import Mutation, mutate_bytes, mutate_tree
from aaren_rl.experiments.stress.mutations_of_hdf5 import mutate_hdf5
from aaren_rl.experiments.stress.operation import Operation
from aaren_rl.experiments.stress.operations import OPERATIONS
from aaren_rl.experiments.stress.processes import Workers
from aaren_rl.experiments.stress.rows import Finding, Row

ROOT = Path(__file__).parents[2]
STRESS = ROOT / "scripts" / "stress.py"


@pytest.fixture(autouse=True)
def one_thread():
    """Forked processes may not wait for threads that only their parent has."""
    threads = torch.get_num_threads()
    processes.prepare()
    yield
    torch.set_num_threads(threads)


def found_by(attempt, folder, items, **limits):
    """What each item showed."""
    return dict(Workers(attempt, folder, 2, **{"seconds": 30, **limits}).run([items]))


# --- Processes ---------------------------------------------------------------------------------------------------


def test_findings_come_back_and_the_rest_of_a_batch_goes_on(tmp_path):
    shown = found_by(lambda item: [Finding("wrong", "two")] if item == 2 else [], tmp_path, [1, 2, 3])
    assert shown == {1: [], 2: [Finding("wrong", "two")], 3: []}


def die(item):
    os.kill(os.getpid(), signal.SIGSEGV)


def leave(item):
    print("last words", flush=True)
    os._exit(3)


def hang(item):
    time.sleep(60)


@pytest.mark.parametrize(
    ("attempt", "kind", "about"),
    [(die, "crashes", "SIGSEGV"), (leave, "crashes", "status 3: last words"), (hang, "hangs", "within 1 s")],
)
def test_a_process_that_ends_or_hangs_is_counted(attempt, kind, about, tmp_path):
    shown = found_by(lambda item: attempt(item) if item == 1 else [], tmp_path, [0, 1, 2], seconds=1)
    ((finding,),) = [findings for findings in shown.values() if findings]
    assert (finding.kind, about in finding.about) == ("crashes" if kind == "crashes" else "hangs", True)
    assert set(shown) == {0, 1, 2}
    assert shown[2] == []


def test_memory_beyond_the_limit_fails_in_the_process(tmp_path):
    """More than any process of the tests has freed: what the allocator holds already counts from the start."""

    def attempt(size):
        try:
            np.empty(size, np.uint8)
        except MemoryError:
            return [Finding("memory", "no")]
        return []

    shown = found_by(attempt, tmp_path, [2**20, 2**33], memory=2**26)
    assert [len(shown[size]) for size in (2**20, 2**33)] == [0, 1]


# --- Mutations ---------------------------------------------------------------------------------------------------


def test_a_mutation_depends_on_seed_format_and_number_alone(tmp_path):
    behaviour = next(one for one in FORMATS if one.name == "behaviour npz")
    first = fuzz.Fuzzer(tmp_path / "one", 3, formats=[behaviour])
    other = fuzz.Fuzzer(tmp_path / "other", 3, formats=[behaviour])
    for fuzzer in (first, other):
        fuzzer.folder.mkdir()
        fuzzer.write_samples()
    contents = []
    for fuzzer, number in ((first, 5), (other, 5), (other, 6)):
        folder = fuzzer.folder / f"input-{number}"
        mutation = fuzzer.mutate(fuzzer.find(f"behaviour npz:{number}"), folder)
        contents.append((mutation, (folder / "behaviour.npz").read_bytes()))
    assert contents[0] == contents[1] != contents[2]


def test_nearly_every_mutation_changes_the_input():
    rng = np.random.default_rng(0)
    content, other = rng.bytes(500), rng.bytes(400)
    changed = [mutate_bytes(rng, content, other)[0] != content for _ in range(300)]
    assert np.mean(changed) > 0.9
    tree = {"name": "x", "sizes": [1, 2, 3], "inner": {"flag": True}}
    trees = [mutate_tree(rng, tree, {"other": [7]})[0] for _ in range(300)]
    # NaN differs from itself.
    assert np.mean([repr(one) != repr(tree) for one in trees]) > 0.9
    assert tree == {"name": "x", "sizes": [1, 2, 3], "inner": {"flag": True}}


def test_links_to_other_files_must_be_refused(tmp_path):
    """All three ways by which HDF5 reads elsewhere come up, and each is marked."""
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        samples.write_d4rl(tmp_path / str(seed), seed)
    marked = {}
    for number in range(200):
        copy = shutil.copytree(tmp_path / "0", tmp_path / "copy", dirs_exist_ok=True)
        file = copy / "data.hdf5"
        mutation = mutate_hdf5(np.random.default_rng(number), file, tmp_path / "1" / "data.hdf5")
        marked.setdefault(mutation.about, set()).add(mutation.refuse)
    for about in ("external link", "external storage", "virtual dataset"):
        assert marked[about] == {True}
    assert marked["missing"] == marked["values"] == {False}


# --- Planted faults of readers ------------------------------------------------------------------------------------


def planted(read, mutate=lambda rng, folder, other: Mutation("nothing", "here")):
    """A format of one text file with a reader that may be at fault."""
    return Format("text", 100, lambda folder, seed: (folder / "a.txt").write_text("1 2"), mutate, read)


def shown_by(read, tmp_path, **more):
    fuzzer = fuzz.Fuzzer(tmp_path, 0, formats=[planted(read, **more)])
    for number in (0, 1):
        folder = tmp_path / "samples" / "text" / str(number)
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text("1 2")
    found = {}
    fuzzer.run(3, found)
    row = found["text"]
    assert row.tried == 3
    assert row.figures["read"] + row.figures["refused"] == 3 - sum(row.faults.values())
    return {finding.kind: count for finding, count in row.faults.items()}, list(row.faults)


def fails_with(error):
    def fail(*given):
        raise error

    return fail


def test_a_reader_with_a_bare_exception_is_counted(tmp_path):
    counts, (finding,) = shown_by(lambda folder: {}["terminals"], tmp_path)
    assert counts == {"tracebacks": 3}
    assert "KeyError" in finding.about
    assert finding.detail == "\"'terminals'\""


def test_a_clear_error_and_a_success_are_no_faults(tmp_path):
    clear = DataError("a.txt holds no numbers; expected two")
    assert shown_by(fails_with(clear), tmp_path / "one") == ({}, [])
    assert shown_by(fails_with(FileNotFoundError(2, "No such file", "a.txt")), tmp_path / "two") == ({}, [])
    assert shown_by(lambda folder: None, tmp_path / "three") == ({}, [])


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DataError("bad"), "wrong"),
        (DataError("a.txt cannot be read: Unable to allocate 8 GiB"), "memory"),
        (MemoryError(), "memory"),
        (OSError("cannot read"), "tracebacks"),
        (RecursionError("too deep"), "tracebacks"),
    ],
)
def test_an_error_that_is_not_clear_is_counted(error, kind, tmp_path):
    assert shown_by(fails_with(error), tmp_path)[0] == {kind: 3}


def test_control_characters_that_are_printed_raw_are_counted(tmp_path, monkeypatch):
    read = fails_with(DataError("a.txt has the id \x1b[31mred; expected a name"))
    assert shown_by(read, tmp_path / "escaped") == ({}, [])
    monkeypatch.setattr("aaren_rl.experiments.console.printable", lambda text: text)
    assert shown_by(read, tmp_path / "raw")[0] == {"wrong": 3}


def test_a_success_that_must_be_refused_is_counted(tmp_path):
    refuse = lambda rng, folder, other: Mutation("external link", "rewards", refuse=True)  # noqa: E731
    counts, (finding,) = shown_by(lambda folder: None, tmp_path, mutate=refuse)
    assert counts == {"wrong": 3}
    assert "external link" in finding.about


class NanAgent(DecisionAgent):
    """Acts, but not with numbers."""

    def act(self, *given, **more):
        return super().act(*given, **more) * np.nan


def test_an_agent_that_acts_nan_is_counted(tmp_path):
    counts, (finding,) = shown_by(lambda folder: readers.act(NanAgent(samples.model(0), samples.CARD)), tmp_path)
    assert counts == {"wrong": 3}
    assert "not finite" in finding.about


def test_code_that_data_name_is_counted(tmp_path):
    """A reader that makes the environment of the metadata runs what they name."""
    import gymnasium as gym
    from gymnasium.envs.registration import EnvSpec

    def read(folder):
        metadata = json.loads((folder / "data" / "metadata.json").read_text())
        spec = EnvSpec.from_json(metadata["env_spec"])
        # What was made is no environment.
        with contextlib.suppress(Exception):
            gym.make(spec)

    folder = tmp_path / "set"
    folder.mkdir()
    samples.write_minari(folder, 0)
    for number in range(5):
        formats.plant_code(np.random.default_rng(number), folder)
        with pytest.raises(readers.WrongSuccess, match="code"):
            readers.without_running_code(folder, lambda: read(folder))
        (folder / readers.CANARY).rmdir()


# --- Planted faults of what writes --------------------------------------------------------------------------------


class Careful(Operation):
    """Replaces a file whole, ten times."""

    name, share = "planted", 100

    def prepare(self, folder):
        (folder / "kept").write_text("x" * 100_000)

    def begin(self, folder):
        def write():
            try:
                for _ in range(10):
                    self.write(folder)
            except OSError as error:
                print(f"error: {error}", file=sys.stderr)
                sys.exit(2)
            except KeyboardInterrupt:
                sys.exit(130)

        return write

    def write(self, folder):
        new = folder / f"new-{os.getpid()}"
        try:
            new.write_text("x" * 100_000)
            time.sleep(0.01)
            new.replace(folder / "kept")
        finally:
            new.unlink(missing_ok=True)

    def damage(self, folder):
        kept = folder / "kept"
        return None if kept.exists() and kept.stat().st_size == 100_000 else "the file is gone or cut"

    def result(self, folder):
        return (folder / "kept").read_text()


class Careless(Careful):
    """Writes into the file that it replaces."""

    def write(self, folder):
        (folder / "kept").unlink(missing_ok=True)
        time.sleep(0.01)
        (folder / "kept").write_text("x" * 100_000)


class Growing(Careful):
    """Writes a large file into the place of a small one."""

    def prepare(self, folder):
        (folder / "kept").write_text("x")

    def write(self, folder):
        (folder / "kept").write_text("x" * 100_000)

    def damage(self, folder):
        return None if (folder / "kept").stat().st_size in (1, 100_000) else "the file is cut"


class Counting(Careful):
    """Its result depends on how often it ran."""

    def write(self, folder):
        with (folder / "kept").open("a") as file:
            file.write("x")


class Silent(Careful):
    """Succeeds whatever happened."""

    def begin(self, folder):
        def write():
            with contextlib.suppress(OSError):
                Careful.write(self, folder)

        return write


class Bare(Careful):
    """Ends with a traceback where it cannot write."""

    def begin(self, folder):
        return lambda: Careful.write(self, folder)


class Stubborn(Careful):
    """Does not end when it is asked to."""

    def begin(self, folder):
        def write():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            time.sleep(2)

        return write


def attacked(kind, attack, tmp_path, tries=12):
    """Faults by kind that an attack on an operation shows."""
    faults = Faults(tmp_path, {}, 0, 2, [kind])
    faults.measure()
    row = Row(attack)
    attempts = [[Try(attack, kind, number)] for number in range(tries)]
    for one, findings in Workers(faults.attempt, tmp_path, 2, 60).run(attempts):
        row.add(str(one), findings)
    assert row.tried == tries
    return dict(row.counts)


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_writes_whole_files_loses_nothing(attack, tmp_path):
    assert attacked(Careful, attack, tmp_path) == {}


def test_kills_find_what_is_not_written_whole(tmp_path):
    assert attacked(Careless, "kill", tmp_path)["lost"] > 3


def test_kills_find_another_result(tmp_path):
    assert attacked(Counting, "kill", tmp_path)["lost"] > 3


def test_a_full_disk_finds_what_is_not_written_whole(tmp_path):
    assert attacked(Growing, "full disk", tmp_path)["lost"] > 3


def test_a_full_disk_finds_tracebacks(tmp_path):
    assert attacked(Bare, "full disk", tmp_path)["tracebacks"] > 3


def test_a_read_only_folder_finds_a_false_success(tmp_path):
    assert attacked(Silent, "read-only folder", tmp_path, 2) == {"wrong": 2}


def test_two_at_once_find_a_mixed_result(tmp_path):
    assert attacked(Counting, "two at once", tmp_path)["lost"] > 3


def test_a_command_that_does_not_end_hangs(tmp_path, monkeypatch):
    monkeypatch.setattr("aaren_rl.experiments.stress.disturbances.SECONDS", 0.3)
    monkeypatch.setattr("aaren_rl.experiments.stress.disturbances.AT_A_FILE", 0.0)
    monkeypatch.setattr("aaren_rl.experiments.stress.disturbances.AT_A_MOMENT", 0.0)
    faults = Faults(tmp_path, {}, 0, 2, [Stubborn])
    faults.undisturbed[Stubborn] = Undisturbed(0.1, 1, 1, "x" * 100_000)
    ((_, findings),) = Workers(faults.attempt, tmp_path, 2, 60).run([[Try("kill", Stubborn, 0)]])
    assert [finding.kind for finding in findings][:1] == ["hangs"]


def test_a_command_can_be_killed_before_its_nth_file(tmp_path):
    def write():
        for number in range(5):
            (tmp_path / str(number)).write_text("x")

    whole = Command(write, tmp_path, tmp_path / "log")
    assert whole.wait(10)
    assert (whole.status, whole.events) == (0, 5)
    for number in range(5):
        (tmp_path / str(number)).unlink()
    killed = Command(write, tmp_path, tmp_path / "log", at_event=4)
    assert killed.wait(10)
    assert killed.status == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.glob("[0-9]")) == ["0", "1", "2"]


# --- Planted faults of what acts ----------------------------------------------------------------------------------


def test_a_stream_counts_actions_that_are_not_finite(monkeypatch):
    agent = stream.make_agent(stream.Stream("none", "torch"), 0)
    report = stream.act(agent, 800, 0)
    assert report.steps == 800
    monkeypatch.setattr(agent, "act", lambda *given: np.full((stream.ROWS, 2), np.nan))
    report = stream.act(agent, 800, 0)
    assert report.wrong == 800
    assert any("an action" in finding.about for finding in report.findings)


def test_a_stream_counts_a_refusal_to_act(monkeypatch):
    agent = stream.make_agent(stream.Stream("none", "torch"), 0)
    monkeypatch.setattr(agent, "act", fails_with(InvalidInput("observation holds a NaN")))
    monkeypatch.setattr(stream, "EXTREMES", ("ordinary",))
    report = stream.act(agent, 160, 0)
    assert report.wrong == 160
    assert [finding.about for finding in report.findings] == ["an agent that does not act: observation holds a NaN"]


def test_a_stream_of_ordinary_values_shows_nothing(monkeypatch):
    monkeypatch.setattr(stream, "EXTREMES", ("ordinary", "zeros", "1e-30"))
    for one in stream.streams(["aaren", "gru"]):
        report = stream.act(stream.make_agent(one, 0), 3_200, 0)
        assert (report.wrong, report.findings) == (0, {})


def test_a_stream_counts_actions_out_of_bounds(monkeypatch):
    agent = stream.make_agent(stream.Stream("none", "torch"), 0)
    monkeypatch.setattr(agent, "act", lambda *given: np.full((stream.ROWS, 2), 51))
    assert stream.act(agent, 160, 0).wrong == 160


def test_extremes_are_finite_and_hold_every_kind():
    rng = np.random.default_rng(0)
    kinds = set()
    for _ in range(30):
        values, chosen = stream.extremes(rng, 3)
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
        kinds |= set(chosen)
    assert kinds == set(stream.EXTREMES)


def test_streams_cover_every_mixer_of_constant_size_in_both_libraries():
    from aaren_rl import mixers

    chosen = stream.streams()
    assert {one.mixer for one in chosen} == set(mixers.names()) - {"softmax"}
    assert {one.library for one in chosen if one.mixer == "aaren"} == {"NumPy", "torch"}
    with pytest.raises(InvalidInput, match="unknown mixer 'arren'"):
        stream.streams(["arren"])


# --- The command --------------------------------------------------------------------------------------------------


def test_a_table_shows_sums_and_faults(tmp_path):
    one, other = Row("one"), Row("other")
    one.add("one:1", [Finding("lost", "gone", "a"), Finding("lost", "gone", "b"), Finding("hangs", "late")])
    one.add("one:2", [Finding("lost", "gone", "c")])
    other.add("other:1", [])
    text = rows.table([one, other])
    assert [line.split()[:2] for line in text.splitlines()[1:4]] == [["one", "2"], ["other", "1"], ["together", "3"]]
    assert "one: 2 x lost, first in one:1: gone: a" in text
    rows.write(tmp_path / "a.json", "faults", [one, other], seed=4)
    written = json.loads((tmp_path / "a.json").read_text())
    expected = {"name": "one", "tried": 2, "lost": 2, "tracebacks": 0, "hangs": 1}
    assert expected.items() <= written["rows"][0].items()
    assert written["faults"][0]["count"] == 2
    assert rows.faulty([one, other])
    assert not rows.faulty([other])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"part": "fuzz", "inputs": 0}, "--inputs 0; expected at least 1"),
        ({"part": "faults", "only": "agent.json:1"}, "--only agent.json:1 is an input of fuzz"),
        ({"part": "faults", "operations": ("trainin",)}, "did you mean 'training'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, said):
    with pytest.raises(InvalidInput, match=said):
        Request(**options)


def test_an_input_that_does_not_exist_is_refused(tmp_path):
    fuzzer = fuzz.Fuzzer(tmp_path, 0)
    with pytest.raises(InvalidInput, match="did you mean 'agent.json'"):
        fuzzer.find("agent.jsn:1")
    with pytest.raises(InvalidInput, match="expected a format and a number"):
        fuzzer.find("agent.json:first")


def short(script, tmp_path, *words):
    """Rows of a short run of the command by name, and whether it found faults."""
    ran = script("stress", *words, "--json", "figures.json", "--jobs", 1)
    assert ran.returncode in (0, 1), ran.stderr
    assert "together" in ran.stdout
    written = json.loads((tmp_path / "figures.json").read_text())
    assert bool(written["faults"]) == bool(ran.returncode)
    return {row["name"]: row for row in written["rows"]}, written["faults"]


def test_a_short_run_of_faults(script, tmp_path):
    found, faults = short(script, tmp_path, "faults", "--kills", 4, "--operations", "training", "saving")
    assert found["kill: training"]["tried"] + found["kill: saving"]["tried"] == 4
    assert {row["tried"] for name, row in found.items() if not name.startswith("kill")} == {1}
    assert len(found) == 2 * len(ATTACKS)
    assert faults == []


def test_a_short_run_of_fuzz(script, tmp_path):
    found, faults = short(script, tmp_path, "fuzz", "--inputs", 200)
    assert faults == []
    assert set(found) == {one.name for one in FORMATS}
    assert sum(row["tried"] for row in found.values()) == 200
    # Some are read and some refused, so that both are put to the test.
    assert sum(row["read"] for row in found.values()) > 20
    assert sum(row["refused"] for row in found.values()) > 60


def test_a_short_run_of_streams(script, tmp_path):
    found, faults = short(script, tmp_path, "stream", "--steps", 1_600, "--mixers", "aaren", "fnet", "gru")
    assert set(found) == {"aaren, NumPy", "aaren, torch", "fnet, torch", "gru, NumPy", "gru, torch"}
    assert {row["tried"] for row in found.values()} == {1_600}
    assert all(row["steps_per_second"] > 0 for row in found.values())
    assert faults == []


def test_one_input_is_explained():
    said = explain(Request("fuzz"), "behaviour npz:3")
    assert said.startswith("behaviour npz:3: ")
    assert said.splitlines()[-1].startswith(("no fault", "fault: "))


def test_ctrl_c_prints_what_was_done_and_removes_the_folder(surroundings, tmp_path):
    running = subprocess.Popen(
        [sys.executable, STRESS, "stream", "--mixers", "none", "gru", "--steps", str(10**9)],
        cwd=tmp_path,
        env={**os.environ, **surroundings, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        shown = ""
        # The progress bar ends no line.
        while "agent" not in shown:
            assert running.poll() is None
            shown += running.stderr.read(1)
        time.sleep(0.5)
        running.send_signal(signal.SIGINT)
        out, _ = running.communicate(timeout=30)
    finally:
        running.kill()
    assert running.returncode == 130
    assert "none, torch" in out
    for place in (Path("/dev/shm"), tmp_path):
        assert not list(place.glob(f"aaren-stress-{running.pid}-*"))
    children = [one for one in Path("/proc").glob("[0-9]*/stat") if f" {running.pid} " in _read(one)]
    assert not children


def _read(path):
    try:
        return path.read_text()
    except OSError:
        return ""


def test_the_tests_that_the_docs_name_exist():
    """Every threat of docs/trust.md names what stops it and a test."""
    threats = (ROOT / "docs" / "trust.md").read_text().partition("## Threats")[2].partition("\n## ")[0]
    table = [line for line in threats.splitlines() if line.startswith("| ")][1:]
    assert len(table) > 30
    for line in table:
        _, threat, *said, named = line.split("|")[:-1]
        tests = re.findall(r"`(tests/\S+\.py)::(\w+)`", named)
        assert all(part.strip() for part in (threat, *said)), line
        assert tests, line
        for file, name in tests:
            assert f"def {name}(" in (ROOT / file).read_text(), f"{file} has no {name}"


def test_shares_sum_up_to_a_hundred():
    assert sum(one.share for one in FORMATS) == 100
    assert sum(one.share for one in OPERATIONS) == 100
