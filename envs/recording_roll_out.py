"""Rolls behaviours and experts out into episodes, as every machine does with the same seed.

`aaren_rl.envs.rollout` counts a number of episodes of one actor over vector environments, whose rows go on by their own
generators. Data are cut otherwise: by steps, into jobs that do not depend on the machine, with a seed for each episode.
"""

from __future__ import annotations

import copy
import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.trajectories import Episode
from aaren_rl.envs import success
from aaren_rl.envs.batches import stacked
from aaren_rl.envs.environments import make
from aaren_rl.envs.experts import Policy
from aaren_rl.envs.players import ExpertPlayer, Player
from aaren_rl.errors import InvalidInput

_JOB_STEPS = 50_000
_JOB_EPISODES = 100
_JOB_SLOTS = 8


@dataclass(frozen=True)
class Amount:
    """How much data to make.

    Attributes:
        number: at least 1.
        unit: what is counted. Episodes are counted exactly; of steps there are at least so many, in whole episodes.

    Raises:
        InvalidInput: the number is below 1.
    """

    number: int
    unit: Literal["steps", "episodes"]

    def __post_init__(self) -> None:
        if self.number < 1:
            raise InvalidInput(f"{self.number} {self.unit}; expected at least 1")

    def __str__(self) -> str:
        return f"{self.number} {self.unit}"

    def jobs(self, player: int, players: int) -> list[Amount]:
        """The amounts of one player's jobs, which are the same on every machine; none where its share is 0.

        Args:
            player: number of the player, from 0; the first players take what is left of episodes.
            players: number of players.
        """
        if self.unit == "steps":
            share = -(-self.number // players)
        else:
            share = self.number // players + (player < self.number % players)
        count = -(-share // (_JOB_STEPS if self.unit == "steps" else _JOB_EPISODES))
        return [Amount(share // count + (job < share % count), self.unit) for job in range(count)]

    @property
    def slots(self) -> int:
        """Environments that a behaviour plays at once for it."""
        return int(np.clip(self.number // 4_000 if self.unit == "steps" else self.number, 1, _JOB_SLOTS))


@dataclass(frozen=True)
class RecordedEpisode(Episode):
    """An episode with what infos say of it.

    Attributes:
        infos: by name, (T + 1, ...): "success", false until the environment says otherwise, and "goal", as the reset
            named it. Names that the environment does not use are absent.
    """

    infos: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)


def roll_out(
    spec: EnvironmentSpec,
    players: Sequence[Player],
    amount: Amount,
    seed: tuple[int, ...],
    progress: Callable[[int], object] = lambda done: None,
) -> list[RecordedEpisode]:
    """Whole episodes of several players, in equal shares; an episode that is left over goes to an earlier player.

    Every machine cuts the work into the same jobs, so the episodes depend on the seed alone. Some environments and
    experts draw from NumPy's or Python's global generator. Where an expert plays, these are seeded for each job. Its
    jobs run one after another.

    Args:
        spec: the environment.
        players: who acts.
        amount: least number of steps, or number of episodes, in all.
        seed: seed of the environments and of the players' noise.
        progress: called with numbers of steps, or episodes, done.

    Returns:
        Episodes in the order of the players.

    Raises:
        InvalidInput: an expert does not play the environment.
    """
    count = len(players)
    jobs = [(player, part) for number, player in enumerate(players) for part in amount.jobs(number, count)]
    scripted = any(isinstance(player, ExpertPlayer) for player in players)
    stop = threading.Event()

    def run(number: int) -> list[RecordedEpisode]:
        player, part = jobs[number]
        job_seed = np.random.SeedSequence([*seed, number])
        if not scripted:
            return _run_job(spec, player, part, job_seed, progress, stop)
        with _global_generators(job_seed):
            return _run_job(spec, player, part, job_seed, progress, stop)

    # MuJoCo releases the interpreter lock while it computes, so threads run in parallel.
    with ThreadPoolExecutor(1 if scripted else min(len(jobs), os.cpu_count() or 1)) as pool:
        try:
            return [episode for episodes in pool.map(run, range(len(jobs))) for episode in episodes]
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def _global_generators(seed: np.random.SeedSequence) -> Iterator[None]:
    """Seeds NumPy's and Python's global generators, and gives them back as they were."""
    before = random.getstate(), np.random.get_state()
    number = int(seed.generate_state(1)[0])
    random.seed(number)
    np.random.seed(number)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def _run_job(
    spec: EnvironmentSpec,
    player: Player,
    amount: Amount,
    seed: np.random.SeedSequence,
    progress: Callable[[int], object],
    stop: threading.Event,
) -> list[RecordedEpisode]:
    """Episodes 0, 1, 2, ... of a stream, as few as make the amount.

    A free slot takes the next number. The first episodes by number are kept, not the first to end, which would favour
    short ones.
    """
    rng = np.random.default_rng(seed)
    done: dict[int, RecordedEpisode] = {}
    whole = counted = started = 0
    slots = _slots(spec, player, amount, seed)
    try:
        for slot in slots:
            slot.start(started, int(rng.integers(2**31)))
            started += 1
        while not stop.is_set():
            for slot, action in zip(slots, _actions(player, slots, rng), strict=True):
                if not slot.step(action):
                    continue
                done[slot.number] = slot.episode()
                slot.start(started, int(rng.integers(2**31)))
                started += 1
                while whole in done:
                    size = len(done[whole].rewards) if amount.unit == "steps" else 1
                    progress(min(size, max(0, amount.number - counted)))
                    counted += size
                    whole += 1
                    if counted >= amount.number:
                        return [done[number] for number in range(whole)]
        return []
    finally:
        for slot in slots:
            slot.env.close()


def _slots(spec: EnvironmentSpec, player: Player, amount: Amount, seed: np.random.SeedSequence) -> list[_Slot]:
    if not isinstance(player, ExpertPlayer):
        return [_Slot(make(spec)) for _ in range(amount.slots)]
    env = make(spec)
    try:
        acting, sampling = seed.spawn(2)
        # Some environments draw before they are seeded, or take random actions of their own while they reset.
        env.unwrapped.np_random = np.random.default_rng(sampling)
        env.unwrapped.action_space.seed(int(sampling.generate_state(1)[0]))
        return [_Slot(env, player.policy(env, acting))]
    except BaseException:
        env.close()
        raise


def _actions(player: Player, slots: list[_Slot], rng: np.random.Generator) -> Sequence[Any]:
    if isinstance(player, ExpertPlayer):
        return [slot.expert_action() for slot in slots]
    return list(player([slot.observations for slot in slots], rng))


class _Slot:
    """An environment with its current episode, and the expert's policy in it where one plays."""

    def __init__(self, env: gym.Env[Any, Any], policy: Policy | None = None) -> None:
        self.env, self.policy = env, policy

    def start(self, number: int, seed: int) -> None:
        self.number = number
        observation, self.info = self.env.reset(seed=seed)
        # Copies, since environments may write into their arrays again.
        self.observations = [copy.deepcopy(observation)]
        self.actions: list[Any] = []
        self.rewards: list[float] = []
        self.goal = self.info.get("goal")
        self.reached = [_reached(self.info)]
        if self.policy is not None:
            self.seen = observation
            self.policy.reset(observation, self.info)

    def expert_action(self) -> Any:
        assert self.policy is not None, "an expert plays"
        return self.policy.act(self.seen, self.info, self.actions[-1] if self.actions else None)

    def step(self, action: Any) -> bool:
        self.seen, reward, self.terminated, self.truncated, self.info = self.env.step(action)
        self.observations.append(copy.deepcopy(self.seen))
        self.actions.append(action)
        self.rewards.append(float(reward))
        self.reached.append(_reached(self.info))
        return self.terminated or self.truncated

    def episode(self) -> RecordedEpisode:
        infos: dict[str, npt.NDArray[Any]] = {}
        if any(reached is not None for reached in self.reached):
            infos["success"] = np.array([bool(reached) for reached in self.reached])
        if self.goal is not None:
            goal = _single(np.array(self.goal))
            infos["goal"] = np.broadcast_to(goal, (len(self.reached), *goal.shape))
        return RecordedEpisode(
            _single(stacked(self.observations)),
            stacked(self.actions),
            np.asarray(self.rewards),
            bool(self.terminated),
            bool(self.truncated),
            infos,
        )


def _reached(info: Mapping[str, Any]) -> bool | None:
    """Whether an info says that the goal is reached; None where it does not say."""
    batch = {key: np.array([info[key]]) for key in success.KEYS if key in info}
    found = success.read(batch, np.ones(1, dtype=np.bool_))
    return bool(found.reached[0]) if found.says[0] else None


def _single(values: Any) -> Any:
    """An array of float64 in single precision, as it is stored; anything else as it is."""
    is_double = isinstance(values, np.ndarray) and values.dtype == np.float64
    return values.astype(np.float32) if is_double else values
