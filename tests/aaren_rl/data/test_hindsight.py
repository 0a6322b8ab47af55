from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aaren_rl.data.hindsight import GoalRewards, Hindsight, Relabelling, own_outcome, with_goal_scaling
from aaren_rl.data.sampler import Sampler
from aaren_rl.data.spaces import Box, DictSpace, ImageSpace
from aaren_rl.data.trajectories import Episode, Trajectories
from aaren_rl.errors import DataError, InvalidInput

ACHIEVED, DESIRED, SEEN = slice(0, 2), slice(2, 4), slice(4, 6)
"""Columns of the parts in a row of numbers: parts stand in the order of their keys."""


def walks(lengths, seed=0, **changes):
    """Walks in a plane, each with a goal of its own; the part "observation" says which episode and step it is.

    No two points are alike, so a goal says which step it is from.
    """
    rng = np.random.default_rng(seed)
    episodes = []
    for number, length in enumerate(lengths):
        points = rng.normal(size=(length + 1, 2)).cumsum(0).astype(np.float32)
        goal = (points[rng.integers(1, length + 1)] + 0.3 * rng.normal(size=2)).astype(np.float32)
        wanted = np.tile(goal, (length + 1, 1))
        seen = np.stack([np.full(length + 1, number), np.arange(length + 1)], 1).astype(np.float32)
        observations = {"observation": seen, "achieved_goal": points, "desired_goal": wanted}
        episodes.append(
            Episode(observations, rng.normal(size=(length, 1)), rng.normal(size=length), bool(number % 2), False)
        )
    return replace(Trajectories.from_episodes(episodes), **changes)


def within(achieved, desired):
    return np.linalg.norm(achieved - desired, axis=-1) <= 1.2


def sparse(achieved, desired):
    """-1, and 0 at the goal, for a batch alone, as Gymnasium-Robotics computes it."""
    assert achieved.ndim == desired.ndim == 2
    assert achieved.dtype == desired.dtype == np.float64
    return -(~within(achieved, desired)).astype(np.float32)


def dense(achieved, desired):
    return np.exp(-np.linalg.norm(achieved - desired, axis=-1))


RULES = {
    "step": GoalRewards(),
    "distance": GoalRewards(distance=1.2),
    "sparse": GoalRewards(sparse, hit=0.0),
    "dense": GoalRewards(dense),
    "dense within": GoalRewards(dense, distance=1.2),
}


def paid(rule, points, step, goal, own, end):
    """Reward of a step and whether it reaches the goal, in float64, from the definition of the rule.

    Args:
        rule: name of it.
        points: of the episode, (steps + 1, 2).
        step: within the episode.
        goal: asked for, (2,).
        own: True for the episode's own goal.
        end: steps of the episode.
    """
    achieved, goal = points[step + 1].astype(np.float64), goal.astype(np.float64)
    if rule == "step":
        there = step == end - 1 if own else bool((achieved == goal).all())
        return float(there), there
    there = bool(within(achieved, goal))
    if rule == "dense":
        return float(dense(achieved, goal)), False
    if rule == "dense within":
        return float(dense(achieved, goal)), there
    return (float(there) if rule == "distance" else float(there) - 1.0), there


