"""Times d3rlpy's Decision Transformer in an interpreter with d3rlpy, so it imports nothing of aaren_rl.

The sizes come as JSON in the first argument. After a first line {"versions": ...} it reads lines
{"do": "step" | "update", "calls": n} and answers each with {"seconds": of one call}.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from typing import Any

import numpy as np


def main() -> None:
    """Answers until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    # d3rlpy logs to the standard output, where only answers belong.
    os.dup2(2, 1)
    sizes = json.loads(sys.argv[1])
    d3rlpy: Any = importlib.import_module("d3rlpy")
    # After d3rlpy, so that an interpreter without it fails at once.
    import torch

    torch.set_num_threads(sizes["threads"])
    algorithm = _algorithm(d3rlpy, sizes)
    actor = algorithm.as_stateful_wrapper(target_return=3_600.0)
    observations = np.random.default_rng(0).standard_normal((1_000, sizes["observation"]), dtype=np.float32)
    dataset = _dataset(d3rlpy, sizes)
    steps = 0

    def step() -> None:
        nonlocal steps
        actor.predict(observations[steps % 1_000], 1.0)
        steps += 1

    def update() -> None:
        algorithm.update(dataset.sample_trajectory_batch(sizes["batch"], length=sizes["context"]))

    work = {"step": step, "update": update}
    versions = {"d3rlpy": d3rlpy.__version__, "torch": torch.__version__}
    print(json.dumps({"versions": versions}), file=answers)
    for line in sys.stdin:
        order = json.loads(line)
        began = time.perf_counter()
        for _ in range(order["calls"]):
            work[order["do"]]()
        print(json.dumps({"seconds": (time.perf_counter() - began) / order["calls"]}), file=answers)


def _algorithm(d3rlpy: Any, sizes: dict[str, Any]) -> Any:
    config = d3rlpy.algos.DecisionTransformerConfig(
        batch_size=sizes["batch"],
        context_size=sizes["context"],
        max_timestep=sizes["episode"],
        learning_rate=sizes["learning_rate"],
        # One linear layer, as the others embed an observation.
        encoder_factory=d3rlpy.models.VectorEncoderFactory([sizes["width"]], exclude_last_activation=True),
        optim_factory=d3rlpy.optimizers.AdamWFactory(weight_decay=sizes["weight_decay"], clip_grad_norm=sizes["clip"]),
        num_heads=sizes["heads"],
        num_layers=sizes["blocks"],
        attn_dropout=sizes["dropout"],
        resid_dropout=sizes["dropout"],
        embed_dropout=sizes["dropout"],
        activation_type="relu",
    )
    algorithm = config.create(device="cpu")
    algorithm.create_impl((sizes["observation"],), sizes["action"])
    return algorithm


def _dataset(d3rlpy: Any, sizes: dict[str, Any]) -> Any:
    steps, rng = sizes["steps"], np.random.default_rng(0)
    ends = np.arange(1, steps + 1) % sizes["episode"] == 0
    return d3rlpy.dataset.MDPDataset(
        rng.standard_normal((steps, sizes["observation"]), dtype=np.float32),
        rng.uniform(-1, 1, (steps, sizes["action"])).astype(np.float32),
        rng.uniform(0, 4, steps).astype(np.float32),
        terminals=np.zeros(steps, dtype=np.float32),
        timeouts=ends.astype(np.float32),
    )


if __name__ == "__main__":
    main()
