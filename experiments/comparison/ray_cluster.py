"""The pool of a Ray cluster, which trains the runs of a comparison on any of its nodes."""

from __future__ import annotations

import dataclasses
import logging
import os
import secrets
import signal
import socket
import sys
import time
import traceback
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from aaren_rl import __version__
from aaren_rl.envs.dataset import Say
from aaren_rl.errors import AarenError, InvalidInput
from aaren_rl.experiments import config as run_config
from aaren_rl.experiments import console
from aaren_rl.experiments.comparison import running
from aaren_rl.experiments.comparison.matrix import Run
from aaren_rl.experiments.comparison.processes import LOG, SUCCESS, train_run
from aaren_rl.folders import replace_file
from aaren_rl.training.lock import Locked, locked

ADDRESS = "RAY_ADDRESS"
"""Environment variable with the address of a cluster's head, as 10.0.0.1:6379."""

RETRIES = 10
"""Times that Ray starts a run again after its worker, or its node, died."""

LEASE = 120.0
"""Seconds to wait for the lock of a worker that died: a file server keeps that of a lost node for a while."""

LAG = 60.0
"""Seconds after which a network file system shows what another node wrote."""

REACH = 10.0
"""Seconds to wait for an answer of a cluster's head."""

OBJECTS = 80 * 2**20
"""Bytes of shared memory of a local cluster: runs hand files on, not objects. Ray takes no less."""

SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "RAY_task_oom_retries": str(RETRIES)}
"""Variables of Ray where they are not set: no reports to its makers; workers of a cluster that is started here run at
the priority of `--jobs`, where Ray's 15 would starve them on a busy machine; and as many restarts after a kill by Ray's
memory monitor, which counts apart, as after other losses."""

VARIABLES = ("MINARI_DATASETS_PATH", "D4RL_DATASET_DIR")
"""Folders of data, which workers look for where this process does."""


class RayCluster:
    """A pool of the workers of a Ray cluster: the one that RAY_ADDRESS names, otherwise one started on this machine.

    Ray restarts the run of a worker that died, on any node, and it goes on from its newest checkpoint. All nodes have
    to see the runs' folder at the same path. The cluster is joined, or started, with the first run.

    Args:
        out: folder of the runs.
        cpus: CPUs that a run reserves; it computes with one thread whatever their number.
        gpus: GPUs that a run reserves, or a part of one; with 0 it sees none.
        say: receives a line on the cluster.
        python: interpreter with d3rlpy, for peers, on every node.

    Raises:
        InvalidInput: Ray is missing, or a number does not fit.
    """

    queues = True

    def __init__(self, out: Path, cpus: float, gpus: float, say: Say, python: Path | None = None) -> None:
        if cpus <= 0 or gpus < 0:
            raise InvalidInput(f"--cpus {cpus:g} and --gpus {gpus:g}; expected above 0, and at least 0")
        try:
            import ray
        except ImportError as error:
            raise InvalidInput(f"--on ray needs Ray ({error}); in a clone: .venv/bin/pip install '.[ray]'") from error
        self._ray: Any = ray
        self._out, self._cpus, self._gpus, self._say, self._python = out.absolute(), cpus, gpus, say, python
        self._token = self._out / f".ray-{secrets.token_hex(8)}"
        self._running: dict[Any, Run] = {}
        self._task: Any = None

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            # It ends the tasks of this program, and a cluster that was started here.
            self._ray.shutdown()
        with suppress(OSError):
            self._token.unlink(missing_ok=True)

    @property
    def capacity(self) -> int:
        """See `Pool`."""
        self._connect()
        return max(1, _fits(self._ray.cluster_resources(), self._cpus, self._gpus))

    @property
    def per_machine(self) -> int:
        """See `Pool`."""
        self._connect()
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return max([1, *(_fits(resources, self._cpus, self._gpus) for resources in nodes)])

    @property
    def training(self) -> int:
        """See `Pool`."""
        return len(self._running)

    def start(self, run: Run) -> None:
        """See `Pool`."""
        self._connect()
        run.folder.mkdir(parents=True, exist_ok=True)
        # Workers have working directories of their own.
        config = dataclasses.replace(run_config.located(run.config), run=run.folder.absolute())
        checked = run.folder.absolute(), self._token, __version__
        variables = {name: os.path.abspath(os.environ[name]) for name in VARIABLES if os.environ.get(name)}
        if not self._gpus:
            variables["CUDA_VISIBLE_DEVICES"] = ""
        self._running[self._task.remote(config, run.peer, self._python, *checked, variables)] = run

    def ended(self, timeout: float) -> list[tuple[Run, str]]:
        """See `Pool`.

        Raises:
            InvalidInput: a node does not see the runs' folder, or has another version of this package.
        """
        if not self._running:
            time.sleep(timeout)
            return []
        ready, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=timeout)
        return [(run := self._running.pop(one), self._how(one, run)) for one in ready]

    def stop(self, runs: Collection[Run] | None = None) -> None:
        """See `Pool`."""
        for one, run in self._running.items():
            if runs is None or run in runs:
                # It raises KeyboardInterrupt there, or what handles Ctrl-C handles it. A run that waits is dropped.
                self._ray.cancel(one, force=False)

    def _how(self, one: Any, run: Run) -> str:
        """How a run ended."""
        errors = self._ray.exceptions
        try:
            how: str = self._ray.get(one)
        except errors.RayTaskError as error:
            if isinstance(error.cause, AarenError):
                raise error.cause from None
            return f"an error on its node ({str(error).strip().splitlines()[-1]})"
        except errors.TaskCancelledError:
            return "no start"
        except errors.RayError as error:
            said = str(error).strip().splitlines() or [type(error).__name__]
            return f"its worker lost {RETRIES + 1} times ({type(error).__name__}: {said[0]})"
        if how == SUCCESS:
            _await_result(run)
        return how

    def _connect(self) -> None:
        if self._task is not None:
            return
        ray, address = self._ray, os.environ.get(ADDRESS) or "local"
        if address.startswith("ray://"):
            raise InvalidInput(
                f"{ADDRESS} is {address}, of a Ray client; run the command on a machine of the cluster, with the "
                "address of its head as 10.0.0.1:6379, since it has to see the runs' folder"
            )
        _check_address(address)
        started = {"include_dashboard": False, "object_store_memory": OBJECTS} if address == "local" else {}
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        # Ray takes SIGTERM for itself.
        before = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **started)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InvalidInput(f"{ADDRESS} is {address}, and no cluster can be joined there: {error}") from error
        finally:
            signal.signal(signal.SIGTERM, before)
        options = {"num_cpus": self._cpus, "num_gpus": self._gpus, "max_calls": 1, "max_retries": RETRIES}
        self._task = ray.remote(**options)(_train)
        self._out.mkdir(parents=True, exist_ok=True)
        replace_file(self._token, f"{self._token.name}\n")
        self._describe(address)

    def _describe(self, address: str) -> None:
        found = self._ray.cluster_resources()
        size = f"{found.get('CPU', 0):g} CPUs, {found.get('GPU', 0):g} GPUs"
        if address == "local":
            self._say(f"ray: started a cluster on this machine, {size}; {ADDRESS} would name another")
        else:
            nodes = sum(node["Alive"] for node in self._ray.nodes())
            self._say(f"ray: joined the cluster at {address}, {nodes} nodes, {size}; all have to see {self._out}")
        if not _fits(found, self._cpus, self._gpus):
            asked = f"a run reserves {self._cpus:g} CPUs and {self._gpus:g} GPUs, and the cluster has {size}"
            if address == "local":
                raise InvalidInput(f"{asked}; pass smaller --cpus and --gpus")
            self._say(f"warning: {asked}; runs wait until there are more")


