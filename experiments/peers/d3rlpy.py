"""Agents of d3rlpy, trained by d3rlpy on the same data and evaluated by the same protocol as this project's."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode

from aaren_rl.actor import Target
from aaren_rl.checkpoint import read_json
from aaren_rl.data.spaces import Box
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.envs import sources
from aaren_rl.envs.dataset import Dataset, Say
from aaren_rl.envs.evaluation import Protocol, evaluate, result, write_result
from aaren_rl.errors import InvalidInput, unknown_name
from aaren_rl.experiments import config as run_config
from aaren_rl.experiments.config import CONFIG, RunConfig
from aaren_rl.experiments.console import describe
from aaren_rl.experiments.peers import worker
from aaren_rl.experiments.peers.worker import Worker
from aaren_rl.experiments.settings import from_table
from aaren_rl.experiments.train import CHECK_SEED
from aaren_rl.folders import replace_file
from aaren_rl.training.lock import locked
from aaren_rl.training.run import Interrupted
from aaren_rl.training.signals import Stopped, stop_signal

PEER = "peer.json"

ALGORITHMS = ("BC", "TD3PlusBC", "IQL", "ReBRAC", "DecisionTransformer")
"""Those of d3rlpy for continuous actions that are known here."""


@dataclass(frozen=True)
class Peer:
    """An agent of d3rlpy.

    Raises:
        InvalidInput: the algorithm is not among them, or the seconds are not positive.
    """

    algorithm: str
    """One of `ALGORITHMS`, with d3rlpy's default settings and the scalers and networks of its reproductions."""
    seconds: float | None = None
    """Wall-clock of updates to train for, in place of the updates of the configuration."""
    target: float | None = None
    """Return to ask the Decision Transformer for; by default the best one in the data."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further fields of the algorithm's configuration in d3rlpy."""

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise unknown_name("algorithm of d3rlpy", self.algorithm, ALGORITHMS)
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise InvalidInput(f"seconds is {self.seconds}; expected a positive number")


class PeerActor:
    """Acts as the worker's algorithm.

    Args:
        trained: the worker.
        space: of the environment's actions, which d3rlpy has between -1 and 1.
    """

    def __init__(self, trained: Worker, space: Box) -> None:
        self.worker, self.space = trained, space

    def reset(self, target_return: Target | None, num_envs: int, autoreset_mode: AutoresetMode) -> None:
        """See `Actor`."""
        self._target = target_return
        self._starts = np.ones(num_envs, dtype=np.bool_)
        self._ended = np.zeros(num_envs, dtype=np.bool_)
        self._waits_for_reset = autoreset_mode == AutoresetMode.NEXT_STEP

    def act(
        self,
        observation: npt.NDArray[Any],
        reward: npt.NDArray[Any] | None,
        terminated: npt.NDArray[np.bool_],
        truncated: npt.NDArray[np.bool_],
    ) -> npt.NDArray[Any]:
        """See `Actor`."""
        done = terminated | truncated
        # In NEXT_STEP mode a row shows its last observation before the first of the next episode.
        starts = self._starts | (self._ended if self._waits_for_reset else done)
        self._starts, self._ended = np.zeros_like(done), done
        order = {
            "do": "act",
            "observations": observation.tolist(),
            "rewards": np.zeros(len(done)).tolist() if reward is None else reward.tolist(),
            "starts": starts.tolist(),
            "target": self._target,
        }
        return from_unit(np.array(self.worker.ask(order)["actions"]), self.space)


def to_unit(actions: npt.NDArray[Any], space: Box) -> npt.NDArray[Any]:
    """Actions between -1 and 1, as d3rlpy takes them."""
    low, high = np.array(space.low), np.array(space.high)
    # What has one value alone is in the middle.
    width = np.where(high > low, high - low, 1.0)
    return np.asarray(np.where(high > low, (actions - low) / width * 2 - 1, 0.0), np.float32)


def from_unit(actions: npt.NDArray[Any], space: Box) -> npt.NDArray[Any]:
    """Actions in the environment's bounds."""
    low, high = np.array(space.low), np.array(space.high)
    return np.asarray(low + (np.clip(actions, -1, 1) + 1) / 2 * (high - low), np.float32)


def train(config: RunConfig, peer: Peer, python: Path, say: Say) -> dict[str, Any]:
    """Trains an agent of d3rlpy, evaluates it, and writes result.json into the run's folder.

    Nothing else is saved: an interrupted training begins anew.

    Args:
        config: data, seed and evaluation of the run, and its number of updates; nothing else of it counts, the target
            neither.
        peer: the agent.
        python: interpreter with d3rlpy.
        say: takes lines on what is done.

    Returns:
        What result.json holds: the agent after the last update, and under "best" the one whose evaluation in training
        was best; "curve" has those evaluations.

    Raises:
        InvalidInput: the interpreter cannot run d3rlpy, the data are not flat observations and flat bounded actions, or
            another process holds the folder.
        DataError: the data cannot be had.
        Interrupted: Ctrl-C or SIGTERM.
    """
    assert config.run is not None
    if config.data == "disk":
        raise InvalidInput("d3rlpy keeps its data in memory; set data to auto or memory")
    dataset = sources.load(config.env, config.source, run_config.reading(config), say)
    space = _check(dataset)
    # The peer first: a folder with a configuration and without a peer would be another run's.
    replace_file(config.run / PEER, json.dumps(dataclasses.asdict(peer)) + "\n")
    run_config.save(dataclasses.replace(run_config.located(config), run=None, resume=None), config.run / CONFIG)
    try:
        with locked(config.run, say), stop_signal() as stop, stop.interrupts():
            return _train(config, peer, python, dataset, space, say)
    except Stopped:
        raise Interrupted("stopped; what d3rlpy trained is not kept, this run begins anew") from None


