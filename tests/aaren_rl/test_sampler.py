import inspect

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aaren_rl.errors import InvalidInput
from aaren_rl.sampler import Batch, Sampler, hold_out

LENGTHS = (5, 1, 17, 3, 40, 8)
EVERY = np.arange(len(LENGTHS))


def assert_pieces_of_episodes(batch, lengths):
    """Every row is consecutive steps of one episode; episode and step are read off the observation."""
    states, actions, returns_to_go, timesteps, previous_action, valid = (part.numpy() for part in batch)
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
        assert (states[row, real:] == 0).all()
        assert (actions[row, real:] == 0).all()
        assert (returns_to_go[row, real:] == 0).all()
        assert (timesteps[row] < lengths[episode]).all()


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("weighting", ["length", "uniform"])
@pytest.mark.parametrize("context", [1, 4, 20, 100, None])
def test_rows_are_contiguous_pieces_of_one_episode(coded, weighting, context):
    sampler = Sampler(coded(LENGTHS), EVERY, 64, context, weighting)
    for _ in range(5):
        batch = sampler.sample()
        assert_pieces_of_episodes(batch, LENGTHS)
        if context:
            assert batch.valid.shape == (64, context)


def test_only_the_chosen_episodes_are_drawn(coded):
    sampler = Sampler(coded(LENGTHS), np.array([1, 4]), 256, 4, "uniform")
    batch = sampler.sample()
    assert_pieces_of_episodes(batch, LENGTHS)
    assert set(batch.states[:, 0, 0].int().tolist()) == {1, 4}
    assert sampler.mean_length == (1 + 40) / 2


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


@pytest.mark.parametrize("context", [2, None])
def test_weighting_by_length_draws_episodes_in_proportion_to_it(coded, context):
    found, _ = shares(LENGTHS, "length", context, coded)
    expected = np.array(LENGTHS) / sum(LENGTHS)
    # Five standard deviations of a share.
    assert (np.abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) / 40_000)).all()


@pytest.mark.parametrize("context", [2, None])
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


@pytest.mark.parametrize("context", [1, 4, 20, 100, None])
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


@pytest.mark.parametrize("context", [4, 20, None])
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


@pytest.mark.parametrize("changes", [{"episodes": np.array([], dtype=int)}, {"batch_size": 0}, {"context": 0}])
def test_sizes_below_one_are_refused(coded, changes):
    with pytest.raises(InvalidInput, match="expected at least 1 of each"):
        Sampler(**{"trajectories": coded(LENGTHS), "episodes": EVERY, "batch_size": 2, "context": 2, **changes})


def test_the_fields_of_a_batch_are_the_arguments_of_the_loss(make_model):
    assert tuple(inspect.signature(make_model().loss).parameters) == Batch._fields


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
