import socket
import urllib.request

import pytest


@pytest.fixture(autouse=True)
def own_data_folders(tmp_path, monkeypatch):
    """No test reads or writes the user's own datasets, and none leaves files in the working directory."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "d4rl"))
    monkeypatch.setenv("OGBENCH_DATASET_DIR", str(tmp_path / "ogbench"))
    (tmp_path / "working").mkdir()
    monkeypatch.chdir(tmp_path / "working")


@pytest.fixture
def closed_port():
    """A port of this machine where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def no_network(monkeypatch, closed_port):
    """Every host is refused at once: the proxy that all requests are sent to does not exist."""
    nowhere = f"http://127.0.0.1:{closed_port}"
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "HF_ENDPOINT"):
        monkeypatch.setenv(name, nowhere)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    # urllib reads the proxies once, into this.
    monkeypatch.setattr(urllib.request, "_opener", None)


@pytest.fixture
def local_network(monkeypatch):
    """Requests to this machine pass by any proxy of the surroundings."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr(urllib.request, "_opener", None)
