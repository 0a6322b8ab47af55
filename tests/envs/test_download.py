import hashlib
import io
import json
import os
import re
import resource
import shutil
import socket
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from aaren_rl.envs import download, partial
from aaren_rl.envs.download import (
    D4RL_HOST,
    MINARI_HOST,
    Unreachable,
    d4rl_folder,
    fetch_d4rl,
    fetch_minari,
    fetch_ogbench,
    ogbench_folder,
)
from aaren_rl.envs.readers import json_files
from aaren_rl.envs.readers.minari import is_local, local_folder
from aaren_rl.errors import DataError

NAME = "hopper_medium-v2.hdf5"
PARTIAL, RECORD = f".{NAME}.partial", f".{NAME}.partial.json"
WHOLE = [NAME, f"{NAME}.sha256"]
VERSION = {"ETag": '"first"', "Last-Modified": "Wed, 01 Jan 2020 00:00:00 GMT"}

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
        same = self.headers.get("If-Range") in (None, server.version.get("ETag"), server.version.get("Last-Modified"))
        if asked and server.ranges and (same or not server.heeds_version):
            start = int(asked[1])
            if start >= len(server.content):
                return self.send_error(416)
            self.send_response(206)
            start += server.misplaced
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        else:
            self.send_response(200)
        body = server.content[start:]
        for name, value in server.version.items():
            self.send_header(name, value)
        if server.says_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if send:
            self.wfile.write(body if server.cut_after is None else body[: server.cut_after])

    def log_message(self, *arguments):
        pass


@contextmanager
def site(
    content,
    ranges=True,
    missing=False,
    cut_after=None,
    says_length=True,
    hang_up=False,
    version=VERSION,
    heeds_version=True,
    misplaced=0,
):
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        server.content, server.ranges, server.missing, server.cut_after = content, ranges, missing, cut_after
        server.says_length, server.hang_up, server.asked = says_length, hang_up, []
        server.version, server.heeds_version, server.misplaced = version, heeds_version, misplaced
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


def put_partial(part, server, version='"first"', size=None):
    """A part of a file as an interrupted download leaves it."""
    d4rl_folder().mkdir(parents=True)
    (d4rl_folder() / PARTIAL).write_bytes(part)
    record = {"url": f"{server.host}/{NAME}", "version": version, "size": size or len(server.content)}
    (d4rl_folder() / RECORD).write_text(json.dumps(record))


@pytest.mark.parametrize("says_length", [True, False])
def test_whole_download(content, says_length):
    with site(content, says_length=says_length) as server:
        path = fetch_d4rl(NAME, server.host)
    assert path == d4rl_folder() / NAME
    assert path.read_bytes() == content
    assert kept() == WHOLE


def test_d4rl_files_of_all_folders_lie_in_one(content):
    with site(content) as server:
        path = fetch_d4rl(f"d4rl/{NAME}", server.host.removesuffix("/d4rl"))
    assert path == d4rl_folder() / NAME


def test_ogbench_files_are_checked_as_npz(content):
    packed = io.BytesIO()
    np.savez(packed, observations=np.zeros((5, 2)))
    with site(packed.getvalue()) as server:
        path = fetch_ogbench(NAME, server.host)
    assert path == ogbench_folder() / NAME
    assert np.load(path)["observations"].shape == (5, 2)
    path.unlink()
    with site(content) as server, pytest.raises(DataError, match="damaged or not what it should be.*nothing was kept"):
        fetch_ogbench(NAME, server.host)
    assert not path.exists()
    objects = io.BytesIO()
    np.savez(objects, observations=np.array([object()]))
    with site(objects.getvalue()) as server, pytest.raises(DataError, match="Python objects, which are never loaded"):
        fetch_ogbench(NAME, server.host)


def test_partial_is_gone_on_with(content):
    with site(content) as server:
        put_partial(content[:300_000], server)
        path = fetch_d4rl(NAME, server.host)
    assert server.asked == ["bytes=300000-"]
    assert path.read_bytes() == content
    assert kept() == WHOLE


