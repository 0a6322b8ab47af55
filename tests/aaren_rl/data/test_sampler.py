import inspect
import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aaren_rl.data.sampler import Batch, Context, Sampler, hold_out
from aaren_rl.errors import InvalidInput

LENGTHS = (5, 1, 17, 3, 40, 8)
EVERY = np.arange(len(LENGTHS))


def assert_pieces_of_episodes(batch, lengths):
    """Every row is consecutive steps of one episode; episode and step are read off the observation."""
    states, actions, returns_to_go, timesteps, previous_action, valid, rewards, previous_reward, counted = (
        part.numpy() for part in batch
    )
    assert (counted == valid).all()
    for row in range(len(states)):
        real = valid[row].sum()
        assert real >= 1
        assert valid[row, :real].all()
        assert not valid[row, real:].any()
        episode, start = states[row, 0].astype(int)
        steps = np.arange(start, start + real)
        assert steps[-1] < lengths[episode]
        # A window is cut short only by the end of its episode.
        assert real == valid.shape[1] or steps[-1] == lengths[episode] - 1
        assert (states[row, :real, 0] == episode).all()
        assert (states[row, :real, 1] == steps).all()
        assert (timesteps[row, :real] == steps).all()
        assert (actions[row, :real, 0] == 1000 * episode + steps + 1).all()
        assert (returns_to_go[row, :real] == lengths[episode] - steps).all()
        assert previous_action[row, 0] == (1000 * episode + start if start else 0)
        assert previous_reward[row] == (1 if start else 0)
        assert (rewards[row] == valid[row]).all()
        assert (states[row, real:] == 0).all()
        assert (actions[row, real:] == 0).all()
        assert (returns_to_go[row, real:] == 0).all()
        assert (timesteps[row] < lengths[episode]).all()


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("weighting", ["length", "uniform"])
@pytest.mark.parametrize("context", [1, 4, 20, 100, "episode"])
def test_rows_are_contiguous_pieces_of_one_episode(coded, weighting, context):
    sampler = Sampler(coded(LENGTHS), EVERY, 64, context, weighting)
    for _ in range(5):
        batch = sampler.sample()
        assert_pieces_of_episodes(batch, LENGTHS)
        if context != "episode":
            assert batch.valid.shape == (64, context)


def test_only_the_chosen_episodes_are_drawn(coded):
    sampler = Sampler(coded(LENGTHS), np.array([1, 4]), 256, 4, "uniform")
    batch = sampler.sample()
    assert_pieces_of_episodes(batch, LENGTHS)
    assert set(batch.states[:, 0, 0].int().tolist()) == {1, 4}


@pytest.mark.parametrize("weighting", ["length", "uniform"])
def test_every_step_starts_a_window_the_last_one_included(coded, weighting):
    sampler = Sampler(coded(LENGTHS), EVERY, 4096, 3, weighting)
    first = torch.cat([sampler.sample().states[:, 0] for _ in range(3)])
    drawn = {tuple(row) for row in first.int().tolist()}
    assert drawn == {(episode, step) for episode, length in enumerate(LENGTHS) for step in range(length)}


def shares(lengths, weighting, context, coded):
    draws = 40_000
    batch = Sampler(coded(lengths), np.arange(len(lengths)), draws, context, weighting, seed=1).sample()
    return np.bincount(batch.states[:, 0, 0].int().numpy(), minlength=len(lengths)) / draws, batch


@pytest.mark.parametrize("context", [2, "episode"])
def test_weighting_by_length_draws_episodes_in_proportion_to_it(coded, context):
    found, _ = shares(LENGTHS, "length", context, coded)
    expected = np.array(LENGTHS) / sum(LENGTHS)
    # Five standard deviations of a share.
    assert (np.abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) / 40_000)).all()


@pytest.mark.parametrize("context", [2, "episode"])
def test_uniform_weighting_draws_all_episodes_alike(coded, context):
    found, _ = shares(LENGTHS, "uniform", context, coded)
    expected = 1 / len(LENGTHS)
    assert (np.abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) / 40_000)).all()


@pytest.mark.parametrize("weighting", ["length", "uniform"])
def test_windows_start_anywhere_in_an_episode_alike(coded, weighting):
    _, batch = shares(LENGTHS, weighting, 2, coded)
    starts = batch.states[:, 0]
    in_longest = starts[starts[:, 0] == 4][:, 1].int().numpy()
    counts = np.bincount(in_longest, minlength=40)
    expected = len(in_longest) / 40
    # Chi-square with 39 degrees of freedom; its 99.9th percentile is 72.1, and the seed is fixed.
    assert (np.square(counts - expected) / expected).sum() < 72.1


def test_whole_episodes_are_whole(coded):
    batch = Sampler(coded(LENGTHS), EVERY, 32, "episode", "uniform").sample()
    assert (batch.timesteps[:, 0] == 0).all()
    episodes = batch.states[:, 0, 0].long()
    assert torch.equal(batch.valid.sum(1), torch.tensor(LENGTHS)[episodes])
    # No longer than the longest drawn.
    assert batch.valid.any(0).all()


