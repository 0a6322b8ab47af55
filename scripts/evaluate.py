"""Evaluates an agent folder, or a baseline by name: `python scripts/evaluate.py runs/hopper/last --episodes 100`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import gymnasium as gym
import numpy as np
import tyro
from gymnasium.vector import AutoresetMode
from tqdm import tqdm

from aaren_rl.actor import Actor
from aaren_rl.agents import DecisionAgent, OnnxAgent
from aaren_rl.agents.acting import SteppedAgent
from aaren_rl.envs import baselines, catalogue
from aaren_rl.envs.environments import EnvironmentSpec, make, make_for_video
from aaren_rl.envs.evaluation import Protocol, evaluate, result, write_result
from aaren_rl.errors import CheckpointError, InvalidInput, unknown_name
from aaren_rl.experiments import target_sweep
from aaren_rl.experiments.console import describe, device_named, run, say
from aaren_rl.model import count_parameters
from aaren_rl.stepping import onnx as export

BASELINES = ("random", "behaviour")


@dataclass(frozen=True)
class Arguments:
    """Evaluate an agent, or a baseline, by whole episodes."""

    agent: Annotated[str, tyro.conf.Positional]
    """Folder of an agent, as runs/<run>/last, or of an exported one; or "random" or "behaviour"."""
    env: str | None = None
    """Catalogue name that a baseline is evaluated on, as hopper-medium."""
    env_id: str | None = None
    """Gymnasium id to act in instead of the one the agent was trained for."""
    episodes: int = 100
    """How many whole episodes."""
    target: float | None = None
    """Return to ask for; by default the agent's first target."""
    targets: Literal["sweep"] | tuple[float, ...] | None = None
    """Evaluate at several targets instead, these or, with "sweep", quantiles of the data's returns and the agent's own
    targets; writes targets-AGENT-ACTING.json and .png."""
    acting: str | None = None
    """stream, reset:STEPS or window:STEPS; by default as the agent was trained to."""
    horizon: int | None = None
    """Steps after which an episode is truncated, instead of the environment's own number."""
    renew: int | None = None
    """Ask for the target anew after so many steps of an episode, for a horizon beyond that of the data."""
    seed: int = 0
    """Row i of the vector environment is seeded with seed + i."""
    video: bool = False
    """Record one episode as video.mp4 in the run's folder."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where to compute; for small models the CPU steps faster."""

    def __post_init__(self) -> None:
        for name in ("horizon", "renew"):
            steps = getattr(self, name)
            if steps is not None and steps < 1:
                raise InvalidInput(f"--{name} {steps}; expected at least 1 step")


def main() -> None:
    """Entry point of `aaren-evaluate`."""
    run(lambda: evaluate_named(tyro.cli(Arguments, prog="evaluate", config=(tyro.conf.FlagCreatePairsOff,))))


def evaluate_named(arguments: Arguments) -> dict[str, Any]:
    """Evaluates as the arguments say, writes result.json into the run's folder and returns it."""
    if arguments.agent in BASELINES:
        actor, protocol, about, folder = _baseline(arguments)
    else:
        actor, protocol, about, folder = _agent(arguments)
    if arguments.targets is not None:
        return _sweep(actor, protocol, about, folder, arguments)
    if arguments.video:
        say(f"video:      {record(actor, protocol, folder)}")
    with tqdm(total=arguments.episodes, unit="episode", mininterval=1.0) as bar:
        figures = result(evaluate(actor, protocol, bar.update), protocol, **about)
    say(describe(about["checkpoint"], figures))
    say(f"result:     {write_result(folder, figures)}")
    return figures


def _sweep(
    actor: Actor, protocol: Protocol, about: dict[str, Any], folder: Path, arguments: Arguments
) -> dict[str, Any]:
    if not isinstance(actor, SteppedAgent):
        raise InvalidInput("a baseline has no --targets; leave them out")
    if arguments.target is not None or arguments.video:
        raise InvalidInput("--targets stands alone, without --target and --video")
    targets = target_sweep.targets_of(actor.card) if arguments.targets == "sweep" else arguments.targets
    if not targets:
        raise InvalidInput("--targets names no return; pass sweep, or returns as 1000 2000")
    with tqdm(total=arguments.episodes * len(targets), unit="episode", mininterval=1.0) as bar:
        results = target_sweep.sweep(actor, protocol, [float(target) for target in targets], about, bar.update)
    say(target_sweep.table(results))
    name = f"targets-{about['checkpoint']}-{about['acting'].replace(':', '-')}"
    figures, plot = target_sweep.write(folder / f"{name}.json", results, actor.card.data_returns)
    say(f"figures:    {figures}\nplot:       {plot}")
    return {"results": results}


