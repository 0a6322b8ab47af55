"""Writes Minari datasets: of an agent's episodes, and of trajectories in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aaren_rl.actor import Target
from aaren_rl.agents import DecisionAgent
from aaren_rl.agents.hub import find
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.spaces import gymnasium_space
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.data.unpacking import episodes_of
from aaren_rl.envs import minari_writer
from aaren_rl.envs.collect import recordable
from aaren_rl.envs.environments import environment_of
from aaren_rl.envs.evaluation import Protocol, evaluate
from aaren_rl.envs.fitting import fit_to_data
from aaren_rl.envs.minari_writer import Infos
from aaren_rl.envs.success import BY_INFO
from aaren_rl.envs.turns import one_at_a_time
from aaren_rl.errors import DataError, InvalidInput
from aaren_rl.experiments.console import progress, say
from aaren_rl.experiments.converting import SUFFIX, check_id, free_folder, repeat_last
from aaren_rl.folders import whole_folder

RECORDING_SEED = 500_000
"""First environment seed of recorded episodes; evaluations have those from 0 and from 10,000 on."""


@dataclass(frozen=True)
class Recording:
    """Whose episodes are recorded, and how many.

    Attributes:
        agent: folder of the agent, or its name on the Hub.
        dataset_id: of the new dataset, as "mine/hopper-v0".
        episodes: number of them.
        target: return to ask for; None for the agent's default.
        temperature: of sampled actions; 0 for the most likely ones.
        seed: of the environments and of sampled actions.

    Raises:
        InvalidInput: the id is none, or the number of episodes is below 1.
    """

    agent: str | Path
    dataset_id: str
    episodes: int = 100
    target: Target | None = None
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_id(self.dataset_id)
        if self.episodes < 1:
            raise InvalidInput(f"{self.episodes} episodes; expected at least 1")


def record(recording: Recording, overwrite: bool = False) -> Path:
    """Rolls an agent out in its environment, and writes the episodes under the local Minari root.

    The folder takes its name only once it is whole.

    Returns:
        The folder of the dataset.

    Raises:
        CheckpointError: the agent cannot be read.
        InvalidInput: the agent has no environment, or does not fit it.
        DataError: the dataset exists already, or it cannot be written.
        EpisodeFailed: the environment failed.
    """
    folder = free_folder(recording.dataset_id, overwrite)
    found_agent = find(recording.agent, say)
    agent = DecisionAgent.load(found_agent.folder, temperature=recording.temperature, seed=recording.seed)
    environment = environment_of(agent.card)
    described = recordable(environment)
    protocol = Protocol(environment, recording.episodes, RECORDING_SEED + recording.seed, recording.target, None)
    with progress(recording.episodes, "episode", recording.dataset_id) as advance:
        found = evaluate(agent, protocol, advance, record=True)
    infos: list[Infos] = []
    # A success by rule follows from the rewards, and no info said it.
    if found.success is not None and found.success_rule == BY_INFO:
        # The roll-out says of whole episodes whether they succeeded, not when.
        infos = [
            {"success": _at_end(len(one.rewards), won)} for one, won in zip(found.recorded, found.success, strict=True)
        ]
    described_as = (
        f"Roll-out of the agent {found_agent.address or found_agent.name} trained on {agent.card.dataset_id} for "
    )
    described_as += f"{agent.card.updates} updates, temperature {recording.temperature:g}, seed {recording.seed}."
    with one_at_a_time(folder, say), whole_folder(folder, DataError, replace=overwrite) as partial:
        minari_writer.write_dataset(
            partial, recording.dataset_id, described, found.recorded, "aaren-rl agent", described_as, infos
        )
        minari_writer.describe_namespaces(recording.dataset_id, "Roll-outs of agents of aaren-rl.")
    returns = found.returns
    say(
        f"data: {recording.dataset_id}: {len(returns)} episodes, {int(found.lengths.sum())} steps, returns "
        f"{returns.mean():.4g} +- {returns.std():.4g}"
    )
    return folder


def to_minari(
    trajectories: Trajectories,
    dataset_id: str,
    environment: EnvironmentSpec | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes trajectories under the local Minari root, from where `--env` and Minari itself load them.

    The folder takes its name only once it is whole. Minari keeps the observation after the last action: where the
    trajectories have none, the last one is repeated, which is said.

    Args:
        trajectories: to write.
        dataset_id: of the new dataset, as "mine/cube-v0".
        environment: to record; None for none.
        overwrite: replace a dataset of this id.

    Returns:
        The folder of the dataset.

    Raises:
        InvalidInput: the id is none, or there is no such environment.
        DataError: the dataset exists already, or it cannot be written.
    """
    folder = free_folder(dataset_id, overwrite, "overwrite=True")
    fitted = fit_to_data(trajectories)
    spaces = fitted.observation_space, fitted.action_space
    episodes = episodes_of(trajectories, *spaces)
    if trajectories.final_observations is None:
        say(f"data: {SUFFIX}, since Minari keeps one")
        episodes = repeat_last(episodes)
    recorded = None if environment is None else recordable(environment).recorded
    with one_at_a_time(folder, say), whole_folder(folder, DataError, replace=overwrite) as partial:
        as_gymnasium = gymnasium_space(spaces[0]), gymnasium_space(spaces[1])
        about = "Trajectories written by aaren-rl."
        minari_writer.write_episodes(partial, dataset_id, *as_gymnasium, episodes, "unknown", about, recorded)
        minari_writer.describe_namespaces(dataset_id, "Trajectories written by aaren-rl.")
    return folder


def _at_end(steps: int, flag: bool) -> np.ndarray:
    """(steps + 1,) bool, all False but the last."""
    found = np.zeros(steps + 1, dtype=np.bool_)
    found[-1] = flag
    return found
