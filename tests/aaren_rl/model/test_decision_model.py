import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import concatenate, cut, draw_segment, pad, predict, step_through
from torch.nn import functional as F

from aaren_rl import mixers
from aaren_rl.data.segment import Segment
from aaren_rl.data.spaces import Box
from aaren_rl.errors import InvalidInput
from aaren_rl.mixers import state_bytes
from aaren_rl.model import DecisionModel, ModelConfig, Scaling, config_from_dict, count_parameters

ACTION_SIZE = 2
LAYOUTS = ("interleaved", "fused")
TIMESTEPS = ("none", "first", "learned", "sinusoidal")
PREVIOUS_ACTION = torch.tensor([[0.5, 4.0], [-0.5, 1.0]])
PREVIOUS_REWARD = torch.tensor([1.5, -0.5])

both_layouts = pytest.mark.parametrize("layout", LAYOUTS)
all_timesteps = pytest.mark.parametrize("timesteps", TIMESTEPS)
VARIANTS = [
    {"previous_action": False},
    {"reward": True},
    {"reward": True, "previous_action": False},
    {"return_to_go": False},
    {"return_to_go": False, "previous_action": False},
    {"mixer": "aaren(recency=true)"},
    {"norm": "post"},
    {"condition": "norm"},
    {"condition": "norm", "reach": True},
    {"timesteps": "first"},
]
all_variants = pytest.mark.parametrize("variant", VARIANTS, ids=str)
both_mixers = pytest.mark.parametrize("mixer", ["aaren", "softmax"])
paddings = pytest.mark.parametrize(("left", "right"), [(4, 0), (0, 4), (3, 5)])


def draw_rewards(time, batch=2):
    return torch.rand(batch, time, generator=torch.Generator().manual_seed(9)) * 4 - 2


def draw_with_rewards(time, first=0):
    return draw_segment(time, first=first)._replace(rewards=draw_rewards(time))