def _check_address(address: str) -> None:
    """Refuses an address where nothing answers, for which Ray would wait for many minutes.

    Raises:
        InvalidInput: it is one, or no address.
    """
    if address in ("local", "auto"):
        return
    host, colon, port = address.rpartition(":")
    try:
        if not colon:
            raise ValueError("it has no port")
        with socket.create_connection((host.strip("[]"), int(port)), timeout=REACH):
            pass
    except (OSError, ValueError, OverflowError) as error:
        raise InvalidInput(
            f"{ADDRESS} is {address}, and nothing answers there ({error}); expected the address of a cluster's head as "
            "10.0.0.1:6379, or no address, to start a cluster on this machine"
        ) from error


def _fits(resources: dict[str, float], cpus: float, gpus: float) -> int:
    """Number of runs that fit into resources."""
    counts = [resources.get("CPU", 0.0) / cpus, *([resources.get("GPU", 0.0) / gpus] if gpus else [])]
    return int(min(counts))


def _await_result(run: Run) -> None:
    """Waits until the result of a run shows here."""
    deadline = time.monotonic() + LAG
    while time.monotonic() < deadline:
        with suppress(AarenError):
            if running.outcome(run) is not None:
                return
        time.sleep(0.5)


def _train(
    config: run_config.RunConfig,
    peer: Any,
    python: Path | None,
    folder: Path,
    token: Path,
    version: str,
    variables: dict[str, str],
) -> str:
    """Trains a run on a node of the cluster, and says how it ended.

    Raises:
        InvalidInput: the node does not see the runs' folder, or has another version of this package.
    """
    node = socket.gethostname()
    if version != __version__:
        raise InvalidInput(
            f"node {node} has aaren-rl {__version__}, and this machine {version}; install the same on both"
        )
    if not token.is_file():
        raise InvalidInput(
            f"node {node} does not see {token}, which this machine wrote; the folder of the runs has to lie on storage "
            "that all nodes mount at the same path, pass such a one as --out"
        )
    os.environ.update(variables)
    with ExitStack() as stack:
        stack.enter_context(_output_into(folder / LOG))
        try:
            console.run(lambda: stack.enter_context(_held(folder)))
            train_run(config, peer, python)
        except SystemExit as left:
            return f"exit status {left.code}"
        except KeyboardInterrupt:
            return "exit status 130"
        except Exception:
            traceback.print_exc()
            return "exit status 1"
    return SUCCESS


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Holds the lock of a run's folder; waits for that of a worker that died before.

    Raises:
        Locked: another holds it all the while.
    """
    deadline = time.monotonic() + LEASE
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(folder))
                break
            except Locked:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1.0)
        yield


@contextmanager
def _output_into(log: Path) -> Iterator[None]:
    """Appends what this process and its children print to a file."""
    kept = os.dup(1), os.dup(2)
    try:
        with log.open("a", encoding="utf-8") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        yield
        sys.stdout.flush()
    finally:
        for number, copy in enumerate(kept, 1):
            os.dup2(copy, number)
            os.close(copy)
