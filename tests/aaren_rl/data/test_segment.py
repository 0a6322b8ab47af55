import pytest
import torch
from helpers import assert_same

from aaren_rl.data.segment import Segment
from aaren_rl.data.spaces import Box
from aaren_rl.errors import InvalidInput

BATCH, TIME = 3, 5
OBSERVATIONS, ACTIONS = Box.unbounded((2, 4)), Box.bounded([-1.0, 0.0], [1.0, 5.0])
SHAPES = {
    "observations": (BATCH, TIME, 2, 4),
    "timesteps": (BATCH, TIME),
    "actions": (BATCH, TIME, 2),
    "rewards": (BATCH, TIME),
    "returns_to_go": (BATCH, TIME),
    "valid": (BATCH, TIME),
    "counted": (BATCH, TIME),
    "previous_action": (BATCH, 2),
    "previous_reward": (BATCH,),
    "terminated": (BATCH, TIME),
    "next_observations": (BATCH, TIME, 2, 4),
}
MASKS = ("valid", "counted", "terminated")


def full(seed=0):
    """A segment with all fields."""
    generator = torch.Generator().manual_seed(seed)
    parts = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    parts["timesteps"] = torch.arange(TIME).expand(BATCH, -1)
    return Segment(**parts | {name: parts[name] > 0 for name in MASKS})


def test_the_shapes_here_are_those_of_all_fields():
    assert tuple(SHAPES) == Segment._fields


def test_one_step_has_a_time_of_one():
    whole = full()
    now = [whole.observations[:, 0], whole.timesteps[:, 0], whole.returns_to_go[:, 0]]
    segment = Segment.of_one_step(*now, whole.previous_action, whole.previous_reward)
    segment.check(OBSERVATIONS, ACTIONS)
    for name in ("observations", "timesteps", "returns_to_go"):
        assert_same(name, getattr(segment, name), getattr(whole, name)[:, :1])
    for name in ("previous_action", "previous_reward"):
        assert_same(name, getattr(segment, name), getattr(whole, name))
    unknown = ("actions", "rewards", "valid", "counted", "terminated", "next_observations")
    assert all(getattr(segment, name) is None for name in unknown)


def test_one_step_needs_no_more_than_observation_and_timestep():
    whole = full()
    segment = Segment.of_one_step(whole.observations[:, 0], whole.timesteps[:, 0])
    segment.check(OBSERVATIONS, ACTIONS)
    assert {name for name in Segment._fields if getattr(segment, name) is not None} == {"observations", "timesteps"}


def test_stacked_segments_have_a_new_first_dimension():
    segments = [full(seed) for seed in range(4)]
    stacked = Segment.stacked(segments)
    for name, shape in SHAPES.items():
        assert getattr(stacked, name).shape == (4, *shape)
        for number, segment in enumerate(segments):
            assert_same(name, getattr(stacked, name)[number], getattr(segment, name))


def test_stacked_segments_lack_what_each_lacks():
    lacking = [full(seed)._replace(valid=None, rewards=None) for seed in range(2)]
    stacked = Segment.stacked(lacking)
    assert stacked.valid is None
    assert stacked.rewards is None
    assert stacked.observations.shape == (2, *SHAPES["observations"])


def test_map_changes_every_field_that_is_there():
    segment, seen = full()._replace(actions=None, counted=None), []

    def function(part):
        seen.append(part)
        return part[:1]

    mapped = segment.map(function)
    assert isinstance(mapped, Segment)
    assert len(seen) == len(Segment._fields) - 2
    for name in Segment._fields:
        if name in ("actions", "counted"):
            assert getattr(mapped, name) is None
        else:
            assert_same(name, getattr(mapped, name), getattr(segment, name)[:1])


