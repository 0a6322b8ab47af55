import os
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest

from aaren_rl import folders
from aaren_rl.errors import CheckpointError, DataError
from aaren_rl.folders import alone_in, clean_up, replace_file, whole_folder


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def fail_to_write(folder, reason, error):
    with whole_folder(folder, error) as partial:
        (partial / "b").write_text("second")
        raise reason


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "parent" / "data"
    with whole_folder(folder, DataError) as partial:
        (partial / "a").write_text("first")
    return folder


def test_a_folder_takes_its_name_when_it_is_whole(tmp_path):
    folder = tmp_path / "new" / "data"
    with whole_folder(folder, DataError) as partial:
        (partial / "a").write_text("first")
        assert not folder.exists()
    assert contents(folder) == {"a": "first"}
    assert list(folder.parent.iterdir()) == [folder]


def test_a_whole_folder_replaces_the_one_before(folder):
    with whole_folder(folder, DataError) as partial:
        (partial / "b").write_text("second")
        assert contents(folder) == {"a": "first"}
    assert contents(folder) == {"b": "second"}
    assert list(folder.parent.iterdir()) == [folder]


def test_a_folder_that_may_not_be_replaced_stays(folder):
    with pytest.raises(DataError, match="could not be written"), whole_folder(folder, DataError, replace=False) as new:
        (new / "b").write_text("second")
    assert contents(folder) == {"a": "first"}
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("error", [DataError, CheckpointError])
def test_a_failing_write_raises_the_error_that_is_asked_for(folder, error):
    with pytest.raises(error, match="disk full; nothing was changed there"):
        fail_to_write(folder, OSError("disk full"), error)
    assert contents(folder) == {"a": "first"}
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_other_errors_pass_and_leave_the_old_folder(folder, error):
    with pytest.raises(error):
        fail_to_write(folder, error(), DataError)
    assert contents(folder) == {"a": "first"}
    assert list(folder.parent.iterdir()) == [folder]


@pytest.fixture(scope="module")
def dead():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_clean_up_undoes_what_a_killed_write_left(folder, dead):
    parent = folder.parent
    (parent / f".data.partial-{dead}-3@{socket.gethostname()}").mkdir()
    (parent / f".data.old-{dead}").mkdir()
    (parent / f".result.json.partial-{dead}").write_text("{")
    shutil.copytree(folder, parent / f".lost.old-{dead}")
    clean_up(parent)
    assert sorted(path.name for path in parent.iterdir()) == ["data", "lost"]
    assert contents(parent / "lost") == contents(folder) == {"a": "first"}


def test_clean_up_leaves_what_living_processes_write(folder):
    parent = folder.parent
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        kept = [f".data.partial-{process.pid}", f".data.old-{os.getpid()}-9", ".data.partial-7@another-machine"]
        for name in (*kept, ".partial-notes", ".data.partial-", ".data.old-x"):
            (parent / name).mkdir()
        before = sorted(parent.iterdir())
        clean_up(parent)
        assert sorted(parent.iterdir()) == before
    finally:
        process.communicate(b"\n")
    clean_up(parent)
    assert not (parent / kept[0]).exists()


@pytest.mark.parametrize("name", [".data.partial-{pid}", ".data.partial-{pid}-1@another-machine"])
def test_clean_up_recognises_a_number_that_went_to_another_process(folder, name):
    """What lies there is older than the process; of another machine, older than a day."""
    path = folder.parent / name.format(pid=os.getpid())
    path.mkdir()
    long_ago = time.time() - 7 * 24 * 3600
    os.utime(path, (long_ago, long_ago))
    clean_up(folder.parent)
    assert not path.exists()


@pytest.mark.parametrize("write", ["folder", "file"])
def test_the_next_write_cleans_up(folder, dead, write):
    left = folder.parent / f".other.partial-{dead}"
    left.mkdir()
    if write == "file":
        replace_file(folder.parent / "a.json", "{}")
    else:
        with whole_folder(folder, DataError):
            pass
    assert not left.exists()


@pytest.mark.parametrize("exchanges", [True, False])
def test_threads_that_write_the_same_name_do_not_meet(tmp_path, exchanges, monkeypatch):
    if not exchanges:
        monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    failures = []

    def write(number):
        try:
            for turn in range(20):
                with whole_folder(tmp_path / "data", DataError) as partial:
                    for name in "ab":
                        (partial / name).write_text(str(number))
                if turn % 5 == 0:
                    # So that some find the name free.
                    shutil.rmtree(tmp_path / "data", ignore_errors=True)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    found = contents(tmp_path / "data")
    assert found.keys() == {"a", "b"}
    assert found["a"] == found["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


REPLACING = """
import sys
from pathlib import Path
from aaren_rl.errors import DataError
from aaren_rl.folders import whole_folder
folder = Path(sys.argv[1])
while True:
    with whole_folder(folder, DataError) as partial:
        for name in "abc":
            (partial / name).write_text("whole")
"""


def test_a_name_that_is_replaced_is_never_gone(folder):
    """Another process replaces the folder over and over, until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", REPLACING, str(folder)], cwd=folder.parent.parent)
    try:
        deadline = time.monotonic() + 60
        while not (folder / "c").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
        until = time.monotonic() + 1.0
        looked = 0
        while time.monotonic() < until:
            assert folder.is_dir()
            looked += 1
        assert looked > 1000
    finally:
        process.kill()
        process.wait()
    assert sorted(contents(folder)) == ["a", "b", "c"]
    clean_up(folder.parent)
    assert list(folder.parent.iterdir()) == [folder]


def test_without_an_exchange_of_names_two_renames_do(folder, monkeypatch):
    monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    with whole_folder(folder, DataError) as partial:
        (partial / "b").write_text("second")
    assert contents(folder) == {"b": "second"}
    assert list(folder.parent.iterdir()) == [folder]


def test_one_at_a_time_is_alone_in_a_folder(tmp_path):
    inside, most = [0], [0]

    def enter():
        for _ in range(30):
            with alone_in(tmp_path):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.0005)
                inside[0] -= 1

    threads = [threading.Thread(target=enter) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_a_file_is_replaced_whole(tmp_path):
    for text in ("first", "second"):
        replace_file(tmp_path / "a.json", text)
        assert contents(tmp_path) == {"a.json": text}
