import re
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import h5py
import numpy as np
import pytest

from aaren_rl.envs.download import Unreachable, d4rl_folder, fetch_d4rl, fetch_minari
from aaren_rl.errors import DataError

NAME = "hopper_medium-v2.hdf5"
PARTIAL = f".{NAME}.partial"

pytestmark = pytest.mark.usefixtures("local_network")


class Site(BaseHTTPRequestHandler):
    """Serves one file, as the server's attributes say."""

    def do_HEAD(self):
        self.answer(send=False)

    def do_GET(self):
        self.server.asked.append(self.headers.get("Range"))
        self.answer(send=True)

    def answer(self, send):
        server = self.server
        if server.hang_up and send:
            return self.connection.close()
        if server.missing or self.path != f"/d4rl/{NAME}":
            return self.send_error(404)
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked and server.ranges:
            start = int(asked[1])
            if start >= len(server.content):
                return self.send_error(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        else:
            self.send_response(200)
        body = server.content[start:]
        if server.says_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if send:
            self.wfile.write(body if server.cut_after is None else body[: server.cut_after])

    def log_message(self, *arguments):
        pass


@contextmanager
def site(content, ranges=True, missing=False, cut_after=None, says_length=True, hang_up=False):
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        server.content, server.ranges, server.missing, server.cut_after = content, ranges, missing, cut_after
        server.says_length, server.hang_up, server.asked = says_length, hang_up, []
        server.host = f"http://127.0.0.1:{server.server_port}/d4rl"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("served") / NAME
    with h5py.File(path, "w") as file:
        file["observations"] = np.random.default_rng(0).normal(size=(50_000, 5))
    return path.read_bytes()


def kept():
    return sorted(path.name for path in d4rl_folder().iterdir())


def put_partial(content):
    d4rl_folder().mkdir(parents=True)
    (d4rl_folder() / PARTIAL).write_bytes(content)


@pytest.mark.parametrize("says_length", [True, False])
def test_whole_download(content, says_length):
    with site(content, says_length=says_length) as server:
        path = fetch_d4rl(NAME, server.host)
    assert path == d4rl_folder() / NAME
    assert path.read_bytes() == content
    assert kept() == [NAME]


def test_partial_is_gone_on_with(content):
    put_partial(content[:300_000])
    with site(content) as server:
        path = fetch_d4rl(NAME, server.host)
    assert server.asked == ["bytes=300000-"]
    assert path.read_bytes() == content
    assert kept() == [NAME]


def test_partial_that_is_whole_already_is_put_in_place(content):
    put_partial(content)
    with site(content) as server:
        assert fetch_d4rl(NAME, server.host).read_bytes() == content


def test_server_without_ranges_starts_over(content):
    put_partial(b"x" * 300_000)
    with site(content, ranges=False) as server:
        assert fetch_d4rl(NAME, server.host).read_bytes() == content


@pytest.mark.parametrize("ranges", [True, False])
def test_second_try_completes_a_cut_download(content, ranges):
    with site(content, ranges=ranges, cut_after=700_000) as server:
        with pytest.raises(DataError, match=rf"broke off.* 700000 of {len(content)} bytes; run again"):
            fetch_d4rl(NAME, server.host)
        assert kept() == [PARTIAL]
        assert (d4rl_folder() / PARTIAL).read_bytes() == content[:700_000]
        server.cut_after = None
        assert fetch_d4rl(NAME, server.host).read_bytes() == content
        assert server.asked[-1] == "bytes=700000-"
    assert kept() == [NAME]


def test_missing_file_on_the_server(content):
    with site(content, missing=True) as server, pytest.raises(DataError, match=f"{NAME} answered 404") as error:
        fetch_d4rl(NAME, server.host)
    assert not isinstance(error.value, Unreachable)
    assert kept() == []


def test_web_page_in_place_of_the_file():
    page = b"<html>moved</html>"
    with site(page) as server, pytest.raises(DataError, match=r"is not an HDF5 file.*nothing was kept"):
        fetch_d4rl(NAME, server.host)
    assert kept() == []


def test_file_that_was_cut_on_the_server(content):
    with site(content[:900_000]) as server, pytest.raises(DataError, match=r"damaged.*nothing was kept"):
        fetch_d4rl(NAME, server.host)
    assert kept() == []


def test_server_that_hangs_up_before_the_first_byte(content):
    with site(content, hang_up=True) as server, pytest.raises(DataError, match="broke off"):
        fetch_d4rl(NAME, server.host)


def test_an_earlier_file_stays_until_the_new_one_is_whole(content):
    d4rl_folder().mkdir(parents=True)
    (d4rl_folder() / NAME).write_bytes(b"earlier")
    with site(content, cut_after=10) as server:
        with pytest.raises(DataError, match="broke off"):
            fetch_d4rl(NAME, server.host)
        assert (d4rl_folder() / NAME).read_bytes() == b"earlier"
        server.cut_after = None
        assert fetch_d4rl(NAME, server.host).read_bytes() == content


def within_five_seconds(call):
    began = time.perf_counter()
    with pytest.raises(Unreachable) as error:
        call()
    assert time.perf_counter() - began < 5
    return str(error.value)


def test_no_server_is_known_within_five_seconds(closed_port):
    host = f"http://127.0.0.1:{closed_port}"
    assert host in within_five_seconds(lambda: fetch_d4rl(NAME, host))
    assert not d4rl_folder().exists()


def test_silent_server_is_known_within_five_seconds():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        host = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert host in within_five_seconds(lambda: fetch_d4rl(NAME, host))


def test_minari_without_its_hub_is_known_within_five_seconds(monkeypatch, closed_port, tmp_path):
    host = f"http://127.0.0.1:{closed_port}"
    monkeypatch.setenv("HF_ENDPOINT", host)
    assert host in within_five_seconds(lambda: fetch_minari("mujoco/hopper/medium-v0"))
    assert not list((tmp_path / "minari").rglob("*.hdf5"))


def test_silent_hub_is_known_within_five_seconds(monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        within_five_seconds(lambda: fetch_minari("mujoco/hopper/medium-v0"))


def test_folder_is_d4rls_own(monkeypatch, tmp_path):
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "here"))
    assert d4rl_folder() == tmp_path / "here"
    monkeypatch.delenv("D4RL_DATASET_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert d4rl_folder() == tmp_path / ".d4rl" / "datasets"
