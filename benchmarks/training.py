"""Time of an update in training: beside the peers, over long episodes, and of its sampling."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

import d3rlpy_peer
import hugging_face
import setting
from aaren_rl.data.sampler import Sampler
from aaren_rl.data.segment import Segment
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.experiments import measuring
from aaren_rl.experiments.measuring import SCALES, Chart, Report, Row, Side, compare, timed
from aaren_rl.training.learner import SingleLearner
from aaren_rl.training.run import Run

NEEDS = ("transformers",)
STEPS = 1_000_000
"""Steps of the made-up data that batches are drawn from."""

CALLS = 2
"""Updates in a round."""

EPISODES_IN_BATCH = 4
TOKENS = (3_000, 10_000, 30_000)
SOFTMAX_TOKENS = (300, 1_000, 3_000)
"""Tokens of softmax attention in the chart; longer episodes would take most of the benchmark's time."""

CUDA_UPDATES = 500, 3_500
"""Updates of a short and of a long run; their difference gives the time of an update."""


def measure(report: Report, peer: d3rlpy_peer.D3rlpy | None) -> None:
    """Measures all rows on training."""
    _against_peers(report, peer)
    _whole_episodes(report)
    _by_tokens(report)
    _on_cuda(report)


def _against_peers(report: Report, peer: d3rlpy_peer.D3rlpy | None) -> None:
    data = setting.make_trajectories(STEPS)
    sampler = Sampler(data, np.arange(data.episodes), setting.TRAINING.batch_size, setting.CONTEXT)
    theirs = hugging_face.HuggingFace()
    theirs.model.train()
    sides: dict[str, Side] = {
        layout: timed(our_update(sampler, layout=layout), CALLS) for layout in ("interleaved", "fused")
    }
    # It draws from our sampler, which costs less than the collator of its example.
    sides["hugging-face"] = timed(_update(theirs.loss, theirs.model.parameters(), sampler), CALLS)
    sides["sampling"] = timed(sampler.sample, 20 * CALLS)
    if peer is not None:
        sides["d3rlpy"] = peer.side("update", CALLS)
    taken = measuring.alternate(sides)
    for name in ("hugging-face", "d3rlpy"):
        for layout in ("interleaved", "fused"):
            if name in taken:
                row = f"update {layout} vs {name}"
                report.add(compare(row, taken[layout], taken[name], taken[layout], "theirs / ours", "ms"))
            else:
                report.leave_out(f"update {layout} vs {name}", d3rlpy_peer.LEFT_OUT)
    sampling, update = taken["sampling"], taken["interleaved"]
    report.add(compare("sampling vs update", sampling, sampling, update, "sampling / interleaved update", "us"))


def _whole_episodes(report: Report) -> None:
    sides = {mixer: _episode_side(setting.EPISODE, EPISODES_IN_BATCH, mixer) for mixer in ("aaren", "softmax")}
    taken = measuring.alternate(sides)
    name = "whole-episode update vs softmax"
    report.add(compare(name, taken["aaren"], taken["softmax"], taken["aaren"], "softmax / ours", "ms"))


def _by_tokens(report: Report) -> None:
    """Measures updates on one episode each, which differ in length only."""
    taken = measuring.alternate({str(tokens): _episode_side(tokens // 3, 1, "aaren") for tokens in TOKENS})
    lines: dict[str, list[tuple[float, float]]] = {"aaren": [], "softmax": []}
    shortest = [seconds / TOKENS[0] for seconds in taken[str(TOKENS[0])]]
    for tokens in TOKENS:
        updates = taken[str(tokens)]
        per_token = [seconds / tokens for seconds in updates]
        of = f"time per token / at {TOKENS[0]}"
        report.add(compare(f"update at {tokens} tokens", updates, per_token, shortest, of, "ms"))
        lines["aaren"].append((tokens, statistics.median(updates) * SCALES["ms"]))
    for tokens in SOFTMAX_TOKENS:
        updates = measuring.alternate({"softmax": _episode_side(tokens // 3, 1, "softmax")})["softmax"]
        lines["softmax"].append((tokens, statistics.median(updates) * SCALES["ms"]))
    report.charts.append(Chart("update-by-tokens", "tokens in an episode", "milliseconds per update", lines))


def _on_cuda(report: Report) -> None:
    name = "100,000 updates at the paper's sizes"
    if not torch.cuda.is_available():
        report.leave_out(name, "no CUDA device")
        return
    data = setting.make_trajectories(STEPS)
    short, long = (_train_on_cuda(data, updates) for updates in CUDA_UPDATES)
    rate = (long - short) / (CUDA_UPDATES[1] - CUDA_UPDATES[0])
    report.add(Row(name, long + rate * (100_000 - CUDA_UPDATES[1]), "s"))


def _train_on_cuda(data: Trajectories, updates: int) -> float:
    """Seconds that a `Run` spends in so many updates."""
    with TemporaryDirectory() as folder:
        config = replace(setting.TRAINING, updates=updates, evaluate_every=updates, checkpoint_every=updates)
        learner = SingleLearner(setting.make_model(), data, config, "cuda")
        run = Run(learner, setting.make_card(), Path(folder) / "run")
        return run.run(progress=False)[0].seconds


def _episode_side(steps: int, batch_size: int, mixer: str) -> Side:
    """A side of updates on batches of whole episodes of this many steps."""
    data = setting.make_trajectories(8 * steps, steps)
    return timed(our_update(Sampler(data, np.arange(data.episodes), batch_size, "episode"), mixer=mixer))


def our_update(sampler: Sampler, **changes: str) -> Callable[[], None]:
    """An update of a model of the common size, with another layout or mixer where one is named."""
    model = setting.make_model(**changes).train()
    return _update(lambda segment: model.loss(segment)[0], model.parameters(), sampler)


def _update(
    loss: Callable[[Segment], Tensor], parameters: Iterable[nn.Parameter], sampler: Sampler
) -> Callable[[], None]:
    """A whole update as `SingleLearner` does it, the same on both sides: sample, forward, backward, clip, AdamW."""
    weights, schedule = list(parameters), setting.TRAINING
    optimiser = torch.optim.AdamW(weights, lr=schedule.learning_rate, weight_decay=schedule.weight_decay, fused=True)

    def update() -> None:
        optimiser.zero_grad(set_to_none=True)
        loss(sampler.sample()).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, schedule.clip)
        optimiser.step()

    return update