def test_the_same_seed_gives_the_same_batches_and_another_one_others(coded):
    def batches(seed):
        sampler = Sampler(coded(LENGTHS), EVERY, 16, 4, seed=seed)
        return [sampler.sample() for _ in range(3)]

    assert all(same(a, b) for a, b in zip(batches(3), batches(3), strict=True))
    assert not same(batches(3)[0], batches(4)[0])
    assert not same(*batches(3)[:2])


def test_a_restored_generator_goes_on_where_it_was(coded):
    sampler = Sampler(coded(LENGTHS), EVERY, 16, 4, seed=3)
    sampler.sample()
    saved = sampler.generator.get_state()
    expected = [sampler.sample() for _ in range(3)]
    other = Sampler(coded(LENGTHS), EVERY, 16, 4, seed=99)
    other.generator.set_state(saved)
    assert all(same(other.sample(), batch) for batch in expected)


def test_the_global_random_state_is_neither_used_nor_changed(coded):
    sampler = Sampler(coded(LENGTHS), EVERY, 16, 4, seed=3)
    before = torch.get_rng_state()
    sampler.sample()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("context", [1, 4, 20, 100, "episode"])
def test_a_full_sweep_covers_every_step_once_and_is_the_same_each_time(coded, context):
    sampler = Sampler(coded(LENGTHS), EVERY, 5, context)
    batches = list(sampler.sweep(10**6))
    seen = []
    for batch in batches:
        assert len(batch.valid) <= 5
        assert_pieces_of_episodes(batch, LENGTHS)
        seen += [tuple(step) for step in batch.states[batch.valid].int().tolist()]
    assert sorted(seen) == [(episode, step) for episode, length in enumerate(LENGTHS) for step in range(length)]
    sampler.sample()
    assert all(same(a, b) for a, b in zip(sampler.sweep(10**6), batches, strict=True))


@pytest.mark.parametrize("context", ["3+4", "packed", "carry:5"])
def test_a_sweep_counts_every_step_once_in_every_context(coded, context):
    sampler = Sampler(coded(LENGTHS), EVERY, 5, context).over(coded(LENGTHS), EVERY)
    seen = [tuple(step) for batch in sampler.sweep(10**6) for step in batch.states[batch.counted].int().tolist()]
    assert sorted(seen) == [(episode, step) for episode, length in enumerate(LENGTHS) for step in range(length)]


@pytest.mark.parametrize("context", [4, 20, "episode"])
def test_a_sweep_of_as_many_steps_as_there_are_covers_every_step(coded, context):
    sampler = Sampler(coded(LENGTHS), EVERY, 5, context)
    assert sum(int(batch.valid.sum()) for batch in sampler.sweep(sum(LENGTHS))) == sum(LENGTHS)


def test_a_short_sweep_takes_about_as_many_steps_from_all_over(coded):
    lengths = (20,) * 50
    sampler = Sampler(coded(lengths), np.arange(50), 8, 10)
    batches = list(sampler.sweep(200))
    assert sum(int(batch.valid.sum()) for batch in batches) == 200
    episodes = torch.cat([batch.states[:, 0, 0] for batch in batches])
    assert episodes.min() == 0
    assert episodes.max() == 49
    assert len(list(sampler.sweep(1))) == 1


@pytest.mark.parametrize("context", [3, "2+4"])
def test_a_burn_in_comes_before_a_window_as_far_as_there_is_one(coded, context):
    burn_in, steps = (0, 3) if context == 3 else (2, 4)
    batch = Sampler(coded(LENGTHS), EVERY, 4096, context).sample()
    states, valid, counted = batch.states.numpy(), batch.valid.numpy(), batch.counted.numpy()
    assert states.shape[1] == burn_in + steps
    windows = set()
    for row in range(len(states)):
        real, own = valid[row].sum(), np.flatnonzero(counted[row])
        episode, first = states[row, 0].astype(int)
        assert (states[row, :real, 1] == np.arange(first, first + real)).all()
        assert not counted[row, real:].any()
        assert (np.diff(own) == 1).all()
        start = first + own[0]
        assert own[0] == min(burn_in, start)
        assert len(own) == min(steps, LENGTHS[episode] - start)
        windows.add((episode, start))
    assert windows == {(episode, step) for episode, length in enumerate(LENGTHS) for step in range(length)}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(0, 3))