@pytest.mark.parametrize(("valid", "counted"), [(True, True), (True, False), (False, True), (False, False)])
def test_a_mean_is_over_the_counted_steps_else_the_valid_ones(valid, counted):
    segment = full()
    # Counted steps are valid ones.
    segment = segment._replace(counted=segment.counted & segment.valid if valid else segment.counted)
    segment = segment._replace(**{} if valid else {"valid": None}, **{} if counted else {"counted": None})
    values = torch.randn(BATCH, TIME, generator=torch.Generator().manual_seed(1))
    chosen = [
        values[row, t].item()
        for row in range(BATCH)
        for t in range(TIME)
        if (segment.counted[row, t] if counted else not valid or segment.valid[row, t])
    ]
    assert 0 < len(chosen) <= BATCH * TIME
    assert segment.mean_over_counted(values).item() == pytest.approx(sum(chosen) / len(chosen), abs=1e-6)


def test_a_mean_ignores_what_stands_at_padding():
    segment = full()
    values = torch.randn(BATCH, TIME).requires_grad_()
    spoilt = torch.where(segment.counted, values, torch.nan)
    mean = segment.mean_over_counted(spoilt)
    mean.backward()
    assert mean.isfinite()
    assert (values.grad[~segment.counted] == 0).all()
    assert values.grad[segment.counted].sum().item() == pytest.approx(1.0)


def test_a_mean_over_no_steps_is_zero():
    segment = full()._replace(counted=torch.zeros(BATCH, TIME, dtype=torch.bool))
    assert segment.mean_over_counted(torch.randn(BATCH, TIME)).item() == 0


def test_shapes_that_fit_pass():
    full().check(OBSERVATIONS, ACTIONS)
    Segment(full().observations, full().timesteps).check(OBSERVATIONS, ACTIONS)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("change", ["longer batch", "longer last", "one more", "one less"])
def test_each_field_of_another_shape_is_refused(name, change):
    segment, shape = full(), SHAPES[name]
    other = {
        "longer batch": (shape[0] + 1, *shape[1:]),
        "longer last": (*shape[:-1], shape[-1] + 1),
        "one more": (*shape, 1),
        "one less": shape[:-1],
    }[change]
    segment = segment._replace(**{name: torch.zeros(other, dtype=getattr(segment, name).dtype)})
    # Timesteps say what batch and time are, so that the other fields differ from them.
    message = f"{name} has shape" if name != "timesteps" else "has shape .* expected"
    with pytest.raises(InvalidInput, match=message) as caught:
        segment.check(OBSERVATIONS, ACTIONS)
    if name != "timesteps":
        assert str(caught.value) == f"{name} has shape {other}; expected {shape}"


def test_the_spaces_decide_which_shapes_fit():
    with pytest.raises(InvalidInput, match=r"observations has shape \(3, 5, 2, 4\); expected \(3, 5, 8\)"):
        full().check(Box.unbounded((8,)), ACTIONS)
    with pytest.raises(InvalidInput, match=r"actions has shape \(3, 5, 2\); expected \(3, 5\)"):
        full().check(OBSERVATIONS, Box.bounded(-1.0, 1.0))


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (3,), (3, 5, 1), ()])
def test_timesteps_without_batch_or_time_are_refused(shape):
    segment = Segment(torch.zeros(*shape, 2, 4), torch.zeros(shape, dtype=torch.long))
    with pytest.raises(InvalidInput, match="timesteps has shape .* expected .batch, time., with no dimension of 0"):
        segment.check(OBSERVATIONS, ACTIONS)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8])
def test_masks_of_another_dtype_are_refused(name, dtype):
    segment = full()
    segment = segment._replace(**{name: getattr(segment, name).to(dtype)})
    with pytest.raises(InvalidInput, match=f"{name} is {dtype}; expected torch.bool"):
        segment.check(OBSERVATIONS, ACTIONS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_timesteps_are_integers(dtype):
    segment = full()
    with pytest.raises(InvalidInput, match="timesteps is torch.*; expected integers"):
        segment._replace(timesteps=segment.timesteps.to(dtype)).check(OBSERVATIONS, ACTIONS)