def assert_relabelled(segment, data, rule, sources, origins=True):
    """Checks a segment step by step against the definition; returns the goal's step of every valid step by row.

    Args:
        segment: as sampled.
        data: it is from.
        rule: of the rewards.
        sources: episode and step by the bytes of the point achieved after it.
        origins: True if a goal from the same episode may not be from before the row's first counted step.
    """
    points = [
        np.concatenate([data.numbers[a:b, ACHIEVED], data.final_observations[n : n + 1, ACHIEVED]])
        for n, (a, b) in enumerate(zip(data.offsets, data.offsets[1:], strict=False))
    ]
    numbers, after = segment.observations.numpy(), segment.next_observations.numpy()
    found = []
    for row in range(len(numbers)):
        drawn = {}
        for t in np.flatnonzero(segment.valid[row].numpy()):
            episode, step = numbers[row, t, SEEN].astype(int)
            end, goal = data.lengths[episode], numbers[row, t, DESIRED]
            assert (after[row, t, DESIRED] == goal).all()
            assert (after[row, t, ACHIEVED] == points[episode][step + 1]).all()
            if step == 0:
                # A short stream of "carry" comes to an episode twice in a segment.
                drawn.pop(episode, None)
            own = bool((goal == data.numbers[data.offsets[episode], DESIRED]).all())
            drawn.setdefault(episode, (goal.tobytes(), int(np.flatnonzero(segment.counted[row])[0]), step))
            assert drawn[episode][0] == goal.tobytes(), "an episode has one goal in a segment"
            source = None if own else sources[goal.tobytes()]
            if source is not None and source[0] == episode and origins:
                counted = int(numbers[row, drawn[episode][1], SEEN][1]) if len(drawn) == 1 else 0
                assert source[1] >= max(drawn[episode][2], counted)
            total, k = 0.0, step
            while True:
                reward, there = paid(rule, points[episode], k, goal, own, end)
                total += reward
                if there or k + 1 == end:
                    break
                k += 1
            reward, there = paid(rule, points[episode], step, goal, own, end)
            assert segment.rewards[row, t].item() == pytest.approx(reward, abs=1e-6)
            assert segment.returns_to_go[row, t].item() == pytest.approx(total, rel=1e-5, abs=1e-5)
            own_end = paid(rule, points[episode], end - 1, data.numbers[data.offsets[episode], DESIRED], True, end)[1]
            final = step == end - 1 and bool(data.terminated[episode]) and not own_end
            assert bool(segment.terminated[row, t]) == (there or final)
            if t == 0:
                before = paid(rule, points[episode], step - 1, goal, own, end)[0] if step else 0.0
                assert segment.previous_reward[row].item() == pytest.approx(before, abs=1e-6)
            found.append((row, episode, step, source))
    padding = ~segment.valid.numpy()
    for part in (numbers, after, segment.rewards.numpy(), segment.returns_to_go.numpy(), segment.terminated.numpy()):
        assert not part[padding].any()
    return found


def sources_of(data):
    """Episode and step by the bytes of the point achieved after it."""
    found = {}
    for n, (a, b) in enumerate(zip(data.offsets, data.offsets[1:], strict=False)):
        points = np.concatenate([data.numbers[a + 1 : b, ACHIEVED], data.final_observations[n : n + 1, ACHIEVED]])
        found |= {point.tobytes(): (n, step) for step, point in enumerate(points)}
    return found


def make_sampler(data, context, rule, hindsight=None, batch_size=3, seed=0, episodes=None, **more):
    how = Hindsight(0.7, 0.5, 0.25, 0.25, 0.8) if hindsight is None else hindsight
    chosen = np.arange(data.episodes) if episodes is None else episodes
    relabelling = Relabelling(how, RULES[rule])
    more = {"next_observations": True, **more}
    return Sampler(data, chosen, batch_size, context, seed=seed, relabelling=relabelling, **more)


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 14), min_size=3, max_size=7),
    context=st.sampled_from([1, 4, 20, "3+4", "episode", "packed", "carry:5"]),
    rule=st.sampled_from(sorted(RULES)),
    random=st.sampled_from([0.0, 0.25]),
    seed=st.integers(0, 999),
)
def test_segments_equal_a_slow_loop_over_episodes(lengths, context, rule, random, seed):
    data = walks(lengths, seed)
    how = Hindsight(0.7, 0.5, 0.5 - random, random, 0.8)
    sampler, sources = make_sampler(data, context, rule, how, seed=seed), sources_of(data)
    carries = str(context).startswith("carry")
    for _ in range(3):
        assert_relabelled(sampler.sample(), data, rule, sources, origins=not (carries or random))


@pytest.mark.parametrize("context", [3, "packed", "carry:4"])
def test_validation_sweeps_have_the_same_goals_each_time(context):
    data = walks((5, 9, 3, 12, 7), 2)
    sampler = make_sampler(data, context, "distance", batch_size=2)
    other = sampler.over(data, np.array([1, 3, 4]))
    first = [segment.observations.clone() for segment in other.sweep(50)]
    before = sampler.generator.get_state()
    sampler.sample()
    for ours, theirs in zip(first, other.sweep(50), strict=True):
        assert torch.equal(ours, theirs.observations)
        assert_relabelled(theirs, data, "distance", sources_of(data), origins=False)
    assert not torch.equal(before, sampler.generator.get_state())
    drawn = torch.cat([part[..., DESIRED].reshape(-1, 2) for part in first])
    kept = {tuple(row.tolist()) for row in data.numbers[:, DESIRED]}
    assert {tuple(row.tolist()) for row in drawn} - kept - {(0.0, 0.0)}


