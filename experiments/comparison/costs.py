"""Costs of the agents of a comparison in training and in acting, measured in turns."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch

from aaren_rl.agents import DecisionAgent
from aaren_rl.checkpoint import load_agent, read_json
from aaren_rl.data.packed import map_packed
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.envs import sources
from aaren_rl.envs.dataset import Say
from aaren_rl.errors import DataError
from aaren_rl.experiments import config as run_config
from aaren_rl.experiments.comparison.matrix import Run
from aaren_rl.experiments.comparison.scores import Comparison
from aaren_rl.experiments.comparison.table import grid, mean_in_words
from aaren_rl.experiments.config import CONFIG, DATA, RunConfig, keeping, reading
from aaren_rl.experiments.console import device_named
from aaren_rl.experiments.measuring import SCALES, Side, alternate, machine, timed
from aaren_rl.folders import replace_file
from aaren_rl.mixers import Memory
from aaren_rl.training.learner import SingleLearner
from aaren_rl.training.log import read_metrics
from aaren_rl.training.run import Interrupted
from aaren_rl.training.run import Run as TrainingRun

FILE = "costs.json"

ROUNDS = 5
"""Rounds of a measurement, after one to warm up; every agent has a turn in each."""

UPDATES = 6
"""Timed updates of a turn. As many come before them untimed, in which a GPU records its graphs."""

STEP = 1_000
"""Step of an episode up to which an agent acts."""

STEPS_PER_TURN = 20
"""Timed steps of a turn in an episode of `STEP` steps; fewer in proportion in a shorter one."""


@dataclass(frozen=True)
class Spread:
    """Median of a figure over the rounds, with the lowest and the highest round."""

    median: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Cost:
    """Costs of one agent.

    Attributes:
        sequences_per_second: segments trained on in a second.
        milliseconds_per_step: time of `DecisionAgent.act` in one environment, over the steps up to `step`.
        step: `STEP`, or the longest episode that the agent can act in.
        state_bytes: bytes of the state after that step.
        early_state_bytes: bytes of the state after a tenth of these steps.
        memory: content of the state: a summary of constant size, a window of past steps, or all of them.
    """

    sequences_per_second: Spread
    milliseconds_per_step: Spread
    step: int
    state_bytes: int
    early_state_bytes: int
    memory: Memory


@dataclass(frozen=True)
class Costs:
    """Costs of all agents, and how they were measured.

    Attributes:
        agents: costs by the agent's name.
        configurations: settings of the runs that influence costs, by the agent's name.
        machine: description by `aaren_rl.experiments.measuring.machine`.
        measured: data, devices, rounds and steps.
    """

    agents: dict[str, Cost]
    configurations: dict[str, dict[str, Any]]
    machine: dict[str, Any]
    measured: dict[str, Any]

    def save(self, file: Path) -> None:
        """Writes a JSON file."""
        agents = {
            name: {**dataclasses.asdict(cost), "configuration": self.configurations[name]}
            for name, cost in self.agents.items()
        }
        content = {"machine": self.machine, "measured": self.measured, "agents": agents}
        replace_file(file, json.dumps(content, indent=2) + "\n")

    @classmethod
    def load(cls, file: Path) -> Costs:
        """Reads what `save` wrote.

        Raises:
            CheckpointError: it cannot be read.
            DataError: it holds something else.
        """
        content = read_json(file)
        agents, configurations = {}, {}
        try:
            for name, figures in content["agents"].items():
                configurations[name] = figures.pop("configuration")
                spreads = {key: Spread(**value) for key, value in figures.items() if isinstance(value, dict)}
                agents[name] = Cost(**{**figures, **spreads})
            return cls(agents, configurations, content["machine"], content["measured"])
        except (AttributeError, KeyError, TypeError) as error:
            raise DataError(f"{file} holds no costs as this version writes them: {error!r}; delete it") from error


def measured(comparison: Comparison, runs: Iterable[Run], out: Path, say: Say) -> Costs:
    """Costs of the agents of a comparison: read from costs.json, or measured now and written there.

    Args:
        comparison: scores of the agents.
        runs: all runs of the comparison.
        out: folder of costs.json.
        say: receives lines on the measurement.

    Raises:
        DataError: the agents have no finished run on the same dataset and seed, the data cannot be loaded, or
            costs.json holds something else.
        CheckpointError: an agent or costs.json cannot be read.
        Interrupted: Ctrl-C or SIGTERM.
    """
    if not comparison.last.common:
        raise DataError(
            "no costs: the agents shown have no finished run on the same dataset and seed; finish more runs, or choose "
            "agents with --only"
        )
    # All agents train on one dataset, since sequences of others cost more or less.
    place = comparison.last.common[0]
    chosen = {run.agent: run for run in runs if (run.dataset, run.seed) == place and run.agent in comparison.agents}
    configs = {agent: run_config.load(run.folder / CONFIG) for agent, run in chosen.items()}
    file = out / FILE
    if file.exists():
        saved = Costs.load(file)
        missing = [agent for agent in configs if saved.configurations.get(agent) != _configuration(configs[agent])]
        if not missing:
            say(f"costs: those in {file} stand; delete it to measure anew")
            return dataclasses.replace(saved, agents={agent: saved.agents[agent] for agent in configs})
        say(f"costs: {file} has none of {', '.join(missing)} as they are now; measuring all agents anew")
    say(f"costs: measuring {len(configs)} agents in turns, which takes minutes; leave the machine alone meanwhile")
    try:
        costs = _measure(configs, {agent: run.folder / "last" for agent, run in chosen.items()}, out, say)
    except Interrupted as error:
        raise Interrupted("stopped measuring costs, of which nothing is kept; all runs and the table stand") from error
    costs.save(file)
    return costs


def to_markdown(comparison: Comparison, costs: Costs, command: str) -> str:
    """The table of costs, and how they were measured.

    Args:
        comparison: scores of the agents.
        costs: costs of the same agents.
        command: command that measured them.
    """
    lines = []
    for agent, cost in costs.agents.items():
        early = f", {cost.early_state_bytes:,} at step {cost.step // 10:,}" if cost.memory == "growing" else ""
        shorter = f" (at step {cost.step:,}, its last)" if cost.step < STEP else ""
        lines.append(
            [
                agent,
                mean_in_words(comparison.last, agent),
                _in_words(cost.sequences_per_second),
                _in_words(cost.milliseconds_per_step),
                f"{cost.state_bytes:,}{early}{shorter}",
            ]
        )
    head = ["agent", "IQM", "training sequences per second", "ms per step", f"state bytes at step {STEP:,}"]
    how, machine = costs.measured, costs.machine
    words = (
        f"Costs, on {machine['processor']} with {machine['threads']} thread and torch {machine['packages']['torch']}"
        f"{', ' + machine['gpu'] if 'cuda' in how['devices'] else ''}: all agents in turns, median of {how['rounds']} "
        f"rounds (lowest to highest). Training: whole updates on {how['dataset']} (source {how['source']}) as "
        f"configured, {how['updates']} a round. Steps: `DecisionAgent.act` in one environment, the last "
        f"{how['rounds'] * how['steps']} of an episode's {how['step']:,}, fed the data's observations."
    )
    return f"{grid(head, lines)}\n\n{words}\n\nCosts and their picture by `{command}`\n"


def _measure(configs: Mapping[str, RunConfig], agents: Mapping[str, Path], out: Path, say: Say) -> Costs:
    """Measures training and then acting of the agents in these folders."""
    one = next(iter(configs.values()))
    where = keeping(one, out, device_named(one.device), progress=True)
    data = sources.load(one.env, one.source, reading(one, where), say)
    with _one_thread(), TemporaryDirectory() as folder:
        about = machine()
        updating = alternate(
            {
                agent: _updates(config, agents[agent], data.trajectories, Path(folder) / agent)
                for agent, config in configs.items()
            },
            ROUNDS,
        )
        episodes = {
            agent: Episode(DecisionAgent.load(agents[agent], device_named(config.device)), data.trajectories)
            for agent, config in configs.items()
        }
        stepping = alternate({agent: timed(episode.step, episode.turn) for agent, episode in episodes.items()}, ROUNDS)
    costs = {}
    for agent, config in configs.items():
        episode, batch = episodes[agent], config.training.batch_size * config.training.accumulate
        costs[agent] = Cost(
            sequences_per_second=_spread(batch / seconds for seconds in updating[agent]),
            milliseconds_per_step=_spread(seconds * SCALES["ms"] for seconds in stepping[agent]),
            step=episode.taken,
            state_bytes=episode.agent.state_bytes,
            early_state_bytes=episode.early_state_bytes,
            memory=episode.agent.memory,
        )
    how = {
        "dataset": one.env,
        "source": data.source,
        "devices": sorted({device_named(config.device).type for config in configs.values()}),
        "rounds": ROUNDS,
        "updates": UPDATES,
        "steps": STEPS_PER_TURN,
        "step": STEP,
    }
    return Costs(costs, {agent: _configuration(config) for agent, config in configs.items()}, about, how)


def _updates(config: RunConfig, agent: Path, data: Trajectories, folder: Path) -> Side:
    """A side that plays updates of a run's schedule, and returns the seconds of one by the run's clock."""
    turn = 2 * UPDATES
    schedule = dataclasses.replace(
        config.training, log_every=UPDATES, evaluate_every=turn, checkpoint_every=turn, held_out=0.0
    )
    model, card = load_agent(agent)
    run = TrainingRun(SingleLearner(model, data, schedule, device_named(config.device)), card, folder)

    def play() -> float:
        # As a run that is resumed with more updates; what it logs last leaves out the first half of them.
        run.config = dataclasses.replace(schedule, updates=run.learner.updates + turn)
        run.run(progress=False)
        name = "throughput/updates_per_second"
        rates = [point[name] for point in read_metrics(folder) if name in point]
        return float(1 / rates[-1])

    return play


class Episode:
    """An episode of an agent in one environment, fed the data's observations and rewards in their order.

    The constructor acts up to the first of the measured turns, which end with the last step.

    Args:
        agent: agent that acts.
        data: trajectories of the agent's environment.

    Attributes:
        taken: steps so far.
        last: `STEP`, or the longest episode that the agent can act in.
        turn: steps of a turn; `ROUNDS` turns and one to warm up are left.
        early_state_bytes: bytes of the state after a tenth of the steps.
    """

    def __init__(self, agent: DecisionAgent, data: Trajectories) -> None:
        self.agent, self.data, self.taken = agent, data, 0
        self.last = STEP if agent.longest is None else min(STEP, agent.longest)
        self.turn = max(1, self.last * STEPS_PER_TURN // STEP)
        agent.reset()
        for _ in range(self.last - (ROUNDS + 1) * self.turn):
            self.step()

    def step(self) -> None:
        """Calls `act` once."""
        t = self.taken % self.data.steps
        observed = map_packed(lambda part: part[t], self.data.observations)
        self.agent.act(self.agent.observation_space.unpack(observed), self.data.rewards[t - 1] if self.taken else None)
        self.taken += 1
        if self.taken == max(1, self.last // 10):
            self.early_state_bytes = self.agent.state_bytes


def _configuration(config: RunConfig) -> dict[str, Any]:
    """Settings of a run that influence its costs."""
    settings = dataclasses.asdict(config)
    del settings["training"]["seed"]
    chosen = {name: settings[name] for name in (*DATA, "device", "acting", "model", "training")}
    # As JSON has it, since that is what it is compared with.
    return cast("dict[str, Any]", json.loads(json.dumps(chosen)))


def _spread(values: Iterable[float]) -> Spread:
    taken = list(values)
    return Spread(statistics.median(taken), min(taken), max(taken))


def _in_words(spread: Spread) -> str:
    return f"{_rounded(spread.median)} ({_rounded(spread.lowest)} to {_rounded(spread.highest)})"


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


@contextmanager
def _one_thread() -> Iterator[None]:
    """Computes with one thread, as the runs did."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
