import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aaren_rl.data.context import Context
from aaren_rl.data.sampler import Sampler, hold_out
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.errors import DataError, InvalidInput

LENGTHS = (5, 1, 17, 3, 40, 8)
EVERY = np.arange(len(LENGTHS))


def assert_pieces_of_episodes(segment, lengths):
    """Every row is consecutive steps of one episode; episode and step are read off the observation."""
    arrays = segment.map(torch.Tensor.numpy)
    observations, actions, returns_to_go, timesteps = (
        arrays.observations,
        arrays.actions,
        arrays.returns_to_go,
        arrays.timesteps,
    )
    valid = arrays.valid
    assert (arrays.counted == valid).all()
    for row in range(len(observations)):
        real = valid[row].sum()
        assert real >= 1
        assert valid[row, :real].all()
        assert not valid[row, real:].any()
        episode, start = observations[row, 0].astype(int)
        steps = np.arange(start, start + real)
        assert steps[-1] < lengths[episode]
        # A window is cut short only by the end of its episode.
        assert real == valid.shape[1] or steps[-1] == lengths[episode] - 1
        assert (observations[row, :real, 0] == episode).all()
        assert (observations[row, :real, 1] == steps).all()
        assert (timesteps[row, :real] == steps).all()
        assert (actions[row, :real, 0] == 1000 * episode + steps + 1).all()
        assert (returns_to_go[row, :real] == lengths[episode] - steps).all()
        assert arrays.previous_action[row, 0] == (1000 * episode + start if start else 0)
        assert arrays.previous_reward[row] == (1 if start else 0)
        assert (arrays.rewards[row] == valid[row]).all()
        assert (observations[row, real:] == 0).all()
        assert (actions[row, real:] == 0).all()
        assert (returns_to_go[row, real:] == 0).all()
        assert (timesteps[row] < lengths[episode]).all()