def saved_peer(folder: Path) -> Peer | None:
    """The peer of a run's folder; None if there is none.

    Raises:
        CheckpointError: it cannot be read.
    """
    file = folder / PEER
    return from_table(Peer, read_json(file), str(file)) if file.exists() else None


def _train(config: RunConfig, peer: Peer, python: Path, dataset: Dataset, space: Box, say: Say) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.npz"
        np.savez(file, **_arrays(dataset.trajectories, space))
        options = dict(peer.options)
        if peer.algorithm == "DecisionTransformer":
            options.setdefault("max_timestep", int(dataset.trajectories.lengths.max()))
        settings = {
            "algorithm": peer.algorithm,
            "options": options,
            "seed": config.training.seed,
            "data": str(file),
        }
        with worker.start(python, Path(__file__).with_name("d3rlpy_program.py"), settings) as trained:
            return _trained(config, peer, dataset, trained, PeerActor(trained, space), say)


def _trained(
    config: RunConfig, peer: Peer, dataset: Dataset, trained: Worker, actor: PeerActor, say: Say
) -> dict[str, Any]:
    assert dataset.environment is not None
    assert config.run is not None
    windows = peer.algorithm == "DecisionTransformer"
    best_return = float(dataset.trajectories.returns.max())
    target = (best_return if peer.target is None else peer.target) if windows else None
    rows = config.instances, config.processes
    about_reference = dataset.reference, *rows, dataset.reference_reason
    protocol = Protocol(dataset.environment, config.episodes, 0, target, *about_reference)
    check = dataclasses.replace(protocol, episodes=max(1, config.check_episodes), seed=CHECK_SEED)
    total = peer.seconds or config.training.updates
    pieces = max(1, config.training.updates // config.training.evaluate_every) if config.check_episodes else 1
    curve: list[dict[str, float]] = []
    best: dict[str, float] | None = None
    for piece in range(1, pieces + 1):
        until = total * piece / pieces
        limits = (
            {"updates": round(until), "seconds": None} if peer.seconds is None else {"updates": 1e9, "seconds": until}
        )
        made = trained.ask({"do": "train", **limits})
        if config.check_episodes:
            point = {**made, "return": float(evaluate(actor, check).returns.mean())}
            say(f"{made['updates']} updates in {made['seconds']:.0f} s: return {point['return']:.6g}")
            curve.append(point)
            if best is None or point["return"] > best["return"]:
                best = point
                trained.ask({"do": "keep"})
    about = {
        "checkpoint": "last",
        "source": dataset.source,
        "dataset": dataset.id,
        "mixer": f"d3rlpy {peer.algorithm}",
        "parameters": made["parameters"],
        "acting": f"window:{peer.options.get('context_size', 20)}" if windows else "stateless",
        "data_sha256": dataset.trajectories.sha256,
        "updates": made["updates"],
    }
    outcome = result(evaluate(actor, protocol), protocol, **about)
    outcome["versions"] |= trained.versions
    outcome |= {"train_seconds": made["seconds"], "curve": curve, "peer": dataclasses.asdict(peer)}
    say(describe("last", outcome))
    if best is not None and best["updates"] != made["updates"]:
        trained.ask({"do": "restore"})
        kept = {**about, "checkpoint": "best", "updates": best["updates"]}
        outcome["best"] = result(evaluate(actor, protocol), protocol, **kept)
        say(describe("best", outcome["best"]))
    write_result(config.run, outcome)
    return outcome


def _check(dataset: Dataset) -> Box:
    """The space of the actions, of data that d3rlpy's algorithms take here.

    Raises:
        InvalidInput: there is no environment, observations are not flat numbers, or actions no bounded ones.
    """
    seen, done = dataset.observation_space, dataset.action_space
    flat = isinstance(seen, Box) and len(seen.shape) == 1
    if (
        dataset.environment is None
        or not flat
        or not isinstance(done, Box)
        or not done.is_bounded
        or len(done.shape) != 1
    ):
        raise InvalidInput(
            f"agents of d3rlpy race on flat observations, flat bounded actions and an environment; {dataset.name} has "
            f"observations in {seen}, actions in {done} and the environment {dataset.environment}; leave it out"
        )
    return done


def _arrays(trajectories: Trajectories, space: Box) -> dict[str, Any]:
    """What d3rlpy learns from: one row a step, with flags at the ends of episodes."""
    ends = trajectories.offsets[1:] - 1
    terminated = np.zeros(trajectories.steps, np.bool_)
    terminated[ends] = trajectories.terminated
    truncated = np.zeros(trajectories.steps, np.bool_)
    truncated[ends] = ~trajectories.terminated
    return {
        "observations": np.asarray(trajectories.observations, np.float32),
        "actions": to_unit(np.asarray(trajectories.actions), space),
        "rewards": np.asarray(trajectories.rewards, np.float32),
        "terminated": terminated,
        "truncated": truncated,
    }