def test_partial_that_is_whole_already_is_put_in_place(content):
    with site(content) as server:
        put_partial(content, server)
        assert fetch_d4rl(NAME, server.host).read_bytes() == content


def test_server_without_ranges_starts_over(content):
    with site(content, ranges=False) as server:
        put_partial(content[:300_000], server)
        assert fetch_d4rl(NAME, server.host).read_bytes() == content


@pytest.mark.parametrize("ranges", [True, False])
def test_second_try_completes_a_cut_download(content, ranges):
    with site(content, ranges=ranges, cut_after=700_000) as server:
        with pytest.raises(DataError, match=rf"broke off.* 700000 of {len(content)} bytes; run again"):
            fetch_d4rl(NAME, server.host)
        assert kept() == [PARTIAL, RECORD]
        assert (d4rl_folder() / PARTIAL).read_bytes() == content[:700_000]
        server.cut_after = None
        assert fetch_d4rl(NAME, server.host).read_bytes() == content
        assert server.asked[-1] == "bytes=700000-"
    assert kept() == WHOLE


@pytest.mark.parametrize("version", [VERSION, {"Last-Modified": VERSION["Last-Modified"]}], ids=["etag", "date"])
@pytest.mark.parametrize("heeds_version", [True, False])
def test_file_that_changed_meanwhile_is_never_mixed(content, version, heeds_version):
    other = bytes(255 - byte for byte in content)
    said = []
    with site(other, cut_after=300_000, version=version) as server:
        with pytest.raises(DataError, match="broke off"):
            fetch_d4rl(NAME, server.host)
        server.content, server.cut_after = content, None
        server.version = (
            {"ETag": '"second"'} if "ETag" in version else {"Last-Modified": "Thu, 02 Jan 2020 00:00:00 GMT"}
        )
        # Some hosts send the range whatever the version.
        server.heeds_version = heeds_version
        assert fetch_d4rl(NAME, server.host, said.append).read_bytes() == content
    assert any("loaded anew" in line for line in said)
    assert kept() == WHOLE


@pytest.mark.parametrize("version", [{}, {"ETag": 'W/"weak"'}], ids=["none", "weak"])
def test_part_without_a_version_is_not_gone_on_with(content, version):
    with site(content, cut_after=300_000, version=version) as server:
        with pytest.raises(DataError, match="broke off"):
            fetch_d4rl(NAME, server.host)
        server.cut_after = None
        assert fetch_d4rl(NAME, server.host).read_bytes() == content
        assert server.asked == [None, None]


@pytest.mark.parametrize("record", [None, "", "[]", '{"url": "elsewhere", "version": "\\"first\\""}', "{"])
def test_part_whose_record_is_missing_or_another_is_dropped(content, record):
    with site(content) as server:
        put_partial(b"x" * 300_000, server)
        if record is None:
            (d4rl_folder() / RECORD).unlink()
        else:
            (d4rl_folder() / RECORD).write_text(record)
        assert fetch_d4rl(NAME, server.host).read_bytes() == content
    assert kept() == WHOLE


def test_part_that_is_longer_than_the_file_is_dropped(content):
    with site(content) as server:
        put_partial(content + b"more", server)
        assert fetch_d4rl(NAME, server.host).read_bytes() == content


def test_range_that_begins_elsewhere_is_not_appended(content):
    with site(content, misplaced=100) as server:
        put_partial(content[:300_000], server)
        assert fetch_d4rl(NAME, server.host).read_bytes() == content