def test_packed_rows_hold_every_episode_whole_and_once(coded, lengths, seed):
    sampler = Sampler(coded(lengths), np.arange(len(lengths)), 2, "packed", seed=seed)
    steps, timesteps, valid = (part.numpy() for part in sampler._rows)
    assert steps.shape[1] == sampler.longest == max(lengths)
    assert sorted(steps[valid].tolist()) == list(range(sum(lengths)))
    own = np.concatenate([np.arange(length) for length in lengths])
    for row, within, real in zip(steps, timesteps, valid, strict=True):
        assert (within[real] == own[row[real]]).all()
        assert real[: real.sum()].all()
        # Whole episodes: one starts wherever the steps are not consecutive, and the last one ends.
        jumps = np.flatnonzero(np.diff(row[real]) != 1) + 1
        assert (within[real][jumps] == 0).all()
        assert within[0] == 0
        assert row[real][-1] + 1 in {0, *np.cumsum(lengths).tolist()}
    # An episode opens a new row only where it does not fit any more.
    heads = [
        np.diff([*np.flatnonzero(within[real] == 0), real.sum()]) for within, real in zip(timesteps, valid, strict=True)
    ]
    for before, after in itertools.pairwise(heads):
        assert before.sum() + after[0] > max(lengths)


def test_packed_batches_are_rows_with_resets(coded):
    sampler = Sampler(coded(LENGTHS), EVERY, 64, "packed")
    batch = sampler.sample()
    assert batch.valid.shape == (64, 40)
    assert torch.equal(batch.counted, batch.valid)
    assert torch.equal(batch.states[..., 1][batch.valid].long(), batch.timesteps[batch.valid])
    assert (batch.previous_action == 0).all()
    assert {tuple(row) for row in batch.states[:, 0].int().tolist()} == {
        tuple(row) for row in sampler._observations[sampler._rows[0][:, 0]].int().tolist()
    }
    assert sampler.steps_per_segment == sum(LENGTHS) / len(sampler._rows[0])


@pytest.mark.parametrize("steps", [1, 4, 7, 100])
def test_carried_segments_follow_each_other_through_all_episodes(coded, steps):
    sampler = Sampler(coded(LENGTHS), EVERY, 3, f"carry:{steps}", seed=5)
    total = sum(LENGTHS)
    batches = [sampler.sample() for _ in range(-(-2 * total // steps))]
    lanes = torch.cat([batch.states for batch in batches], 1)
    assert all(batch.valid.all() for batch in batches)
    for lane in lanes.int().numpy():
        assert lane[0, 1] == 0
        for before, after in itertools.pairwise(lane):
            ended = before[1] == LENGTHS[before[0]] - 1
            assert after[1] == (0 if ended else before[1] + 1)
            assert ended or after[0] == before[0]
        # Once around is every step once, in the same order each time.
        assert {tuple(step) for step in lane[:total]} == {
            (e, t) for e, length in enumerate(LENGTHS) for t in range(length)
        }
        assert (lane[total : 2 * total] == lane[:total]).all()
    for before, after in itertools.pairwise(batches):
        starts = after.timesteps[:, 0] == 0
        expected = torch.where(starts.unsqueeze(-1), 0.0, before.actions[:, -1])
        assert torch.equal(after.previous_action, expected)
        assert torch.equal(after.previous_reward, torch.where(starts, 0.0, before.rewards[:, -1]))


@pytest.mark.parametrize(
    "written", [0, -3, "0", "+5", "5+", "0+5", "carry", "carry:0", "carry:x", "episodes", "", "2.5"]
)
def test_contexts_that_are_not_understood_are_refused(written):
    with pytest.raises(InvalidInput, match="expected steps of a window"):
        Context.parse(written)


@pytest.mark.parametrize("changes", [{"episodes": np.array([], dtype=int)}, {"batch_size": 0}])
def test_sizes_below_one_are_refused(coded, changes):
    with pytest.raises(InvalidInput, match="expected at least 1 of each"):
        Sampler(**{"trajectories": coded(LENGTHS), "episodes": EVERY, "batch_size": 2, "context": 2, **changes})


def test_the_fields_of_a_batch_are_the_arguments_of_the_loss(make_model):
    assert tuple(inspect.signature(make_model().loss).parameters) == (*Batch._fields, "state")


@given(st.integers(1, 200), st.floats(0, 1, exclude_max=True), st.integers(0, 5))
def test_holding_out_splits_the_episodes(episodes, fraction, seed):
    train, held = hold_out(episodes, fraction, seed)
    assert sorted([*train, *held]) == list(range(episodes))
    assert (np.diff(train) > 0).all()
    assert (np.diff(held) > 0).all()
    assert len(train) >= 1
    if fraction == 0 or episodes == 1:
        assert len(held) == 0
    else:
        assert len(held) >= 1
        assert abs(len(held) - fraction * episodes) <= 1
    again = hold_out(episodes, fraction, seed)
    assert (again[0] == train).all()


def test_holding_out_depends_on_the_seed():
    assert (hold_out(100, 0.2, 0)[1] != hold_out(100, 0.2, 1)[1]).any()


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 2.0, float("nan")])
def test_holding_out_a_share_that_is_none_is_refused(fraction):
    with pytest.raises(InvalidInput, match="held-out fraction"):
        hold_out(10, fraction, 0)
