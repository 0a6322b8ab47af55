import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tiny_training
from tiny_training import checkpoints, make_run, train

from aaren_rl.errors import CheckpointError
from aaren_rl.training.lock import LOCK, Locked, locked

HOLD = """
import sys
from pathlib import Path
from aaren_rl.training.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds a folder until it is killed, and the folder."""
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        # Elsewhere, so that the installed package is imported.
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process, folder
    process.kill()
    process.communicate()


def test_a_second_process_is_told_who_holds_the_folder(holder):
    process, folder = holder
    expected = f"is in training already, by process {process.pid} on {socket.gethostname()}, this machine, since 20"
    with pytest.raises(Locked, match=expected), locked(folder):
        pass
    # A new training, and a resumed one, alike.
    with pytest.raises(Locked, match=expected):
        train(folder, updates=5)
    assert sorted(path.name for path in folder.iterdir()) == [LOCK]


def test_the_lock_of_a_killed_process_is_taken_over_and_that_is_said(holder):
    process, folder = holder
    process.send_signal(signal.SIGKILL)
    process.wait()
    lines = []
    run = make_run(folder, updates=5)
    run.say = lines.append
    run.run(progress=False)
    (line,) = lines
    assert f"was left locked by process {process.pid} on {socket.gethostname()}" in line
    assert "which is gone; the lock is taken over" in line
    assert not (folder / LOCK).exists()


@pytest.mark.parametrize(
    ("holder", "expected"),
    [
        ({"pid": os.getpid(), "host": socket.gethostname(), "started": 1.0, "since": "then"}, "its number has another"),
        ({"pid": 1, "host": socket.gethostname(), "started": 1.0, "since": "then"}, "its number has another process"),
        ({"pid": 7, "host": "elsewhere", "since": "then"}, "process 7 on elsewhere, since then"),
        ({"pid": "x\x1b[2J", "host": None}, r"process x\x1b[2J on None"),
    ],
)
def test_a_lock_that_nobody_holds_is_stale_whatever_it_names(tmp_path, holder, expected):
    (tmp_path / LOCK).write_text(json.dumps(holder))
    lines = []
    with locked(tmp_path, lines.append):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    (line,) = lines
    assert expected in line
    assert "\x1b" not in line


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"[" * 5000])
def test_a_lock_file_of_nonsense_is_taken_over(tmp_path, content):
    (tmp_path / LOCK).write_bytes(content)
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["host"] == socket.gethostname()
    assert not (tmp_path / LOCK).exists()


def test_threads_of_one_process_exclude_each_other(tmp_path):
    refused = []

    def enter():
        try:
            with locked(tmp_path):
                pass
        except Locked as error:
            refused.append(str(error))

    with locked(tmp_path):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        # The thread that holds it may hold it again.
        with locked(tmp_path):
            pass
        assert (tmp_path / LOCK).exists()
    (message,) = refused
    assert "in another thread of this process" in message
    enter()
    assert len(refused) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_error_frees_the_lock_and_leaves_no_empty_folder(tmp_path, error):
    folder = tmp_path / "runs" / "new"
    with pytest.raises(error), locked(folder):
        raise error
    assert list(tmp_path.iterdir()) == []
    with locked(folder):
        (folder / "kept").write_text("")
    assert [path.name for path in folder.iterdir()] == ["kept"]


def test_a_folder_that_must_be_new_is_made_by_one_only(tmp_path):
    with locked(tmp_path / "run", new=True):
        pass
    (tmp_path / "run").mkdir()
    with pytest.raises(Locked, match="exists; give this run another folder"), locked(tmp_path / "run", new=True):
        pass


def test_a_folder_that_cannot_be_made_is_one_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot be locked for training"), locked(tmp_path / "file" / "run"):
        pass


def test_one_of_two_trainings_in_a_folder_trains_and_the_other_is_refused(tmp_path):
    folder = tmp_path / "run"
    script = [sys.executable, str(Path(tiny_training.__file__)), str(folder), "100000"]
    first = subprocess.Popen(script, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not (folder / "checkpoints").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        second = subprocess.run(script, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
        assert second.returncode == 1
        assert f"is in training already, by process {first.pid}" in second.stderr
        first.send_signal(signal.SIGINT)
        assert first.wait(60) == 3
    finally:
        first.kill()
        first.communicate()
    assert not (folder / LOCK).exists()
    # What it had trained is there, and is gone on with.
    updates = checkpoints(folder)[-1] + 5
    resumed = make_run(folder, updates=updates, **tiny_training.LONG)
    resumed.restore()
    resumed.run(progress=False)
    assert checkpoints(folder) == [updates]
