"""The evaluation of an agent folder, of an exported agent or of a baseline, by whole episodes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import gymnasium as gym
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from aaren_rl.actor import Actor, Target
from aaren_rl.agents import DecisionAgent
from aaren_rl.agents.agent import Agent
from aaren_rl.agents.hub import AgentFolder, find
from aaren_rl.checkpoint import AgentCard, weights_digest
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.envs import baselines, catalogue
from aaren_rl.envs.environment_choice import EnvironmentChoice
from aaren_rl.envs.environments import environment_of, is_special, make, make_for_video
from aaren_rl.envs.evaluation import INSTANCES, Protocol, evaluate, result
from aaren_rl.envs.references import find_reference
from aaren_rl.envs.rollout import roll_out
from aaren_rl.errors import CheckpointError, InvalidInput, unknown_name
from aaren_rl.experiments import target_sweep
from aaren_rl.experiments.console import device_named, progress, say
from aaren_rl.experiments.exporting import exported_form
from aaren_rl.model import count_parameters

BASELINES = ("random", "behaviour")


@dataclass(frozen=True)
class Options:
    """Environment, episodes and way of acting of an evaluation."""

    env: str | None = None
    """Name of the catalogue, as hopper-medium; baselines only."""
    env_id: str | None = None
    """Gymnasium id of the environment, or package:Id; by default the one that the agent was trained for."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments of the environment, each as NAME=VALUE; they replace the agent's."""
    imports: tuple[str, ...] = ()
    """Packages that register environments, to be imported first."""
    episodes: int = 100
    """Number of whole episodes."""
    target: Target | None = None
    """Target return, or "auto" for what is in reach; by default the agent's first."""
    acting: str | None = None
    """Way of acting, stream, reset:STEPS, window:STEPS or closed-window:STEPS; by default the agent's."""
    horizon: int | None = None
    """Steps after which an episode is truncated; by default the limit of the agent's environment."""
    instances: int = INSTANCES
    """Largest number of copies of the environment at once; it determines the seeds that are played."""
    processes: int = 1
    """Processes that the copies of the environment are spread over; 1 for this one."""
    renew: int | None = None
    """Resets the return-to-go to the target every this many steps, for episodes longer than the data's."""
    temperature: float = 0.0
    """Samples actions from the agent's probabilities at this temperature; 0 takes the most likely ones. Agents with
    discrete actions have probabilities, and those trained with --head gaussian."""
    seed: int = 0
    """Seed of the first environment, which the others follow, and of sampled actions."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Device to compute on; the CPU steps small models faster."""
    run_code: bool = False
    """Run an exported agent in C or as a torch program, which is the code of whoever wrote the folder."""

    def __post_init__(self) -> None:
        for name in ("horizon", "renew", "instances", "processes"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise InvalidInput(f"--{name} {number}; expected at least 1")

    def protocol(self, environment: EnvironmentSpec, target: Target | None, card: AgentCard | None = None) -> Protocol:
        """How an actor is evaluated in an environment; an agent's card has the returns that its data record."""
        recorded = (card.reference, card.environment) if card else (None, None)
        found = find_reference(environment, *recorded)
        shape = self.instances, self.processes
        return Protocol(environment, self.episodes, self.seed, target, found.reference, *shape, found.reason)

    def acting_in(self, known: EnvironmentSpec | None) -> EnvironmentSpec | None:
        """The environment to act in, on top of the one that is known; imports the packages that the user named.

        Raises:
            InvalidInput: a package cannot be imported, or "none" is asked for.
        """
        package, colon, _ = (self.env_id or "").rpartition(":")
        imports = (*self.imports, package) if colon else self.imports
        choice = EnvironmentChoice.of_options(self.env_id, self.env_kwargs, self.horizon, imports)
        if choice.is_none:
            raise InvalidInput("an evaluation needs an environment; leave out --env-id none, or name one")
        return choice.over(known)


@dataclass(frozen=True)
class Candidate:
    """An agent or a baseline that is ready to be evaluated.

    Attributes:
        actor: the agent or the behaviour.
        protocol: environment, episodes, seed and target.
        about: entries of the result that describe the actor.
        folder: folder of the results.
    """

    actor: Actor
    protocol: Protocol
    about: dict[str, Any]
    folder: Path


def prepare(name: str, options: Options) -> Candidate:
    """Loads an agent, or makes a baseline.

    Args:
        name: folder of an agent or of an exported agent, name of an agent on the Hub, or one of `BASELINES`.
        options: environment, episodes and way of acting.

    Raises:
        InvalidInput: an option does not go with the agent or the baseline.
        CheckpointError: the agent cannot be read.
    """
    return _baseline(name, options) if name in BASELINES else _agent(name, options)


def measure(candidate: Candidate) -> dict[str, Any]:
    """The result of an evaluation (see `aaren_rl.envs.evaluation.result`)."""
    protocol = candidate.protocol
    with progress(protocol.episodes, "episode") as advance:
        return result(evaluate(candidate.actor, protocol, advance), protocol, **candidate.about)


def sweep(candidate: Candidate, targets: Literal["sweep"] | tuple[float, ...]) -> target_sweep.Sweep:
    """Evaluates an agent at several targets, and writes the figures and their plot.

    Args:
        candidate: an agent.
        targets: target returns, or "sweep" for quantiles of the data's returns and the agent's targets.

    Raises:
        InvalidInput: a baseline, or no target.
    """
    actor, about = candidate.actor, candidate.about
    if not isinstance(actor, Agent):
        raise InvalidInput("a baseline has no --targets; leave them out")
    if targets == "sweep":
        targets = tuple(target_sweep.targets_of(actor.card))
    if not targets:
        raise InvalidInput("--targets names no return; pass sweep, or returns as 1000 2000")
    with progress(candidate.protocol.episodes * len(targets), "episode") as advance:
        results = target_sweep.sweep(actor, candidate.protocol, [float(target) for target in targets], about, advance)
    name = f"targets-{about['checkpoint']}-{about['acting'].replace(':', '-')}"
    return target_sweep.write(candidate.folder / f"{name}.json", results, actor.card.data_returns)


def record(candidate: Candidate) -> Path:
    """Records one episode as mp4 and returns the file.

    Raises:
        RenderingUnavailable: nothing can render here.
        InvalidInput: the package that writes videos is missing.
    """
    actor, protocol, folder = candidate.actor, candidate.protocol, candidate.folder
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as frames:
        try:
            env = gym.wrappers.RecordVideo(
                make_for_video(protocol.environment), frames, episode_trigger=lambda _: True, disable_logger=True
            )
        except gym.error.DependencyNotInstalled as error:
            raise InvalidInput(f"{error}; in a clone: .venv/bin/pip install '.[video]'") from error
        # In this mode the recorder is closed before another episode starts.
        envs = SyncVectorEnv([lambda: env], autoreset_mode=AutoresetMode.NEXT_STEP)
        try:
            roll_out(actor, envs, 1, protocol.target_return, protocol.seed)
        finally:
            envs.close()
        return next(Path(frames).glob("*.mp4")).replace(folder / "video.mp4")


def _agent(name: str, options: Options) -> Candidate:
    if options.env is not None:
        raise InvalidInput(
            f"--env {options.env} is for baselines; to act elsewhere pass --env-id, as --env-id Hopper-v4"
        )
    if not Path(name).exists() and "/" not in name:
        raise CheckpointError(
            f"{Path(name).resolve()} is no agent folder here, and {unknown_name('baseline', name, BASELINES)}"
        )
    found = find(name, say)
    agent, how = _loaded(found, options)
    card = agent.card
    spec = options.acting_in(card.environment) or environment_of(card)
    if is_special(spec):
        say(f"environment: {spec}")
    env = make(spec)
    try:
        agent.check_environment(env)
    finally:
        env.close()
    target = card.target_returns[0] if options.target is None else options.target
    protocol = options.protocol(spec, target, card)
    about = {"checkpoint": found.name, "source": card.source, "dataset": card.dataset_id, "updates": card.updates}
    about |= how | {"acting": str(agent.acting), "renew": options.renew}
    about |= {"hub": found.address} if found.address else {}
    return Candidate(agent, protocol, about, found.beside)


def _loaded(found: AgentFolder, options: Options) -> tuple[Agent, dict[str, Any]]:
    """The agent, or the exported agent, of a folder, and the entries of a result that describe it."""
    folder = found.folder
    if found.exported:
        if options.device != "cpu":
            raise InvalidInput(f"an exported agent runs on the CPU; leave out --device {options.device}")
        if options.temperature:
            raise InvalidInput("an exported agent takes the most likely action; leave out --temperature")
        form = exported_form(folder)
        if form.code is not None and not options.run_code:
            raise InvalidInput(f"{folder} holds {form.code}; if you trust whoever wrote it, pass --run-code")
        exported = form(folder, acting=options.acting, renew=options.renew or 0)
        return exported, {"runtime": form.runtime, "int8": exported.int8, "device": "cpu"}
    device, renew = device_named(options.device), options.renew or 0
    agent = DecisionAgent.load(folder, device, options.acting, renew, options.temperature, options.seed)
    about = {"mixer": agent.model.config.mixer, "parameters": count_parameters(agent.model)}
    about["weights_sha256"] = weights_digest(folder)
    return agent, about | {"device": agent.device.type, "temperature": agent.temperature}


def _baseline(name: str, options: Options) -> Candidate:
    if options.env is None:
        raise InvalidInput(f"which environment? pass --env, as {name} --env hopper-medium")
    for option in ("target", "acting", "renew", "temperature"):
        if getattr(options, option):
            raise InvalidInput(f"a baseline has no --{option} {getattr(options, option)}; leave it out")
    entry = catalogue.find(options.env)
    if name == "behaviour" and (options.env_id is not None or options.env_kwargs):
        raise InvalidInput("a behaviour acts in its own environment; leave out --env-id and --env-kwargs")
    if entry.evaluation is not None and name == "behaviour":
        raise InvalidInput(
            f"what makes {options.env} goes to goals of its own, and not to those of its evaluation; evaluate random "
            "actions, or an agent"
        )
    known = entry.evaluation or entry.environments.get("bundled") or next(iter(entry.environments.values()), None)
    spec = options.acting_in(known)
    if spec is None:
        raise InvalidInput(
            f"the data of {entry.name} name their environment; name it with --env-id, as --env-id Hopper-v5"
        )
    actor = (
        baselines.random_actor(spec, options.seed)
        if name == "random"
        else baselines.BehaviourActor(baselines.behaviour_policies(entry), options.seed)
    )
    protocol = options.protocol(spec, None)
    about = {"checkpoint": name, "source": "bundled", "dataset": entry.bundled_id, "acting": name}
    return Candidate(actor, protocol, about, Path("runs") / f"{options.env}-{name}-{time.strftime('%Y%m%d-%H%M%S')}")