def assert_close(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@both_layouts
@all_timesteps
def test_a_thousand_steps_one_by_one_equal_one_forward(make_model, layout, timesteps):
    # Two blocks once, since the timesteps enter before the first.
    model = make_model(layout=layout, timesteps=timesteps, blocks=2 if timesteps == "none" else 1)
    segment = draw_segment(1000)
    with torch.inference_mode():
        whole = predict(model, segment)
    stepped, _ = step_through(model, segment)
    assert_close(stepped, whole, 1e-4)
    assert whole.std() > 0.05


@both_layouts
@all_variants
def test_steps_of_every_variant_equal_one_forward(make_model, layout, variant):
    model = make_model(layout=layout, **variant)
    segment = draw_with_rewards(80)
    segment = segment._replace(timesteps=segment.timesteps % 50)
    whole = predict(model, segment)
    state, previous, earned = model.initial_state(2), torch.zeros(2, ACTION_SIZE), torch.zeros(2)
    with torch.inference_mode():
        for t in range(80):
            if t == 50:
                state = model.reset_state(state, torch.ones(2, dtype=torch.bool))
            now = segment.observations[:, t], segment.timesteps[:, t], segment.returns_to_go[:, t]
            action, state = model.step(Segment.of_one_step(*now, previous, earned), state)
            assert_close(action, whole[:, t], 1e-4)
            previous, earned = segment.actions[:, t], segment.rewards[:, t]
    assert whole.std() > 0.05


@both_layouts
@all_variants
@paddings
def test_no_variant_depends_on_padding_or_splitting(make_model, layout, variant, left, right):
    model = make_model(layout=layout, **variant)
    segment = draw_with_rewards(40, first=6)
    segment = segment._replace(previous_action=PREVIOUS_ACTION, previous_reward=PREVIOUS_REWARD)
    whole = predict(model, segment)
    outputs, state = [], None
    for start, stop in ((0, 17), (17, 40)):
        ahead = PREVIOUS_ACTION, PREVIOUS_REWARD
        if start > 0:
            ahead = segment.actions[:, start - 1], segment.rewards[:, start - 1]
        piece = pad(cut(segment, slice(start, stop)), left, right, filler=3.0)
        own, state = model.act(piece._replace(previous_action=ahead[0], previous_reward=ahead[1]), state)
        outputs.append(own.mode[:, left : left + stop - start])
    assert_close(torch.cat(outputs, 1), whole)


@both_layouts
@all_variants
def test_what_is_an_input_matters_and_nothing_else(make_model, layout, variant):
    model = make_model(layout=layout, **variant)
    segment, config = draw_with_rewards(20), model.config
    plain = predict(model, segment)
    inputs = config.previous_action, config.return_to_go, config.reward
    changes = (
        {"actions": segment.actions + 0.5},
        {"returns_to_go": segment.returns_to_go + 50},
        {"rewards": segment.rewards + 1},
    )
    for matters, change in zip(inputs, changes, strict=True):
        changed = predict(model, segment._replace(**change))
        assert ((changed - plain).abs().amax() > 1e-3) == matters
        if not matters:
            # What is no input may be missing.
            assert torch.equal(predict(model, segment._replace(**dict.fromkeys(change))), plain)
    tokens = 1 + config.return_token + (config.previous_action or config.reward)
    assert config.tokens_per_step == (1 if layout == "fused" else tokens)


def test_reward_as_input_needs_rewards(make_model):
    model = make_model(reward=True)
    with pytest.raises(InvalidInput, match="has rewards as input; give rewards"):
        model(draw_segment(5))
    for known in ({"previous_action": torch.zeros(2, ACTION_SIZE)}, {"previous_reward": torch.zeros(2)}):
        with pytest.raises(InvalidInput, match="give both of the step before or neither"):
            model(draw_with_rewards(5, first=3)._replace(**known))
    alone = make_model(reward=True, previous_action=False)
    one, other = (
        predict(alone, draw_with_rewards(5, first=3)._replace(previous_reward=torch.full((2,), value)))
        for value in (1.0, 2.0)
    )
    assert (one[:, 0] - other[:, 0]).abs().max() > 1e-3
    with pytest.raises(InvalidInput, match=r"rewards has shape \(2, 4\); expected \(2, 5\)"):
        model(draw_segment(5)._replace(rewards=draw_rewards(4)))


def test_actions_and_returns_as_inputs_are_needed(make_model):
    with pytest.raises(InvalidInput, match="has actions as input; give actions"):
        make_model()(draw_segment(5)._replace(actions=None))
    with pytest.raises(InvalidInput, match="has returns to go as input; give returns_to_go"):
        make_model()(draw_segment(5)._replace(returns_to_go=None))


def test_a_loss_needs_actions(make_model):
    with pytest.raises(InvalidInput, match="a loss needs actions"):
        make_model(previous_action=False).loss(draw_segment(5)._replace(actions=None))


def test_a_first_step_flag_marks_first_steps_alone(make_model):
    model = make_model(timesteps="first")
    added = model.inputs.embed_timestep(torch.tensor([[0, 1, 7]]))
    assert torch.equal(added[0, 0], model.inputs.embed_timestep.first)
    assert not added[0, 1:].any()


def test_post_norm_is_vaswanis_order(make_model):
    """One block without mixing over time: norm(x + sublayer(x)), twice, and no norm at the end."""
    model = make_model(norm="post", blocks=1)
    block, x = model.trunk.blocks[0], torch.randn(1, 1, 16)
    y, _ = block(x, None, None, None)
    inner = block.mixer_norm(x + block.mixer.output(block.mixer.value(x)))
    expected = block.perceptron_norm(inner + block.contract(F.relu(block.expand(inner))))
    torch.testing.assert_close(y, expected)
    assert not list(model.trunk.norm.parameters())


def test_the_loss_is_a_mean_over_the_counted_steps(make_model):
    model, segment = make_model(), draw_segment(12)
    counted = torch.zeros(2, 12, dtype=torch.bool)
    counted[0, 5:], counted[1, 9] = True, True
    scaled = [model.head.scale(part) for part in (predict(model, segment), segment.actions)]
    expected = (scaled[0] - scaled[1]).square().mean(-1)[counted].mean()
    torch.testing.assert_close(model.loss(segment._replace(counted=counted))[0], expected)


def test_losses_of_two_segments_make_that_of_the_whole(make_model):
    model, segment = make_model(), draw_segment(30)
    first, state = model.loss(cut(segment, slice(0, 10)))
    rest = cut(segment, slice(10, 30))._replace(previous_action=segment.actions[:, 9])
    second, _ = model.loss(rest, state)
    torch.testing.assert_close((10 * first + 20 * second) / 30, model.loss(segment)[0])


@both_layouts
@all_timesteps
def test_softmax_steps_equal_one_forward(make_model, layout, timesteps):
    model = make_model(mixer="softmax", layout=layout, timesteps=timesteps)
    segment = draw_segment(100)
    stepped, _ = step_through(model, segment)
    assert_close(stepped, predict(model, segment), 1e-4)


@both_layouts
@pytest.mark.parametrize("mixer", sorted(set(mixers.names()) - {"aaren", "softmax"}))
def test_conformance_two_hundred_steps_equal_one_forward(make_model, layout, mixer):
    model = make_model(mixer=mixer, layout=layout)
    segment = draw_segment(200)
    stepped, after_steps = step_through(model, segment)
    prediction, after_whole = model(segment)
    assert_close(stepped, prediction.mode, 1e-4)
    assert prediction.mode.std() > 0.05
    follow = draw_segment(5, first=200)
    assert_close(step_through(model, follow, after_whole)[0], step_through(model, follow, after_steps)[0], 1e-4)


@both_layouts
@both_mixers
def test_past_actions_matter_and_no_other_ones(make_model, layout, mixer):
    model = make_model(layout=layout, mixer=mixer)
    segment = draw_segment(30)
    changed = segment.actions.clone()
    changed[:, 12:] += 0.5
    before, after = predict(model, segment), predict(model, segment._replace(actions=changed))
    assert torch.equal(before[:, :13], after[:, :13])
    assert (before[:, 13:] - after[:, 13:]).abs().amax(-1).min() > 1e-5


@both_layouts
@pytest.mark.parametrize("name", ["observations", "returns_to_go"])
def test_present_inputs_matter_and_future_ones_do_not(make_model, layout, name):
    model = make_model(layout=layout)
    segment = draw_segment(30)
    before = predict(model, segment)
    changed = getattr(segment, name).clone()
    changed[:, 12:] += 5.0
    after = predict(model, segment._replace(**{name: changed}))
    assert torch.equal(before[:, :12], after[:, :12])
    assert (before[:, 12] - after[:, 12]).abs().max() > 1e-4


@both_layouts
@both_mixers
@all_timesteps
@paddings
def test_padding_is_as_if_it_were_not_there(make_model, layout, mixer, timesteps, left, right):
    model = make_model(layout=layout, mixer=mixer, timesteps=timesteps)
    for first in (0, 6):
        segment = draw_segment(20, first=first)
        plain, after_plain = model(segment)
        outputs, after_padded = model(pad(segment, left, right))
        assert_close(outputs.mode[:, left : left + 20], plain.mode)
        follow = draw_segment(3, first=first + 20)
        assert_close(predict(model, follow, after_padded), predict(model, follow, after_plain))


@both_layouts
@both_mixers
@pytest.mark.parametrize(("left", "right"), [(5, 0), (0, 5)])
def test_a_previous_action_belongs_to_the_first_valid_step(make_model, layout, mixer, left, right):
    model = make_model(layout=layout, mixer=mixer)
    segment = draw_segment(20, first=6)._replace(previous_action=PREVIOUS_ACTION)
    outputs = predict(model, pad(segment, left, right, filler=3.0))
    assert_close(outputs[:, left : left + 20], predict(model, segment))


@both_layouts
@both_mixers
@all_timesteps
def test_packed_episodes_equal_separate_ones(make_model, layout, mixer, timesteps):
    model = make_model(layout=layout, mixer=mixer, timesteps=timesteps)
    episodes = [draw_segment(length, seed=length) for length in (7, 1, 12)]
    packed = concatenate(episodes)
    separate = torch.cat([predict(model, episode) for episode in episodes], 1)
    assert_close(predict(model, packed), separate)
    # A state and an action from before the first episode are forgotten too.
    before = model(draw_segment(5, seed=50))[1]
    assert_close(predict(model, packed._replace(previous_action=torch.ones(2, ACTION_SIZE)), before), separate)
    assert_close(step_through(model, packed)[0], separate)


@both_layouts
@both_mixers
@pytest.mark.parametrize("split", [1, 13, 69])
def test_splitting_and_resuming_changes_nothing(make_model, layout, mixer, split):
    model = make_model(layout=layout, mixer=mixer, timesteps="sinusoidal")
    segment = draw_segment(70)
    first, state = model(cut(segment, slice(0, split)))
    rest = cut(segment, slice(split, None))._replace(previous_action=segment.actions[:, split - 1])
    assert_close(torch.cat([first.mode, predict(model, rest, state)], 1), predict(model, segment))


@both_layouts
def test_a_row_does_not_depend_on_the_others(make_model, layout):
    model = make_model(layout=layout)
    segment = draw_segment(30, batch=4)
    together = predict(model, segment)
    for row in range(4):
        alone = segment.map(lambda part, row=row: part[row : row + 1])
        assert_close(together[row : row + 1], predict(model, alone))


@both_layouts
def test_an_unknown_previous_action_is_not_a_zero_one(make_model, layout):
    model = make_model(layout=layout)
    inside = draw_segment(10, first=5)
    unknown = predict(model, inside)
    zero = predict(model, inside._replace(previous_action=torch.zeros(2, ACTION_SIZE)))
    assert (unknown - zero).abs().max() > 1e-3
    # The same as the step after a padded one, whose action is not known either.
    longer = concatenate([cut(draw_segment(11, first=4), slice(0, 1)), inside])
    valid = torch.ones(2, 11, dtype=torch.bool)
    valid[:, 0] = False
    assert_close(predict(model, longer._replace(valid=valid))[:, 1:], unknown)


@both_layouts
def test_reset_rows_start_an_episode_and_the_others_go_on(make_model, layout):
    model = make_model(layout=layout)
    state = model(draw_segment(10))[1]
    rows = torch.tensor([True, False])
    follow = draw_segment(1, first=10, seed=4)._replace(previous_action=torch.ones(2, ACTION_SIZE))
    outputs = predict(model, follow, model.reset_state(state, rows))
    assert_close(outputs[0], predict(model, follow)[0])
    assert_close(outputs[1], predict(model, follow, state)[1])


@both_layouts
def test_the_loss_is_the_squared_error_of_scaled_actions(make_model, layout, action_space):
    """Its mean over the valid steps."""
    model = make_model(layout=layout)
    segment = draw_segment(12)
    valid = torch.ones(2, 12, dtype=torch.bool)
    valid[0, 5:] = valid[1, 9:] = False
    low, high = map(torch.from_numpy, action_space.bounds())

    def error(segment):
        return ((predict(model, segment) - segment.actions) / ((high - low) / 2)).square()

    padded = segment._replace(valid=valid)
    masked = error(padded)
    assert_close(model.loss(padded)[0], torch.cat([masked[0, :5], masked[1, :9]]).mean())
    assert_close(model.loss(segment)[0], error(segment).mean())


@both_layouts
def test_the_loss_and_its_gradient_ignore_padding(make_model, layout):
    model = make_model(layout=layout)
    valid = torch.ones(2, 12, dtype=torch.bool)
    valid[0, 5:] = valid[1, 9:] = False
    results = []
    for filler in (0.0, 1000.0):
        segment = draw_segment(12)
        segment = segment._replace(
            observations=segment.observations.masked_fill(~valid.unsqueeze(-1), filler),
            actions=segment.actions.masked_fill(~valid.unsqueeze(-1), filler),
            returns_to_go=segment.returns_to_go.masked_fill(~valid, filler),
            valid=valid,
        )
        model.zero_grad()
        loss, _ = model.loss(segment)
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for zero, large in zip(*results, strict=True):
        assert_close(zero, large, 1e-6)


def test_units_and_statistics_scaled_together_cancel(loud, observation_space, action_space, scaling):
    config = ModelConfig(blocks=1, width=16, dropout=0.0)
    model = loud(DecisionModel(config, observation_space, action_space, scaling)).eval()
    other_units = replace(
        scaling,
        observation_mean=scaling.observation_mean * 4 + 1,
        observation_std=scaling.observation_std * 4,
        return_scale=scaling.return_scale * 8,
    )
    other = loud(DecisionModel(config, observation_space, action_space, other_units)).eval()
    segment = draw_segment(20)
    converted = segment._replace(observations=segment.observations * 4 + 1, returns_to_go=segment.returns_to_go * 8)
    assert_close(predict(other, converted), predict(model, segment), 1e-4)


def test_scaling_action_bounds_scales_the_actions(loud, observation_space, action_space, scaling):
    config = ModelConfig(blocks=1, width=16, dropout=0.0)
    low, high = action_space.bounds()
    doubled, segment = Box.bounded(low * 2, high * 2), draw_segment(20)
    plain = predict(loud(DecisionModel(config, observation_space, action_space, scaling)).eval(), segment)
    wide = loud(DecisionModel(config, observation_space, doubled, scaling)).eval()
    assert_close(predict(wide, segment._replace(actions=segment.actions * 2)), plain * 2)


def test_saturated_actions_are_the_bounds_and_none_leaves_them(make_model, action_space):
    model = make_model()
    low, high = map(torch.from_numpy, action_space.bounds())
    actions = predict(model, draw_segment(200, batch=4))
    assert ((actions >= low) & (actions <= high)).all()
    for bias, bound in ((-1000.0, low), (1000.0, high)):
        torch.nn.init.constant_(model.head.linear.bias, bias)
        assert_close(predict(model, draw_segment(5)), bound.expand(2, 5, -1))


def test_rounding_carries_no_saturated_action_out_of_odd_bounds():
    rng = np.random.default_rng(0)
    low = -rng.uniform(0.1, 3, 200).astype(np.float32)
    high = rng.uniform(0.1, 3, 200).astype(np.float32)
    spaces = Box.unbounded((1,)), Box.bounded(low, high)
    model = DecisionModel(ModelConfig(blocks=1, width=8), *spaces, Scaling(np.zeros(1), np.ones(1))).eval()
    torch.nn.init.constant_(model.head.linear.bias, 100.0)
    segment = Segment(torch.zeros(1, 1, 1), torch.zeros(1, 1).long(), torch.zeros(1, 1, 200), None, torch.zeros(1, 1))
    assert (predict(model, segment)[0, 0].detach().numpy() <= high).all()


def test_sinusoids_are_vaswanis_formula(make_model):
    """What the timestep adds is read off the model itself, at the sum of the embeddings."""
    model = make_model(timesteps="sinusoidal", layout="fused", blocks=1)
    seen = []
    model.inputs.norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    timesteps = torch.randint(1, 5000, (2, 50), generator=torch.Generator().manual_seed(1))
    segment = draw_segment(50)._replace(timesteps=timesteps, previous_action=torch.zeros(2, ACTION_SIZE))
    model(segment)
    plain = make_model(timesteps="none", layout="fused", blocks=1)
    plain.load_state_dict(model.state_dict())
    plain.inputs.norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    plain(segment)
    added = seen[0] - seen[1]
    expected = torch.empty(2, 50, 16, dtype=torch.float64)
    for i in range(8):
        angle = timesteps.double() / math.pow(10_000, 2 * i / 16)
        expected[..., i], expected[..., 8 + i] = angle.sin(), angle.cos()
    assert_close(added.double(), expected, 1e-3)


@pytest.mark.parametrize("width", [15, 16])
def test_sinusoidal_timesteps_fit_any_width_and_any_length(make_model, width):
    model = make_model(timesteps="sinusoidal", width=width, heads=1)
    assert predict(model, draw_segment(3, first=10**6)).isfinite().all()


def test_two_thousand_steps_leave_a_state_as_large_as_ten(make_model):
    model = make_model(blocks=1, layout="fused")
    after_ten = step_through(model, draw_segment(10))[1]
    after_many = step_through(model, draw_segment(2000))[1]
    assert state_bytes(after_many) == state_bytes(after_ten) == state_bytes(model.initial_state(2))


@pytest.mark.slow
@both_layouts
def test_a_hundred_thousand_steps_equal_forward(make_model, layout):
    """And the state keeps its size."""
    model = make_model(layout=layout, blocks=1)
    segment = draw_segment(100_000, batch=1)
    outputs, state = step_through(model, segment)
    assert state_bytes(state) == state_bytes(model.initial_state(1))
    with torch.inference_mode():
        assert_close(outputs, predict(model, segment), 1e-4)


def test_a_softmax_state_grows_with_every_token(make_model):
    for layout, per_step in (("interleaved", 3), ("fused", 1)):
        model = make_model(mixer="softmax", layout=layout, blocks=1)
        state = step_through(model, draw_segment(10))[1]
        assert model.config.tokens_per_step == per_step
        assert state[0].live.shape[1] == 10 * per_step


def test_dropout_is_off_in_evaluation_and_on_in_training(make_model):
    model = make_model(dropout=0.5)
    segment = draw_segment(10)
    assert torch.equal(predict(model, segment), predict(model, segment))
    model.train()
    assert not torch.equal(predict(model, segment), predict(model, segment))


@pytest.mark.parametrize(
    ("field", "named"),
    [
        ("observations", "observations"),
        ("actions", "actions"),
        ("returns_to_go", "returns_to_go"),
        # Timesteps say how many steps the other fields are to have.
        ("timesteps", "observations"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(make_model, field, named):
    segment = draw_segment(10)
    given = getattr(segment, field)
    other = given[..., :3] if field == "observations" else given[:, :9]
    with pytest.raises(InvalidInput, match=f"{named} has shape"):
        make_model()(segment._replace(**{field: other}))


def test_a_previous_action_that_does_not_fit_is_refused(make_model):
    with pytest.raises(InvalidInput, match=r"previous_action has shape \(2, 3\); expected \(2, 2\)"):
        make_model()(draw_segment(10)._replace(previous_action=torch.zeros(2, 3)))


def test_a_step_beyond_a_learned_embedding_is_refused(make_model):
    model = make_model(timesteps="learned", max_steps=12)
    model(draw_segment(12))
    with pytest.raises(InvalidInput, match="timestep 12 is beyond the learned embedding of 12 steps"):
        model(draw_segment(13))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixer": "aarn"}, "did you mean 'aaren'"),
        ({"layout": "stacked"}, "expected one of interleaved, fused"),
        ({"timesteps": "rotary"}, "expected one of none, first, learned, sinusoidal"),
        ({"dropout": 1.0}, "dropout is"),
        ({"dropout": -0.1}, "dropout is"),
        ({"blocks": 0}, "blocks is 0"),
        ({"width": 0}, "width is 0"),
        ({"heads": 0}, "heads is 0"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"norm": "middle"}, "expected one of pre, post"),
        ({"mixer": "softmax(recency=true)"}, r"'softmax\(recency=true\)': unknown option 'recency'; .* conv=0"),
    ],
)
def test_configurations_that_cannot_be_are_refused(changes, message):
    with pytest.raises(InvalidInput, match=message):
        ModelConfig(**changes)


def test_a_width_that_is_no_multiple_of_the_heads_is_refused(observation_space, action_space, scaling):
    with pytest.raises(InvalidInput, match="multiple of the heads"):
        DecisionModel(ModelConfig(width=10, heads=3), observation_space, action_space, scaling)


def test_a_saved_configuration_with_unknown_fields_is_refused():
    assert config_from_dict({"width": 64}) == ModelConfig(width=64)
    for name in ("depth", "recency"):
        with pytest.raises(InvalidInput, match=f"unknown field of the model's configuration '{name}'"):
            config_from_dict({name: 3})


@pytest.mark.parametrize(
    "changes",
    [
        {"observation_std": np.array([1.0, -1.0, 1.0, 1.0])},
        {"observation_std": np.ones(3)},
        {"return_scale": 0.0},
        {"return_scale": -1.0},
        {"return_scale": np.nan},
        {"reward_scale": 0.0},
        {"reward_scale": -1.0},
        {"reward_scale": np.nan},
        {"observation_std": np.full(4, np.nan)},
        {"observation_std": np.full(4, np.inf)},
        {"observation_mean": np.array([0.0, np.nan, 0.0, 0.0])},
        {"observation_mean": np.array([0.0, 1e39, 0.0, 0.0])},
        {"return_scale": 1e-50},
        {"return_scale": 1e39},
    ],
)
def test_scaling_that_cannot_be_is_refused(scaling, changes):
    with pytest.raises(InvalidInput):
        replace(scaling, **changes)


@pytest.mark.parametrize(("low", "high"), [([0.0, 0.0, 0.0], [1.0, 5.0]), ([-1.0, 6.0], [1.0, 5.0])])
def test_action_bounds_that_cannot_be_are_refused(observation_space, scaling, low, high):
    with pytest.raises(InvalidInput):
        DecisionModel(ModelConfig(width=16), observation_space, Box.bounded(low, high), scaling)


def test_an_action_space_without_bounds_is_refused(observation_space, scaling):
    for space in (Box.unbounded((2,)), Box.bounded([0.0, -np.inf], [1.0, 1.0])):
        with pytest.raises(InvalidInput, match="has no bounds; give it the range of the data's actions"):
            DecisionModel(ModelConfig(width=16), observation_space, space, scaling)


def test_scaling_is_saved_with_the_weights_but_not_trained(make_model, scaling):
    model = make_model()
    trained = {name for name, _ in model.named_parameters()}
    saved = model.state_dict()
    expected = {
        "inputs.observation.mean": scaling.observation_mean,
        "inputs.observation.std": scaling.observation_std,
        "inputs.return_scale": np.float32(scaling.return_scale),
        "inputs.reward_scale": np.float32(scaling.reward_scale),
    }
    # The bounds of the actions belong to their space, which is saved beside the weights.
    assert saved.keys() - trained == expected.keys()
    for name, value in expected.items():
        assert name not in trained
        np.testing.assert_array_equal(saved[name], value)
    assert count_parameters(model) == sum(saved[name].numel() for name in trained)
