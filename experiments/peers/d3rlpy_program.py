"""Trains an algorithm of d3rlpy and acts with it, in an interpreter with d3rlpy, so it imports nothing of aaren_rl.

The settings come as JSON in the first argument. After a first line {"versions": ...} it answers each of these lines:

- {"do": "train", "updates": n, "seconds": s}: goes on until n updates were made in all or s seconds were spent in all;
  answers with both, and the parameters of what acts.
- {"do": "keep"}: remembers the weights as they are. {"do": "restore"}: takes those back.
- {"do": "act", "observations": [...], "rewards": [...], "starts": [...], "target": R}: answers with the actions; rows
  that start an episode have a true in `starts`.
"""

from __future__ import annotations

import copy
import ctypes
import importlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

FOREVER = 10**9
"""Updates to ask d3rlpy for; how many are made is decided from update to update."""


class EndOfInput(Exception):
    """Nobody gives orders any more."""


class Server:
    """Answers orders before and between the updates of a training.

    Args:
        algorithm: to train.
        answers: file of the answers.
        acts: chooses the actions of an order.
    """

    def __init__(self, algorithm: Any, answers: Any, acts: Callable[[dict[str, Any]], Any]) -> None:
        self.algorithm, self.answers, self.acts = algorithm, answers, acts
        self.updates, self.seconds = 0, 0.0
        self.began: float | None = None
        self.kept: dict[str, Any] = {}

    def after_update(self, algorithm: Any, epoch: int, updates: int) -> None:
        """What d3rlpy calls after every update."""
        self.updates = updates
        now = time.perf_counter()
        if self.began is None:
            # The clock starts behind the first update: what comes before it, scalers and networks, is no training.
            self.began = now
        spent = self.seconds + now - self.began
        if updates < self.order["updates"] and spent < self.order["seconds"]:
            return
        self.seconds = spent
        acting = getattr(algorithm.impl, "policy", None) or algorithm.impl.modules.transformer
        parameters = sum(parameter.numel() for parameter in acting.parameters())
        self.answer({"updates": updates, "seconds": spent, "parameters": parameters})
        self.serve()

    def serve(self) -> None:
        """Answers until there is an order to train."""
        for line in sys.stdin:
            order = json.loads(line)
            if order["do"] == "train":
                self.order = {"updates": order["updates"], "seconds": order["seconds"] or math.inf}
                if self.updates:
                    self.began = time.perf_counter()
                return
            if order["do"] == "act":
                self.answer({"actions": np.asarray(self.acts(order)).tolist()})
                continue
            networks = _networks(self.algorithm)
            if order["do"] == "keep":
                self.kept = {name: copy.deepcopy(network.state_dict()) for name, network in networks.items()}
            else:
                for name, weights in self.kept.items():
                    networks[name].load_state_dict(weights)
            self.answer({})
        raise EndOfInput

    def answer(self, content: dict[str, Any]) -> None:
        """Writes a line."""
        print(json.dumps(content), file=self.answers)


def main() -> None:
    """Answers until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    # d3rlpy logs to the standard output, where only answers belong.
    os.dup2(2, 1)
    settings = json.loads(sys.argv[1])
    d3rlpy: Any = importlib.import_module("d3rlpy")
    # After d3rlpy, so that an interpreter without it fails at once.
    import torch

    _end_with_the_parent()
    torch.set_num_threads(1)
    d3rlpy.seed(settings["seed"])
    algorithm = _algorithm(d3rlpy, settings["algorithm"], settings["options"])
    acts = _windows(algorithm) if settings["algorithm"] == "DecisionTransformer" else _policy(algorithm)
    server = Server(algorithm, answers, acts)
    server.answer({"versions": {"d3rlpy": d3rlpy.__version__, "torch": torch.__version__}})
    dataset = _dataset(d3rlpy, settings["data"])
    try:
        server.serve()
        algorithm.fit(
            dataset,
            n_steps=FOREVER,
            n_steps_per_epoch=1_000,
            logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
            show_progress=False,
            save_interval=FOREVER,
            callback=server.after_update,
        )
    except EndOfInput:
        pass


def _dataset(d3rlpy: Any, file: str) -> Any:
    with np.load(file, allow_pickle=False) as arrays:
        return d3rlpy.dataset.MDPDataset(
            arrays["observations"],
            arrays["actions"],
            arrays["rewards"],
            terminals=arrays["terminated"].astype(np.float32),
            timeouts=arrays["truncated"].astype(np.float32),
            # Else it would take actions at their bounds for choices.
            action_space=d3rlpy.ActionSpace.CONTINUOUS,
        )


def _algorithm(d3rlpy: Any, name: str, options: dict[str, Any]) -> Any:
    """An algorithm with d3rlpy's default settings, and the scalers and networks of its reproductions.

    Its reproductions choose more: for ReBRAC the weights of its penalties by dataset, for IQL a rate that falls by a
    cosine, for the Decision Transformer a warm-up of 10,000 updates. `options` sets any of that.
    """
    config = getattr(d3rlpy.algos, f"{name}Config")
    scaled = {"observation_scaler": d3rlpy.preprocessing.StandardObservationScaler()}
    layers = d3rlpy.models.VectorEncoderFactory
    defaults: dict[str, dict[str, Any]] = {
        "BC": {**scaled},
        "TD3PlusBC": {**scaled},
        "IQL": {"reward_scaler": d3rlpy.preprocessing.ReturnBasedRewardScaler(multiplier=1000.0)},
        "ReBRAC": {
            **scaled,
            "actor_encoder_factory": layers([256, 256, 256]),
            "critic_encoder_factory": layers([256, 256, 256], use_layer_norm=True),
        },
        "DecisionTransformer": {
            **scaled,
            "reward_scaler": d3rlpy.preprocessing.MultiplyRewardScaler(0.001),
            "encoder_factory": layers([128], exclude_last_activation=True),
            "optim_factory": d3rlpy.optimizers.AdamWFactory(weight_decay=1e-4, clip_grad_norm=0.25),
        },
    }
    return config(**{**defaults[name], **options}).create(device="cpu")


def _end_with_the_parent() -> None:
    """Has Linux end this process with the one that started it, which a training would outlive."""
    if sys.platform == "linux":
        death_of_the_parent = 1
        ctypes.CDLL(None).prctl(death_of_the_parent, signal.SIGKILL)


def _networks(algorithm: Any) -> dict[str, Any]:
    return {name: part for name, part in vars(algorithm.impl.modules).items() if hasattr(part, "load_state_dict")}


def _policy(algorithm: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda order: algorithm.predict(np.array(order["observations"], dtype=np.float32))


def _windows(algorithm: Any) -> Callable[[dict[str, Any]], Any]:
    """One of d3rlpy's wrappers for each row, which hold its last steps."""
    rows: list[Any] = []

    def act(order: dict[str, Any]) -> list[Any]:
        if len(rows) != len(order["starts"]) or all(order["starts"]):
            # From now on with the present weights and target.
            rows[:] = [algorithm.as_stateful_wrapper(target_return=order["target"]) for _ in order["starts"]]
        actions = []
        parts = zip(rows, order["observations"], order["rewards"], order["starts"], strict=True)
        for wrapper, observation, reward, starts in parts:
            if starts:
                wrapper.reset()
            actions.append(wrapper.predict(np.array(observation, dtype=np.float32), 0.0 if starts else reward))
        return actions

    return act


if __name__ == "__main__":
    main()