def same(ours, theirs):
    pairs = zip(ours, theirs, strict=True)
    return all(a is b is None or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


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
    assert set(batch.observations[:, 0, 0].int().tolist()) == {1, 4}


@pytest.mark.parametrize("weighting", ["length", "uniform"])
def test_every_step_starts_a_window_the_last_one_included(coded, weighting):
    sampler = Sampler(coded(LENGTHS), EVERY, 4096, 3, weighting)
    first = torch.cat([sampler.sample().observations[:, 0] for _ in range(3)])
    drawn = {tuple(row) for row in first.int().tolist()}
    assert drawn == {(episode, step) for episode, length in enumerate(LENGTHS) for step in range(length)}


def shares(lengths, weighting, context, coded):
    draws = 40_000
    batch = Sampler(coded(lengths), np.arange(len(lengths)), draws, context, weighting, seed=1).sample()
    return np.bincount(batch.observations[:, 0, 0].int().numpy(), minlength=len(lengths)) / draws, batch


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
    starts = batch.observations[:, 0]
    in_longest = starts[starts[:, 0] == 4][:, 1].int().numpy()
    counts = np.bincount(in_longest, minlength=40)
    expected = len(in_longest) / 40
    # Chi-square with 39 degrees of freedom; its 99.9th percentile is 72.1, and the seed is fixed.
    assert (np.square(counts - expected) / expected).sum() < 72.1


def test_whole_episodes_are_whole(coded):
    batch = Sampler(coded(LENGTHS), EVERY, 32, "episode", "uniform").sample()
    assert (batch.timesteps[:, 0] == 0).all()
    episodes = batch.observations[:, 0, 0].long()
    assert torch.equal(batch.valid.sum(1), torch.tensor(LENGTHS)[episodes])
    # No longer than the longest drawn.
    assert batch.valid.any(0).all()


def test_a_seed_decides_the_batches(coded):
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
def test_a_full_sweep_covers_every_step_once_each_time_alike(coded, context):
    sampler = Sampler(coded(LENGTHS), EVERY, 5, context)
    batches = list(sampler.sweep(10**6))
    seen = []
    for batch in batches:
        assert len(batch.valid) <= 5
        assert_pieces_of_episodes(batch, LENGTHS)
        seen += [tuple(step) for step in batch.observations[batch.valid].int().tolist()]
    assert sorted(seen) == [(episode, step) for episode, length in enumerate(LENGTHS) for step in range(length)]
    sampler.sample()
    assert all(same(a, b) for a, b in zip(sampler.sweep(10**6), batches, strict=True))


@pytest.mark.parametrize("context", ["3+4", "packed", "carry:5"])
def test_a_sweep_counts_every_step_once_in_every_context(coded, context):
    sampler = Sampler(coded(LENGTHS), EVERY, 5, context).over(coded(LENGTHS), EVERY)
    seen = [tuple(step) for batch in sampler.sweep(10**6) for step in batch.observations[batch.counted].int().tolist()]
    assert sorted(seen) == [(episode, step) for episode, length in enumerate(LENGTHS) for step in range(length)]


@pytest.mark.parametrize("context", [4, 20, "episode"])
def test_a_sweep_over_the_number_of_all_steps_covers_all(coded, context):
    sampler = Sampler(coded(LENGTHS), EVERY, 5, context)
    assert sum(int(batch.valid.sum()) for batch in sampler.sweep(sum(LENGTHS))) == sum(LENGTHS)


def test_a_short_sweep_takes_about_as_many_steps_from_all_over(coded):
    lengths = (20,) * 50
    sampler = Sampler(coded(lengths), np.arange(50), 8, 10)
    batches = list(sampler.sweep(200))
    assert sum(int(batch.valid.sum()) for batch in batches) == 200
    episodes = torch.cat([batch.observations[:, 0, 0] for batch in batches])
    assert episodes.min() == 0
    assert episodes.max() == 49
    assert len(list(sampler.sweep(1))) == 1


@pytest.mark.parametrize("context", [3, "2+4"])
def test_a_burn_in_precedes_a_window_within_its_episode(coded, context):
    burn_in, steps = (0, 3) if context == 3 else (2, 4)
    batch = Sampler(coded(LENGTHS), EVERY, 4096, context).sample()
    observations, valid, counted = batch.observations.numpy(), batch.valid.numpy(), batch.counted.numpy()
    assert observations.shape[1] == burn_in + steps
    windows = set()
    for row in range(len(observations)):
        real, own = valid[row].sum(), np.flatnonzero(counted[row])
        episode, first = observations[row, 0].astype(int)
        assert (observations[row, :real, 1] == np.arange(first, first + real)).all()
        assert not counted[row, real:].any()
        assert (np.diff(own) == 1).all()
        start = first + own[0]
        assert own[0] == min(burn_in, start)
        assert len(own) == min(steps, LENGTHS[episode] - start)
        windows.add((episode, start))
    assert windows == {(episode, step) for episode, length in enumerate(LENGTHS) for step in range(length)}


def rows_of(sampler):
    """Steps, timesteps and validity of all packed rows."""
    return sampler._packed_rows(torch.arange(len(sampler._row_ends)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(0, 3))
def test_packed_rows_hold_every_episode_whole_and_once(coded, lengths, seed):
    sampler = Sampler(coded(lengths), np.arange(len(lengths)), 2, "packed", seed=seed)
    steps, timesteps, valid = (part.numpy() for part in rows_of(sampler))
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
    assert torch.equal(batch.observations[..., 1][batch.valid].long(), batch.timesteps[batch.valid])
    assert (batch.previous_action == 0).all()
    assert {tuple(row) for row in batch.observations[:, 0].int().tolist()} == {
        tuple(row) for row in sampler._observations[rows_of(sampler)[0][:, 0]].int().tolist()
    }
    assert sampler.steps_per_segment == sum(LENGTHS) / len(sampler._row_ends)


@pytest.mark.parametrize("steps", [1, 4, 7, 100])
def test_carried_segments_continue_through_all_episodes(coded, steps):
    sampler = Sampler(coded(LENGTHS), EVERY, 3, f"carry:{steps}", seed=5)
    total = sum(LENGTHS)
    batches = [sampler.sample() for _ in range(-(-2 * total // steps))]
    lanes = torch.cat([batch.observations for batch in batches], 1)
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


ALL_CONTEXTS = [1, 4, 100, "3+4", "episode", "packed", "carry:5", "carry:100"]


def follow(lengths):
    """What comes after each (episode, step) of `coded` trajectories: next observation, and whether it is terminal."""
    following = {}
    for episode, length in enumerate(lengths):
        observations = [(episode, step) for step in range(length + 1)]
        for step in range(length):
            ends = step == length - 1
            following[episode, step] = observations[step + 1], ends and episode % 2 == 1
    return following


def assert_followed(segment, lengths):
    """Compares `terminated` and `next_observations` with a loop over the episodes; both are blank at padding."""
    expected, terminal = follow(lengths), 0
    for row, line in enumerate(segment.valid.tolist()):
        for t, valid in enumerate(line):
            step = tuple(segment.observations[row, t].int().tolist())
            observation, terminated = expected[step] if valid else ((0, 0), False)
            assert tuple(segment.next_observations[row, t].tolist()) == observation
            assert segment.terminated[row, t].item() == terminated
            terminal += terminated
    return terminal


@pytest.mark.parametrize("context", ALL_CONTEXTS)
@pytest.mark.parametrize("weighting", ["length", "uniform"])
def test_each_step_has_what_follows_it(coded, context, weighting):
    batch_size = 3 if str(context).startswith("carry") else 32
    sampler = Sampler(coded(LENGTHS), EVERY, batch_size, context, weighting, next_observations=True)
    found = 0
    for _ in range(20):
        segment = sampler.sample()
        assert segment.terminated.dtype == torch.bool
        assert segment.next_observations.shape == segment.observations.shape
        found += assert_followed(segment, LENGTHS)
    # Ends of episodes are among what was compared.
    assert found > 0


@pytest.mark.parametrize("context", ALL_CONTEXTS)
def test_each_step_of_a_sweep_has_what_follows_it(coded, context):
    batch_size = 3 if str(context).startswith("carry") else 5
    sampler = Sampler(coded(LENGTHS), np.array([0, 2, 4]), batch_size, context, next_observations=True)
    others = np.array([1, 3, 5])
    swept = sampler.over(coded(LENGTHS), others).sweep(10**6)
    assert sum(assert_followed(segment, LENGTHS) for segment in swept) >= len(others)


@given(st.lists(st.integers(1, 12), min_size=3, max_size=10), st.integers(0, 3), st.sampled_from(ALL_CONTEXTS))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_lengths_have_what_follows_each_step(coded, lengths, seed, context):
    sampler = Sampler(coded(lengths), np.arange(len(lengths)), 3, context, seed=seed, next_observations=True)
    for _ in range(3):
        assert_followed(sampler.sample(), lengths)


def test_next_observations_keep_any_shape():
    observations = np.arange(5 * 6).reshape(5, 2, 3)
    final = -np.ones((2, 2, 3)) * [[[1]], [[2]]]
    data = Trajectories(observations, np.zeros((5, 2, 2)), np.zeros(5), [0, 2, 5], [True, False], [False, True], final)
    sampler = Sampler(data, np.arange(2), 2, "episode", "uniform", next_observations=True)
    (segment,) = sampler.sweep(10**6)
    assert segment.observations.shape == segment.next_observations.shape == (2, 3, 2, 3)
    assert segment.actions.shape == (2, 3, 2, 2)
    assert segment.previous_action.shape == (2, 2, 2)
    np.testing.assert_array_equal(segment.next_observations[0], [observations[1], final[0], 0 * final[0]])
    np.testing.assert_array_equal(segment.next_observations[1], [observations[3], observations[4], final[1]])


def test_next_observations_are_left_out_unless_requested(coded):
    assert Sampler(coded(LENGTHS), EVERY, 2, 3).sample().next_observations is None
    without = replace(coded(LENGTHS), final_observations=None)
    assert Sampler(without, EVERY, 2, 3).sample().next_observations is None


def test_next_observations_draw_the_same_steps(coded):
    plain, filled = (Sampler(coded(LENGTHS), EVERY, 8, 3, seed=4, next_observations=given) for given in (False, True))
    for _ in range(3):
        assert same(plain.sample(), filled.sample()._replace(next_observations=None))


def test_data_without_final_observations_are_refused(coded):
    without = replace(coded(LENGTHS), final_observations=None)
    with pytest.raises(
        DataError, match="needs the observation after each episode's last action, which these data lack"
    ):
        Sampler(without, EVERY, 2, 3, next_observations=True)


def test_a_sampled_segment_is_what_models_take(make_model):
    rng = np.random.default_rng(0)
    steps, ends = 30, np.array([False, True])
    arrays = rng.normal(size=(steps, 4)), rng.uniform(size=(steps, 2)), rng.normal(size=steps), [0, 13, steps]
    data = Trajectories(*arrays, ends, ~ends, rng.normal(size=(2, 4)))
    for context in (4, "2+4", "episode", "packed", "carry:5"):
        segment = Sampler(data, np.arange(2), 2, context, next_observations=True).sample()
        model = make_model(reward=True)
        segment.check(model.observation_space, model.action_space)
        loss, _ = model.loss(segment)
        assert loss.isfinite()
        assert loss > 0


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