def test_digest_is_kept_and_another_file_of_the_name_is_noticed(content, tmp_path):
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["observations"] = np.zeros((10, 5))
    other, said = (tmp_path / "other.hdf5").read_bytes(), []
    with site(content) as server:
        fetch_d4rl(NAME, server.host, said.append)
        fetch_d4rl(NAME, server.host, said.append)
        first, second = hashlib.sha256(content).hexdigest(), hashlib.sha256(other).hexdigest()
        assert (d4rl_folder() / f"{NAME}.sha256").read_text() == f"{first}  {NAME}\n"
        assert len(said) == 2
        assert all(first in line for line in said)
        server.content = other
        fetch_d4rl(NAME, server.host, said.append)
    assert f"its sha256 was {first} and is {second}" in said[2]
    assert (d4rl_folder() / f"{NAME}.sha256").read_text() == f"{second}  {NAME}\n"


def test_file_that_reaches_outside_is_not_put_in_place(tmp_path):
    with h5py.File(tmp_path / "bad.hdf5", "w") as file:
        file["observations"] = h5py.ExternalLink("/etc/passwd", "/")
    bad = (tmp_path / "bad.hdf5").read_bytes()
    with site(bad) as server, pytest.raises(DataError, match=r"'/observations' is an external link.*nothing was kept"):
        fetch_d4rl(NAME, server.host)
    assert kept() == []


def test_file_beyond_the_disk_is_refused_before_it_comes(content, monkeypatch):
    monkeypatch.setattr(partial.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1_000}))
    with site(content) as server, pytest.raises(DataError, match=rf"needs {len(content)} bytes more, 1000 are free"):
        fetch_d4rl(NAME, server.host)


def test_disk_that_fills_up_is_one_error_and_the_next_try_goes_on(content):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with site(content) as server:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, limits[1]))
        try:
            with pytest.raises(DataError, match="does not fit into .*run again to go on"):
                fetch_d4rl(NAME, server.host)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert fetch_d4rl(NAME, server.host).read_bytes() == content
        assert server.asked[-1].startswith("bytes=")


def test_two_downloads_of_a_file_are_one(content):
    said = []
    with site(content) as server, ThreadPoolExecutor() as pool:
        paths = list(pool.map(lambda _: fetch_d4rl(NAME, server.host, said.append), range(3)))
        assert [path.read_bytes() for path in paths] == [content] * 3
        assert server.asked == [None]
    assert sum("downloaded meanwhile" in line for line in said) == 2
    assert kept() == WHOLE


def test_hosts_are_asked_by_https():
    assert D4RL_HOST.startswith("https://")
    assert MINARI_HOST.startswith("https://")


def test_redirection_from_https_to_http_is_refused(monkeypatch):
    class Answer:
        url, closed = "http://elsewhere/file", False

        def close(self):
            Answer.closed = True

    monkeypatch.setattr(urllib.request, "urlopen", lambda request, timeout: Answer())
    with pytest.raises(Unreachable, match=r"redirects to http://elsewhere/file, which is not https"):
        fetch_d4rl(NAME, "https://host")
    assert Answer.closed


def test_missing_file_on_the_server(content):
    with site(content, missing=True) as server, pytest.raises(DataError, match=f"{NAME} answered 404") as error:
        fetch_d4rl(NAME, server.host)
    assert not isinstance(error.value, Unreachable)
    assert kept() == []


def test_web_page_in_place_of_the_file():
    page = b"<html>moved</html>"
    with (
        site(page) as server,
        pytest.raises(DataError, match=r"not what it should be.*cannot be read as HDF5.*nothing was kept"),
    ):
        fetch_d4rl(NAME, server.host)
    assert kept() == []