def test_a_carried_episode_keeps_its_goal_over_segments():
    data = walks((11, 14, 9, 13), 3)
    sampler = make_sampler(data, "carry:4", "distance", batch_size=2)
    sources, going = sources_of(data), {}
    for _ in range(40):
        segment = sampler.sample()
        found = assert_relabelled(segment, data, "distance", sources, origins=False)
        for row, episode, step, source in found:
            if step:
                assert going[row] == (episode, source)
            going[row] = episode, source


def test_random_goals_come_from_the_chosen_episodes_alone():
    data = walks((6, 1, 9, 4, 8), 1)
    sampler = make_sampler(data, "episode", "step", Hindsight(1, 0, 0, 1), 512, episodes=np.array([1, 2, 4]))
    found = assert_relabelled(sampler.sample(), data, "step", sources_of(data), origins=False)
    assert {source for *_, source in found} == {(n, step) for n in (1, 2, 4) for step in range(data.lengths[n])}


def shares_of(hindsight, length, expected_none=0):
    """How often each step of one episode is the goal of a whole episode, of 40,000."""
    data = walks((length,), 4)
    sampler = make_sampler(data, "episode", "step", hindsight, 40_000, seed=7, next_observations=False)
    goals = sampler.sample().observations[:, 0, DESIRED].numpy()
    sources = sources_of(data)
    steps = [sources.get(goal.tobytes(), (0, -1))[1] for goal in goals]
    return np.bincount(np.array(steps) + 1, minlength=length + 1) / 40_000


def assert_shares(found, expected):
    spread = np.sqrt(expected * (1 - expected) / 40_000)
    assert (np.abs(found - expected) <= 5 * spread + 1e-9).all(), (found, expected)


def test_future_goals_are_uniform_over_the_later_steps():
    assert_shares(shares_of(Hindsight(0.8), 8), np.array([0.2] + [0.1] * 8))


def test_geometric_goals_follow_their_discount():
    expected = 0.3 * 0.7 ** np.arange(6)
    expected[-1] = 1 - expected[:-1].sum()
    assert_shares(shares_of(Hindsight(1, 0, 1, 0, 0.7), 6), np.concatenate([[0], expected]))


def test_shares_of_the_draws_are_kept():
    how = Hindsight(0.5, 0.5, 0.3, 0.2, 0.6)
    geometric = 0.4 * 0.6 ** np.arange(4)
    geometric[-1] = 1 - geometric[:-1].sum()
    expected = np.concatenate([[0.5], 0.5 * (0.5 / 4 + 0.3 * geometric + 0.2 / 4)])
    assert_shares(shares_of(how, 4), expected)


@pytest.mark.parametrize("context", [4, "episode", "packed", "carry:4"])
def test_same_seed_same_segments(context):
    data = walks((11, 14, 9, 13), 3)
    first, second, other = (make_sampler(data, context, "sparse", seed=seed) for seed in (5, 5, 6))
    for _ in range(3):
        ours, theirs, others = first.sample(), second.sample(), other.sample()
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)
    assert not torch.equal(ours.observations, others.observations)


@pytest.mark.parametrize("context", [4, "episode", "packed", "carry:4"])
def test_a_share_of_nothing_leaves_goals_and_steps(context):
    """Without relabelling the same segments come; with a share of 0 only rewards follow the rule."""
    data = walks((11, 14, 9, 13), 3)
    none = make_sampler(data, context, "sparse", Hindsight(0.0), seed=5)
    segment = none.sample()
    assert {source for *_, source in assert_relabelled(segment, data, "sparse", sources_of(data))} == {None}
    plain = Sampler(data, np.arange(4), 3, context, seed=5, next_observations=True).sample()
    for name in ("observations", "next_observations", "actions", "timesteps", "valid", "counted", "previous_action"):
        assert torch.equal(getattr(segment, name), getattr(plain, name)), name


def test_own_goals_that_change_within_an_episode_count_step_by_step():
    points = np.arange(7, dtype=np.float32)[:, None]
    goals = np.array([2, 2, 5, 5, 5, 9, 9], np.float32)[:, None]
    episode = Episode(
        {"observation": points, "achieved_goal": points, "desired_goal": goals}, np.zeros((6, 1)), [0] * 6
    )
    data = Trajectories.from_episodes([episode])
    own = own_outcome(data, GoalRewards(distance=0.0))
    assert own.rewards.tolist() == [0, 1, 0, 0, 1, 0]
    assert own.reached.tolist() == [False, True, False, False, True, False]
    sampler = Sampler(data, np.arange(1), 1, "episode", relabelling=Relabelling(Hindsight(0), GoalRewards(distance=0)))
    assert sampler.sample().returns_to_go[0].tolist() == [1, 1, 1, 1, 1, 0]


