"""Offline data: whole episodes packed one after another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from aaren_rl.data.bounds import SMALLEST, first_no_value, varies
from aaren_rl.data.episode import (
    LARGEST,
    WAY_OUT,
    check_alike,
    float32,
    has_final,
    not_finite,
    packed,
    refuse_beyond_float32,
    spaces_of,
)
from aaren_rl.data.episode import Episode as Episode
from aaren_rl.data.episode import Floats as Floats
from aaren_rl.data.packed import arrays_of, first_of, map_packed, numbers_of, shapes_of
from aaren_rl.data.spaces import IMAGE, NUMBERS, DiscreteSpace, Packed, Space, space_of, space_of_values
from aaren_rl.data.spaces.image import shows_images
from aaren_rl.data.storage import MEMORY, Storage, blocks, episode_blocks, step_blocks
from aaren_rl.errors import DataError, InvalidInput

if TYPE_CHECKING:
    import gymnasium as gym

_VALUES = ("observations", "actions", "rewards", "final_observations")
"""Fields that hold values of steps."""


@dataclass(frozen=True)
class Trajectories:
    """Episodes of one environment in packed arrays of steps (`Space.pack`).

    float32 arrays are taken without a copy, others are converted; images of uint8 stay as they are. Observations and
    actions may have any shape.

    Attributes:
        observations: those that an action follows: (steps, *observation shape) float32, or a dict of arrays where there
            are images.
        actions: (steps, *action shape), float32.
        rewards: (steps,), float32.
        offsets: (episodes + 1,), int64: episode i is the steps from offsets[i] up to offsets[i + 1].
        terminated: (episodes,) bool: the episode ended in a state that the task calls final.
        truncated: (episodes,) bool: the episode was cut off, by a time limit for instance.
        final_observations: (episodes, *observation shape), as the observations: the one after an episode's last action.
            The value of a cut episode is bootstrapped from it. None where the data lack it.
        observation_space: of the observations; None if it is not known, and they are numbers.
        action_space: of the actions; None likewise.
        storage: where arrays of all steps that are made of these lie, as `select` makes them.
        returns_to_go: (steps,), float32: undiscounted sum of the rewards from a step to its episode's end.

    Raises:
        DataError: empty, of lengths or shapes that do not match, not finite, or with offsets that do not cover the
            steps.
    """

    observations: Packed
    actions: Floats
    rewards: Floats
    offsets: npt.NDArray[np.int64]
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    final_observations: Packed | None = None
    observation_space: Space | None = None
    action_space: Space | None = None
    storage: Storage = field(default=MEMORY, repr=False, compare=False)
    returns_to_go: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._take_images()
        self._take_choices()
        given = {name: getattr(self, name) for name in _VALUES if getattr(self, name) is not None}
        for name, values in given.items():
            object.__setattr__(self, name, _stored(name, values))
        object.__setattr__(self, "offsets", _whole_numbers(self.offsets))
        for name in ("terminated", "truncated"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.bool_))
        self._check_lengths()
        self._check_episodes()
        for name, values in given.items():
            for key, part in arrays_of(values).items():
                self._check_values(name, key, np.asarray(part))
        self._check_choices()
        object.__setattr__(self, "returns_to_go", self._summed())
        self._check_returns()

    @classmethod
    def from_episodes(
        cls,
        episodes: Iterable[Episode],
        observation_space: Space | gym.Space[Any] | None = None,
        action_space: Space | gym.Space[Any] | None = None,
    ) -> Trajectories:
        """Packs episodes one after another.

        T + 1 observations give a final observation, T observations give none. A mixture of both is refused: to drop
        the final observations of some episodes would go unnoticed. An episode that is neither terminated nor truncated
        counts as truncated, since nothing says that the task ended where its data end.

        Args:
            episodes: at least one, of the same observation shape and action shape.
            observation_space: of the observations, Gymnasium's or ours; None for what they show. Dicts and tuples have
                parts, arrays of uint8 with two or three dimensions are images, the vocabulary of texts is the data's.
            action_space: of the actions, likewise; None for what they show. Whole numbers, one a step, are discrete
                from 0 on.

        Raises:
            DataError: no episodes, arrays that are not numbers, lengths or shapes that do not match, values that are
                not finite or that float32 does not hold, or a mixture of episodes with and without a final observation.
                The message names the episode, counted from 0.
        """
        given = list(episodes)
        if not given:
            raise DataError("no episodes; expected at least one")
        spaces = spaces_of(given, _described(observation_space, True), _described(action_space, False))
        whole = [packed(number, episode, *spaces) for number, episode in enumerate(given)]
        first = whole[0]
        for number, episode in enumerate(whole):
            check_alike(number, episode, first)
        lengths = [len(episode.rewards) for episode in whole]
        final = [map_packed(lambda part: part[-1:], one.observations) for one in whole] if has_final(first) else None
        acted = [
            map_packed(lambda part, n=n: part[:n], one.observations) for one, n in zip(whole, lengths, strict=True)
        ]
        try:
            return cls(
                _joined(acted),
                _joined([episode.actions for episode in whole]),
                _joined([episode.rewards for episode in whole]),
                np.concatenate([[0], np.cumsum(lengths)]),
                np.array([episode.terminated for episode in whole]),
                np.array([episode.truncated or not episode.terminated for episode in whole]),
                None if final is None else _joined(final),
                *spaces,
            )
        except DataError:
            # In packed float32 arrays, values beyond float32 look infinite.
            refuse_beyond_float32(whole)
            raise

    def select(self, numbers: npt.NDArray[np.int64]) -> Trajectories:
        """Some of the episodes, (chosen,) by number, in the order given.

        Raises:
            DataError: none are chosen.
            IndexError: a number is out of range.
        """
        lengths, starts = self.lengths[numbers], self.offsets[:-1][numbers]
        offsets = np.concatenate([[0], np.cumsum(lengths)])

        def source(steps: slice) -> npt.NDArray[np.int64]:
            """Where steps of the result stand in these data."""
            wanted = np.arange(steps.start, steps.stop)
            episodes = np.searchsorted(offsets, wanted, side="right") - 1
            found: npt.NDArray[np.int64] = wanted + (starts - offsets[:-1])[episodes]
            return found

        def chosen(part: npt.NDArray[Any]) -> npt.NDArray[Any]:
            rows = (part[source(steps)] for steps in step_blocks(int(offsets[-1]), part.shape[1:]))
            return self.storage.array((int(offsets[-1]), *part.shape[1:]), part.dtype, rows)

        return Trajectories(
            map_packed(chosen, self.observations),
            chosen(self.actions),
            chosen(self.rewards),
            offsets,
            self.terminated[numbers],
            self.truncated[numbers],
            None
            if self.final_observations is None
            else map_packed(lambda part: part[numbers], self.final_observations),
            self.observation_space,
            self.action_space,
            self.storage,
        )

    @classmethod
    def join(cls, parts: Iterable[Trajectories]) -> Trajectories:
        """The episodes of several datasets, one dataset after another, in the storage of the first.

        Raises:
            DataError: none are given, or they differ in their spaces, in their shapes, or in whether they have final
                observations.
        """
        given = list(parts)
        if not given:
            raise DataError("no datasets; expected at least one")
        first = given[0]
        for number, part in enumerate(given):
            for what, one, other in (
                ("observations of shape", part.observation_shapes, first.observation_shapes),
                ("actions of shape", part.actions.shape[1:], first.actions.shape[1:]),
                ("final observations", part.final_observations is not None, first.final_observations is not None),
                ("the observation space", part.observation_space, first.observation_space),
                ("the action space", part.action_space, first.action_space),
            ):
                if one != other:
                    raise DataError(
                        f"dataset {number} has {what} {one}, dataset 0 {other}; they cannot be joined (spaces that are "
                        "inferred may differ: give observation_space and action_space to from_episodes)"
                    )
        ends = np.cumsum([0, *(part.steps for part in given)])
        final = [part.final_observations for part in given]

        def joined(*arrays: npt.NDArray[Any]) -> npt.NDArray[Any]:
            rows = (block for array in arrays for _, block in blocks(array))
            return first.storage.array((sum(map(len, arrays)), *arrays[0].shape[1:]), arrays[0].dtype, rows)

        return cls(
            map_packed(joined, *(part.observations for part in given)),
            joined(*(part.actions for part in given)),
            joined(*(part.rewards for part in given)),
            np.concatenate([[0], *(end + part.offsets[1:] for end, part in zip(ends, given, strict=False))]),
            np.concatenate([part.terminated for part in given]),
            np.concatenate([part.truncated for part in given]),
            None if first.final_observations is None else map_packed(joined, *final),
            first.observation_space,
            first.action_space,
            first.storage,
        )

    def best(self, share: float) -> Trajectories:
        """The share of the episodes with the highest returns, at least one; all that equal the last of them count too.

        Raises:
            DataError: the share is not above 0 and up to 1.
        """
        if not 0 < share <= 1:
            raise DataError(f"share is {share}; expected a number above 0, up to 1")
        return self.select(np.flatnonzero(among_best(self.returns, share)))

    def at_least(self, least: float) -> Trajectories:
        """The episodes whose return is at least this much.

        Raises:
            DataError: there are none.
        """
        returns = self.returns
        if not (returns >= least).any():
            raise DataError(f"no episode has a return of {least}; the best has {returns.max():.6g}")
        return self.select(np.flatnonzero(returns >= least))

    @property
    def numbers(self) -> Floats:
        """The numbers of the observations, (steps, *shape); of images alone none, (steps, 0)."""
        found = numbers_of(self.observations)
        return np.zeros((self.steps, 0), np.float32) if found is None else found

    @property
    def observation_shapes(self) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
        """Shapes of one observation, as `Space.packed_shapes`."""
        return shapes_of(self.observations, 1)  # type: ignore[no-any-return]

    @property
    def episodes(self) -> int:
        """Number of episodes."""
        return len(self.offsets) - 1

    @property
    def steps(self) -> int:
        """Number of steps of all episodes together."""
        return len(self.rewards)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Steps of each episode, (episodes,)."""
        return np.diff(self.offsets)

    @property
    def returns(self) -> Floats:
        """Undiscounted return of each episode, (episodes,)."""
        return self.returns_to_go[self.offsets[:-1]]

    def observation_statistics(self) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the numbers of the observations, each of their shape.

        A component that does not vary (`aaren_rl.data.bounds.varies`) gets a deviation of 0: a model knows nothing of
        other values, and ignores them when it acts.
        """
        # Arrays in memory may be changed by whoever made them.
        return self._statistics_of_files if self.storage.on_disk else self._statistics()

    @property
    def sha256(self) -> str:
        """SHA-256 of the spaces and arrays."""
        return self._sha256_of_files if self.storage.on_disk else self._sha256()

    @cached_property
    def _statistics_of_files(self) -> tuple[Floats, Floats]:
        return self._statistics()

    @cached_property
    def _sha256_of_files(self) -> str:
        return self._sha256()

    def _sha256(self) -> str:
        names = ("observations", "actions", "rewards", "offsets", "terminated", "truncated", "final_observations")
        said = [None if space is None else space.to_json() for space in (self.observation_space, self.action_space)]
        found = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
        for name in names:
            value = getattr(self, name)
            named = {f"{name} {key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
            for what, array in named.items():
                # The same bytes in another shape are other data, as are those of another array.
                found.update(f"{what} {None if array is None else (array.shape, array.dtype.str)}".encode())
                if array is not None:
                    found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()

    def _statistics(self) -> tuple[Floats, Floats]:
        # 1. A mean of some 10,000 steps, near enough that the differences from it are small.
        numbers = self.numbers
        mean = numbers[:: max(1, self.steps // 10_000)].mean(0, dtype=np.float64)
        # 2. Sums of the differences and of their squares, in float64, and the range.
        total = np.zeros(numbers.shape[1:])
        squares = np.zeros_like(total)
        least, greatest = np.full_like(total, np.inf), np.full_like(total, -np.inf)
        for _, block in blocks(numbers):
            difference = block - mean
            total += difference.sum(0)
            squares += np.square(difference).sum(0)
            least, greatest = np.minimum(least, block.min(0)), np.maximum(greatest, block.max(0))
        # 3. The mean is moved by the mean difference.
        shift = total / self.steps
        std = np.sqrt(np.maximum(squares / self.steps - shift**2, 0.0))
        std = np.where(varies(least, greatest) & (std >= SMALLEST), std, 0.0)
        return np.asarray(mean + shift, np.float32), np.asarray(std, np.float32)

    def _take_images(self) -> None:
        """Names images that were given as a mere array."""
        array = self.observations
        if not isinstance(array, np.ndarray) or not shows_images(array):
            return
        object.__setattr__(self, "observations", {IMAGE: array})
        object.__setattr__(self, "observation_space", self.observation_space or space_of_values(array))
        if self.final_observations is not None:
            object.__setattr__(self, "final_observations", {IMAGE: self.final_observations})

    def _take_choices(self) -> None:
        """Takes whole-number actions, one a step, for choices, as `from_episodes` does."""
        given = self.actions
        if self.action_space is not None or not isinstance(given, np.ndarray) or given.ndim != 1 or not given.size:
            return
        if given.dtype.kind in "iub" and given.min() >= 0:
            object.__setattr__(self, "action_space", DiscreteSpace((), (int(given.max()) + 1,), (0,)))

    def _check_choices(self) -> None:
        """Refuses numbers that are no values of their discrete space.

        Raises:
            DataError: there are some.
        """
        for name, space in (("observations", self.observation_space), ("actions", self.action_space)):
            values = self.numbers if name == "observations" else self.actions
            found = None if space is None else first_no_value(values, space)
            if found is not None:
                raise DataError(
                    f"{name} hold {found.numbers}{found.where} at step {found.step}, in episode "
                    f"{self.episode_of(found.step)}; expected a value of {found.part.space}"
                )

    def _check_lengths(self) -> None:
        first = first_of(self.observations)
        if self.rewards.ndim != 1:
            raise DataError(
                f"observations {first.shape}, actions {self.actions.shape} and rewards "
                f"{self.rewards.shape}; expected (steps, *observation shape), (steps, *action shape) and (steps,)"
            )
        for part in arrays_of(self.observations).values():
            if not len(part) == len(self.actions) == len(self.rewards):
                raise DataError(
                    f"{len(part)} observations, {len(self.actions)} actions and {len(self.rewards)} rewards; "
                    "expected one of each per step (pass the observation after an episode's last action in "
                    "final_observations)"
                )
        for name, space in (("observations", self.observation_space), ("actions", self.action_space)):
            found = shapes_of(getattr(self, name), 1)
            if space is not None and found != space.packed_shapes():
                raise DataError(f"{name} have the shape {found}; their space has {space.packed_shapes()}")
        if self.observation_space is None and isinstance(self.observations, dict):
            raise DataError("observations with images, without observation_space; give it, or use from_episodes")

    def _check_episodes(self) -> None:
        if self.offsets.ndim != 1:
            raise DataError(f"episode offsets have shape {self.offsets.shape}; expected (episodes + 1,)")
        if self.episodes < 1 or self.steps < 1:
            raise DataError("the dataset holds no whole episode")
        if self.offsets[0] != 0 or self.offsets[-1] != self.steps or (self.lengths < 1).any():
            raise DataError(
                f"episode offsets must rise from 0 to the number of steps, {self.steps}; "
                f"they go from {self.offsets[0]} to {self.offsets[-1]}, shortest episode {self.lengths.min()}"
            )
        for name in ("terminated", "truncated"):
            if getattr(self, name).ndim != 1:
                raise DataError(
                    f"{name} has shape {getattr(self, name).shape}; expected ({self.episodes},), one flag an episode"
                )
        if not len(self.terminated) == len(self.truncated) == self.episodes:
            raise DataError(
                f"{len(self.terminated)} terminated and {len(self.truncated)} truncated flags "
                f"for {self.episodes} episodes; expected one each"
            )
        expected = map_packed(lambda part: (self.episodes, *part.shape[1:]), self.observations)
        found = None if self.final_observations is None else shapes_of(self.final_observations, 0)
        if found not in (None, expected):
            raise DataError(
                f"final_observations has shape {found}; expected {expected}, one observation for each episode"
            )

    def _check_values(self, name: str, key: str, given: npt.NDArray[Any]) -> None:
        """Refuses what is not finite, by its value as it was given, before float32."""
        row = _first_not_finite(arrays_of(getattr(self, name))[key])
        if row is None:
            return
        at = "" if name == "final_observations" else f" at step {row}"
        episode = row if name == "final_observations" else self.episode_of(row)
        raise DataError(f"{name} holds {not_finite(given[row])}{at}, in episode {episode}; {WAY_OUT}")

    def _summed(self) -> Floats:
        parts = (
            returns_to_go(self.rewards[steps], self.offsets[some.start : some.stop + 1] - steps.start)
            for some, steps in episode_blocks(self.offsets)
        )
        return self.storage.array(self.rewards.shape, np.float32, parts)

    def _check_returns(self) -> None:
        step = _first_not_finite(self.returns_to_go)
        if step is None:
            return
        episode = self.episode_of(step)
        total = self.rewards[step : self.offsets[episode + 1]].sum(dtype=np.float64)
        raise DataError(
            f"the rewards of episode {episode} sum to {total:.3g} from step {step} on, beyond float32 "
            f"({LARGEST:.2g}), though each is finite; divide all rewards by one number, or leave the episode out"
        )

    def episode_of(self, step: int) -> int:
        """The episode that a step belongs to, both counted from 0 over all data."""
        return int(np.searchsorted(self.offsets, step, side="right")) - 1


def among_best(returns: Floats, share: float) -> npt.NDArray[np.bool_]:
    """Which episodes are among the share with the highest returns, at least one."""
    count = max(1, round(share * len(returns)))
    return returns >= np.sort(returns)[-count]  # type: ignore[no-any-return]


def returns_to_go(rewards: Floats, offsets: npt.NDArray[np.int64]) -> Floats:
    """Sum of the rewards from each step to the end of its episode.

    Args:
        rewards: (steps,).
        offsets: (episodes + 1,), as in `Trajectories`.

    Returns:
        (steps,) float32, summed in float64; infinite where float32 does not hold the sum.
    """
    summed = np.empty(len(rewards))
    # Episode by episode: beside one of 1e30, a sum over all would lose the rewards of the others.
    for start, end in pairwise(offsets.tolist()):
        np.cumsum(rewards[start:end][::-1], dtype=np.float64, out=summed[start:end][::-1])
    with np.errstate(over="ignore"):
        return summed.astype(np.float32)


def _whole_numbers(offsets: npt.ArrayLike) -> npt.NDArray[np.int64]:
    given = np.asarray(offsets)
    if given.dtype.kind not in "iu" and not all(float(offset).is_integer() for offset in given.ravel().tolist()):
        raise DataError(f"episode offsets are {given.dtype} numbers; expected whole numbers of steps")
    return given.astype(np.int64)


def _first_not_finite(array: npt.NDArray[Any]) -> int | None:
    """Index of the first row with a NaN or an infinite value; None if there is none."""
    if array.dtype.kind != "f":
        return None
    for start, block in blocks(array):
        bad = ~np.isfinite(block)
        if bad.any():
            return start + int(np.flatnonzero(bad.reshape(len(bad), -1).any(1))[0])
    return None


def _described(space: Space | gym.Space[Any] | None, image: bool) -> Space | None:
    """Our description of a space that may be Gymnasium's.

    Raises:
        DataError: it is one that no model takes.
    """
    try:
        return space if space is None or isinstance(space, Space) else space_of(space, image)
    except InvalidInput as error:
        raise DataError(str(error)) from error


def _stored(name: str, values: Packed) -> Packed:
    """Values as they are kept: images as they are or in float32, all else in float32."""

    def image(part: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.ascontiguousarray(part) if part.dtype == np.uint8 else float32(name, part)

    if isinstance(values, dict):
        return {key: float32(name, part) if key == NUMBERS else image(part) for key, part in values.items()}
    return float32(name, values)


def _joined(parts: list[Any]) -> Any:
    """The rows of all parts, one part after another."""
    if isinstance(parts[0], dict):
        joins: dict[str, Any] = {key: _joined if key == NUMBERS else np.concatenate for key in parts[0]}
        return {key: join([part[key] for part in parts]) for key, join in joins.items()}
    with np.errstate(over="ignore"):  # What overflows float32 is found as infinite, with its place.
        # Without a wider copy.
        return np.concatenate(parts, dtype=np.float32, casting="same_kind")