def record(actor: Actor, protocol: Protocol, folder: Path) -> Path:
    """Records one episode as mp4 and returns the file.

    Raises:
        RenderingUnavailable: nothing can render here.
        InvalidInput: the package that writes videos is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as frames:
        try:
            env = gym.wrappers.RecordVideo(
                make_for_video(protocol.environment), frames, episode_trigger=lambda _: True, disable_logger=True
            )
        except gym.error.DependencyNotInstalled as error:
            raise InvalidInput(f"{error}; in a clone: .venv/bin/pip install '.[video]'") from error
        try:
            observation, _ = env.reset(seed=protocol.seed)
            actor.reset(protocol.target_return, 1, AutoresetMode.SAME_STEP)
            going_on = np.zeros(1, dtype=np.bool_)
            action, done = actor.act(observation[None], None, going_on, going_on), False
            while not done:
                observation, reward, terminated, truncated, _ = env.step(action[0])
                done = terminated or truncated
                if not done:
                    action = actor.act(observation[None], np.array([reward]), going_on, going_on)
        finally:
            env.close()  # type: ignore[no-untyped-call]
        return next(Path(frames).glob("*.mp4")).replace(folder / "video.mp4")


def _agent(arguments: Arguments) -> tuple[Actor, Protocol, dict[str, Any], Path]:
    folder = Path(arguments.agent).resolve()
    if arguments.env is not None:
        raise InvalidInput(
            f"--env {arguments.env} is for baselines; to act elsewhere pass --env-id, as --env-id Hopper-v4"
        )
    if not folder.exists() and "/" not in arguments.agent:
        hint = unknown_name("baseline", arguments.agent, BASELINES)
        raise CheckpointError(f"{folder} is no agent folder here, and {hint}")
    agent, how = _loaded(folder, arguments)
    card = agent.card
    spec = EnvironmentSpec(arguments.env_id) if arguments.env_id else EnvironmentSpec(card.env_id, card.env_kwargs)
    if arguments.horizon is not None:
        spec = EnvironmentSpec(spec.id, {**spec.kwargs, "max_episode_steps": arguments.horizon})
    env = make(spec)
    agent.check_environment(env)
    env.close()
    target = card.target_returns[0] if arguments.target is None else arguments.target
    # The references are returns of episodes of the environment's own length.
    reference = catalogue.reference_of(spec.id) if arguments.horizon is None else None
    protocol = Protocol(spec, arguments.episodes, arguments.seed, target, reference)
    about = {"checkpoint": folder.name, "source": card.source, "dataset": card.dataset_id, "updates": card.updates}
    return agent, protocol, about | how | {"acting": str(agent.acting), "renew": arguments.renew}, folder.parent


def _loaded(folder: Path, arguments: Arguments) -> tuple[SteppedAgent, dict[str, Any]]:
    """The agent, or the exported agent, of a folder, and what about it belongs into a result."""
    if (folder / export.CARD).exists():
        if arguments.device != "cpu":
            raise InvalidInput(f"an exported agent runs on the CPU; leave out --device {arguments.device}")
        exported = OnnxAgent(folder, acting=arguments.acting, renew=arguments.renew or 0)
        return exported, {"runtime": "onnxruntime", "int8": exported.int8, "device": "cpu"}
    agent = DecisionAgent.load(folder, device_named(arguments.device), arguments.acting, arguments.renew or 0)
    config = agent.model.config
    return agent, {"mixer": config.mixer, "parameters": count_parameters(agent.model), "device": agent.device.type}


def _baseline(arguments: Arguments) -> tuple[Actor, Protocol, dict[str, Any], Path]:
    if arguments.env is None:
        raise InvalidInput(f"which environment? pass --env, as {arguments.agent} --env hopper-medium")
    for option in ("target", "acting", "horizon", "renew"):
        if getattr(arguments, option) is not None:
            raise InvalidInput(f"a baseline has no --{option} {getattr(arguments, option)}; leave it out")
    entry = catalogue.find(arguments.env)
    if arguments.agent == "behaviour" and arguments.env_id is not None:
        raise InvalidInput(f"a behaviour acts in its own environment; leave out --env-id {arguments.env_id}")
    spec = EnvironmentSpec(arguments.env_id) if arguments.env_id else entry.environments["bundled"]
    actor = (
        baselines.random_actor(spec, arguments.seed)
        if arguments.agent == "random"
        else baselines.BehaviourActor(baselines.behaviour_policies(entry), arguments.seed)
    )
    protocol = Protocol(spec, arguments.episodes, arguments.seed, None, catalogue.reference_of(spec.id))
    about = {"checkpoint": arguments.agent, "source": "bundled", "dataset": entry.bundled_id}
    about["acting"] = arguments.agent
    return actor, protocol, about, Path("runs") / f"{arguments.env}-{arguments.agent}-{time.strftime('%Y%m%d-%H%M%S')}"


if __name__ == "__main__":
    main()