def test_file_that_was_cut_on_the_server(content):
    with (
        site(content[:900_000]) as server,
        pytest.raises(DataError, match=r"is damaged or not what it should be.*nothing was kept"),
    ):
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


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that answers and gives the folder that the test fills: a real Minari dataset."""
    given = tmp_path / "given"
    with monkeypatch.context() as there:
        there.setenv("MINARI_DATASETS_PATH", str(tmp_path / "hub"))
        buffer = EpisodeBuffer(
            observations=np.zeros((4, 2)),
            actions=np.zeros((3, 1)),
            rewards=[0.0] * 3,
            terminations=[False] * 3,
            truncations=[False, False, True],
            infos={},
        )
        spaces = {"observation_space": gym.spaces.Box(-9, 9, (2,)), "action_space": gym.spaces.Box(-1, 1, (1,))}
        minari.create_dataset_from_buffers("tests/set-v0", [buffer], **spaces)
        shutil.copytree(local_folder("tests/set-v0"), given)

    def give(dataset_id, force_download):
        shutil.copytree(given, local_folder(dataset_id), symlinks=True, dirs_exist_ok=True)

    monkeypatch.setattr(download, "_check_reachable", lambda url: None)
    monkeypatch.setattr(minari, "download_dataset", give)
    return given


def change_metadata(folder, **changes):
    path = folder / "data" / "metadata.json"
    metadata = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in metadata.items() if value is not None}))


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_minari_dataset_is_put_in_place_with_its_digests(hub):
    said = []
    folder = fetch_minari("tests/set-v0", said.append)
    assert folder == local_folder("tests/set-v0")
    assert is_local("tests/set-v0")
    for name in ("data/main_data.hdf5", "data/metadata.json"):
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert f"{digest}  {name}\n" in (folder / "SHA256SUMS").read_text()
    assert "2 files" in said[0]
    assert minari.load_dataset("tests/set-v0").total_steps == 3


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
@pytest.mark.parametrize("missing", ["observation_space", "action_space"])
def test_download_runs_no_code_that_the_data_name(hub, tmp_path, monkeypatch, missing):
    """Minari itself makes the recorded environment where a space is missing, by an entry point that data choose."""
    (tmp_path / "hostile.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit\n")
    monkeypatch.syspath_prepend(tmp_path)
    spec = gym.envs.registration.EnvSpec("Hostile-v0", entry_point="hostile:Env")
    change_metadata(hub, env_spec=spec.to_json(), **{missing: None})
    fetch_minari("tests/set-v0")
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
@pytest.mark.parametrize("kind", ["external link", "symbolic link", "empty", "no metadata", "text", "list", "huge"])
def test_minari_dataset_that_may_not_be_read_is_not_put_in_place(hub, kind, tmp_path, monkeypatch):
    metadata, message = hub / "data" / "metadata.json", "without metadata that can be read"
    if kind == "external link":
        with h5py.File(hub / "data" / "main_data.hdf5", "a") as file:
            file["episode_0/infos/x"] = h5py.ExternalLink("/etc/passwd", "/")
        message = "'/episode_0/infos/x' is an external link"
    elif kind == "symbolic link":
        os.symlink("/etc/passwd", hub / "data" / "more.hdf5")
        message = "a link; such datasets are not read"
    elif kind == "empty":
        change_metadata(hub, total_steps=0)
        message = "an empty dataset"
    elif kind == "no metadata":
        metadata.unlink()
    elif kind == "huge":
        monkeypatch.setattr(json_files, "LARGEST", 100)
        message = "has more than 100 bytes"
    else:
        metadata.write_text("<html>" if kind == "text" else "[1]")
    with pytest.raises(DataError, match=message):
        fetch_minari("tests/set-v0")
    assert not local_folder("tests/set-v0").exists()


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_two_downloads_of_a_minari_dataset_are_one(hub):
    said = []
    with ThreadPoolExecutor() as pool:
        folders = list(pool.map(lambda _: fetch_minari("tests/set-v0", said.append), range(2)))
    assert folders == [local_folder("tests/set-v0")] * 2
    assert sum("downloaded meanwhile" in line for line in said) == 1


def test_folder_is_d4rls_own(monkeypatch, tmp_path):
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "here"))
    assert d4rl_folder() == tmp_path / "here"
    monkeypatch.delenv("D4RL_DATASET_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert d4rl_folder() == tmp_path / ".d4rl" / "datasets"
