import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import TOKEN, HubServer
from hypothesis import settings

from aaren_rl.envs import collect
from aaren_rl.envs.catalogue import find

SCRIPTS = Path(__file__).parents[1] / "scripts"

TINY = [
    *("--env", "hopper-medium", "--source", "bundled", "--device", "cpu", "--width", "16", "--blocks", "1"),
    *("--updates", "6", "--batch-size", "4", "--episodes", "2", "--check-episodes", "1"),
    *("--evaluate-every", "3", "--checkpoint-every", "3", "--log-every", "1"),
]


# Hypothesis fails examples that take over 200 ms, as any may on a busy machine.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell without job control starts what is in its background so; tests send Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def surroundings(tmp_path_factory):
    """Environment variables of a machine with some 1,500 steps of hopper-medium and without a network."""
    root = tmp_path_factory.mktemp("data")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{probe.getsockname()[1]}"
    values = {
        "MINARI_DATASETS_PATH": str(root / "minari"),
        "D4RL_DATASET_DIR": str(root / "d4rl"),
        "HF_ENDPOINT": nowhere,
        "http_proxy": nowhere,
        "https_proxy": nowhere,
        "no_proxy": "",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", values["MINARI_DATASETS_PATH"])
        collect.collect(find("hopper-medium"), 1_500, progress=False)
    return values


@pytest.fixture
def tiny():
    """Arguments of the shortest training there is."""
    return list(TINY)


@pytest.fixture
def script(surroundings, tmp_path):
    """Runs a script as a user does, in a process of its own."""

    def run(name, *arguments, **variables):
        return subprocess.run(
            [sys.executable, str(SCRIPTS / f"{name}.py"), *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, **surroundings, **variables},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.fixture
def command(surroundings, tmp_path, monkeypatch, capsys):
    """Runs a script's main in this process, which spares the imports: (exit status, stdout, stderr)."""

    def run(main, *arguments):
        for name, value in surroundings.items():
            monkeypatch.setenv(name, value)
        # urllib reads the proxies once, into this.
        monkeypatch.setattr(urllib.request, "_opener", None)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hugging Face Hub on this machine, to which this process is logged in, and an empty cache."""
    with HubServer() as server:
        values = {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_HUB_DISABLE_XET": True,
        }
        for name, value in values.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        # Its client takes proxies from the environment when it is made.
        huggingface_hub.close_session()
        huggingface_hub.get_session()
        yield server
        huggingface_hub.close_session()


@pytest.fixture(scope="session")
def trained(surroundings, tmp_path_factory):
    """The finished process and the folder of one tiny run."""
    working = tmp_path_factory.mktemp("trained")
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "train.py"), *TINY, "--run", "run"],
        cwd=working,
        env={**os.environ, **surroundings},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done, working / "run"


@pytest.fixture
def run_folder(trained, tmp_path):
    """A copy of the tiny run, to change at will."""
    return shutil.copytree(trained[1], tmp_path / "copy")