def test_desired_goals_are_scaled_as_achieved_ones():
    data = walks((30, 40), 0)
    mean, std = with_goal_scaling(data.observation_space, *data.observation_statistics())
    plain = data.observation_statistics()
    for ours, theirs in zip((mean, std), plain, strict=True):
        np.testing.assert_array_equal(ours[DESIRED], theirs[ACHIEVED])
        np.testing.assert_array_equal(ours[ACHIEVED], theirs[ACHIEVED])
        np.testing.assert_array_equal(ours[SEEN], theirs[SEEN])


@pytest.mark.parametrize(
    ("share", "draws", "expected"),
    [
        (0.8, ("future=1",), Hindsight()),
        (1.0, ("future=0.5", "geometric:0.9=0.3", "random=.2"), Hindsight(1.0, 0.5, 0.3, 0.2, 0.9)),
        (0.1, ("geometric=1",), Hindsight(0.1, 0, 1, 0)),
    ],
)
def test_draws_are_read(share, draws, expected):
    assert Hindsight.parse(share, draws) == expected


@pytest.mark.parametrize(
    ("share", "draws", "message"),
    [
        (0.8, ("future=0.5",), "0.5 future, 0 geometric and 0 random goals; expected shares that sum to 1"),
        (0.8, (), "expected shares that sum to 1"),
        (0.8, ("final=1",), "final"),
        (0.8, ("future=0.5", "future=0.5"), "expected each once"),
        (0.8, ("future",), "expected each once"),
        (0.8, ("future:0.9=1",), "expected each once"),
        (0.8, ("geometric:x=1",), "expected each once"),
        (0.8, ("geometric:1=1",), "discount is 1"),
        (1.1, ("future=1",), "share is 1.1"),
        (0.8, ("future=2", "random=1"), "future is 2"),
    ],
)
def test_draws_that_cannot_be_read(share, draws, message):
    with pytest.raises(InvalidInput, match=message):
        Hindsight.parse(share, draws)


def plain_box(data):
    return replace(data, observation_space=None)


def other_size(data):
    parts = dict(data.observation_space.by_key) | {"desired_goal": Box.unbounded((1,)), "extra": Box.unbounded((1,))}
    return replace(data, observation_space=DictSpace(tuple(parts.items())))


def nested(data):
    parts = dict(data.observation_space.by_key) | {"desired_goal": DictSpace((("xy", Box.unbounded((2,))),))}
    return replace(data, observation_space=DictSpace(tuple(parts.items())))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (plain_box, "parts 'achieved_goal' and 'desired_goal'; these have no parts"),
        (other_size, "achieved goals have 2 numbers and desired ones 1"),
        (nested, "goals that are vectors of numbers"),
        (lambda data: replace(data, final_observations=None), "the observation after each episode's last action"),
    ],
)
def test_data_that_cannot_be_relabelled(change, message):
    data = change(walks((4, 5)))
    with pytest.raises(DataError, match=message):
        Sampler(data, np.arange(2), 2, 3, relabelling=Relabelling(Hindsight(), GoalRewards(distance=1)))


def test_goals_beside_images():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(6, 2)).astype(np.float32)
    images = rng.integers(0, 255, (6, 8, 8, 3), dtype=np.uint8)
    observations = {"camera": images, "achieved_goal": points, "desired_goal": np.zeros((6, 2), np.float32)}
    data = Trajectories.from_episodes([Episode(observations, np.zeros((5, 1)), np.zeros(5))])
    assert isinstance(dict(data.observation_space.by_key)["camera"], ImageSpace)
    relabelling = Relabelling(Hindsight(1), GoalRewards())
    segment = Sampler(data, np.arange(1), 64, "episode", relabelling=relabelling).sample()
    assert torch.equal(segment.observations["camera"][0], torch.as_tensor(images[:5]))
    drawn = {tuple(row) for row in segment.observations["numbers"][:, 0, 2:].tolist()}
    assert drawn == {tuple(row) for row in points[1:].tolist()}


@pytest.mark.parametrize("distance", [-1.0, np.nan, np.inf])
def test_a_distance_that_is_none(distance):
    with pytest.raises(InvalidInput, match="goal_distance"):
        GoalRewards(distance=distance)
