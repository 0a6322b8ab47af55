import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from aaren_rl import mixers
from aaren_rl.errors import InvalidInput
from aaren_rl.mixers import state_bytes
from aaren_rl.model import DecisionModel, ModelConfig, Scaling, config_from_dict, count_parameters

OBSERVATION_SIZE, ACTION_SIZE = 4, 2
LAYOUTS = ("interleaved", "fused")
TIMESTEPS = ("none", "first", "learned", "sinusoidal")

both_layouts = pytest.mark.parametrize("layout", LAYOUTS)
all_timesteps = pytest.mark.parametrize("timesteps", TIMESTEPS)
LEVERS = [
    {"previous_action": False},
    {"reward": True},
    {"reward": True, "previous_action": False},
    {"return_to_go": False},
    {"return_to_go": False, "previous_action": False},
    {"recency": True},
    {"norm": "post"},
    {"timesteps": "first"},
]
all_levers = pytest.mark.parametrize("lever", LEVERS, ids=str)
both_mixers = pytest.mark.parametrize("mixer", ["aaren", "softmax"])


def draw(time, batch=2, seed=0, first=0):
    """Random arguments of forward, in raw units: states, actions, returns_to_go, timesteps."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, time, OBSERVATION_SIZE, generator=generator) * 3,
        torch.rand(batch, time, ACTION_SIZE, generator=generator),
        torch.rand(batch, time, generator=generator) * 100,
        torch.arange(first, first + time).expand(batch, -1),
    )


def piece(arguments, where):
    return tuple(part[:, where] for part in arguments)


def step_through(model, arguments, state=None):
    states, actions, returns_to_go, timesteps = arguments
    state = model.initial_state(states.shape[0]) if state is None else state
    previous, outputs = torch.zeros_like(actions[:, 0]), []
    with torch.inference_mode():
        for t in range(states.shape[1]):
            action, state = model.step(states[:, t], previous, returns_to_go[:, t], timesteps[:, t], state)
            outputs.append(action)
            previous = actions[:, t]
    return torch.stack(outputs, 1), state


def assert_close(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@both_layouts
@all_timesteps
def test_a_thousand_steps_one_by_one_equal_one_forward(make_model, layout, timesteps):
    # Two blocks once, since the timesteps enter before the first.
    model = make_model(layout=layout, timesteps=timesteps, blocks=2 if timesteps == "none" else 1)
    arguments = draw(1000)
    with torch.inference_mode():
        whole, _ = model(*arguments)
    stepped, _ = step_through(model, arguments)
    assert_close(stepped, whole, 1e-4)
    assert whole.std() > 0.05


def draw_rewards(time, batch=2):
    return torch.rand(batch, time, generator=torch.Generator().manual_seed(9)) * 4 - 2


@both_layouts
@all_levers
def test_with_every_lever_steps_equal_one_forward(make_model, layout, lever):
    model = make_model(layout=layout, **lever)
    (states, actions, wanted, timesteps), rewards = draw(80), draw_rewards(80)
    timesteps = timesteps % 50
    whole, _ = model(states, actions, wanted, timesteps, rewards=rewards)
    state, previous, earned = model.initial_state(2), torch.zeros(2, ACTION_SIZE), torch.zeros(2)
    with torch.inference_mode():
        for t in range(80):
            if t == 50:
                state = model.reset_state(state, torch.ones(2, dtype=torch.bool))
            action, state = model.step(states[:, t], previous, wanted[:, t], timesteps[:, t], state, earned)
            assert_close(action, whole[:, t], 1e-4)
            previous, earned = actions[:, t], rewards[:, t]
    assert whole.std() > 0.05


@both_layouts
@all_levers
@pytest.mark.parametrize(("left", "right"), [(4, 0), (0, 4), (3, 5)])
def test_with_every_lever_padding_splitting_and_resuming_change_nothing(make_model, layout, lever, left, right):
    model = make_model(layout=layout, **lever)
    arguments, rewards = draw(40, first=6), draw_rewards(40)
    before = torch.tensor([[0.5, 4.0], [-0.5, 1.0]]), torch.tensor([1.5, -0.5])
    whole, _ = model(*arguments, before[0], rewards=rewards, previous_reward=before[1])
    outputs, state = [], None
    for start, stop in ((0, 17), (17, 40)):
        padded = [
            F.pad(part[:, start:stop], (0, 0) * (part.ndim - 2) + (left, right), value=3)
            for part in (*arguments, rewards)
        ]
        valid = F.pad(torch.ones(2, stop - start, dtype=torch.bool), (left, right))
        ahead = before if start == 0 else (arguments[1][:, start - 1], rewards[:, start - 1])
        own, state = model(*padded[:4], ahead[0], valid, padded[4], ahead[1], state)
        outputs.append(own[:, left : left + stop - start])
    assert_close(torch.cat(outputs, 1), whole)


@both_layouts
@all_levers
def test_with_every_lever_what_is_left_out_does_not_matter_and_what_is_in_does(make_model, layout, lever):
    model = make_model(layout=layout, **lever)
    (states, actions, wanted, timesteps), rewards = draw(20), draw_rewards(20)
    plain, _ = model(states, actions, wanted, timesteps, rewards=rewards)
    asked = model.config.previous_action, model.config.return_to_go, model.config.reward
    changes = ((actions + 0.5, wanted, rewards), (actions, wanted + 50, rewards), (actions, wanted, rewards + 1))
    for matters, (acted, returns, earned) in zip(asked, changes, strict=True):
        changed, _ = model(states, acted, returns, timesteps, rewards=earned)
        assert ((changed - plain).abs().amax() > 1e-3) == matters
    tokens = 1 + model.config.return_to_go + (model.config.previous_action or model.config.reward)
    assert model.tokens_per_step == (1 if layout == "fused" else tokens)


def test_reward_as_input_needs_rewards(make_model):
    model = make_model(reward=True)
    with pytest.raises(InvalidInput, match="has reward as input; give rewards"):
        model(*draw(5))
    with pytest.raises(InvalidInput, match="give both of the step before or neither"):
        model(*draw(5, first=3), torch.zeros(2, ACTION_SIZE), rewards=draw_rewards(5))
    alone = make_model(reward=True, previous_action=False)
    one, other = (
        alone(*draw(5, first=3), rewards=draw_rewards(5), previous_reward=torch.full((2,), value))[0]
        for value in (1.0, 2.0)
    )
    assert (one[:, 0] - other[:, 0]).abs().max() > 1e-3
    with pytest.raises(InvalidInput, match=r"rewards has shape \(2, 4\); expected \(2, 5\)"):
        model(*draw(5), rewards=draw_rewards(4))


def test_a_first_step_flag_marks_first_steps_alone(make_model):
    model = make_model(timesteps="first")
    added = model.embed_timesteps(torch.tensor([[0, 1, 7]]))
    assert torch.equal(added[0, 0], model.embed_first)
    assert not added[0, 1:].any()


def test_post_norm_is_vaswanis_order(make_model):
    """One block without mixing over time: norm(x + sublayer(x)), twice, and no norm at the end."""
    model = make_model(norm="post", blocks=1)
    block, x = model.blocks[0], torch.randn(1, 1, 16)
    y, _ = block(x, None, None, None)
    inner = block.mixer_norm(x + block.mixer.output(block.mixer.value(x)))
    expected = block.perceptron_norm(inner + block.contract(F.relu(block.expand(inner))))
    torch.testing.assert_close(y, expected)
    assert not list(model.norm.parameters())


def test_the_loss_counts_the_steps_it_is_told_to(make_model):
    model, arguments = make_model(), draw(12)
    counted = torch.zeros(2, 12, dtype=torch.bool)
    counted[0, 5:], counted[1, 9] = True, True
    scaled = [model._scale_action(part) for part in (model(*arguments)[0], arguments[1])]
    expected = (scaled[0] - scaled[1]).square().mean(-1)[counted].mean()
    torch.testing.assert_close(model.loss(*arguments, counted=counted), expected)


def test_the_loss_of_two_segments_with_a_state_between_is_that_of_the_whole(make_model):
    model, arguments = make_model(), draw(30)
    first, state = model.loss_and_state(*piece(arguments, slice(0, 10)))
    previous = arguments[1][:, 9]
    second = model.loss(*piece(arguments, slice(10, 30)), previous, state=state)
    torch.testing.assert_close((10 * first + 20 * second) / 30, model.loss(*arguments))


@both_layouts
@all_timesteps
def test_softmax_steps_equal_one_forward(make_model, layout, timesteps):
    model = make_model(mixer="softmax", layout=layout, timesteps=timesteps)
    arguments = draw(100)
    stepped, _ = step_through(model, arguments)
    assert_close(stepped, model(*arguments)[0], 1e-4)


@both_layouts
@pytest.mark.parametrize("mixer", sorted(set(mixers.names()) - {"aaren", "softmax"}))
def test_conformance_two_hundred_steps_of_any_mixer_equal_one_forward(make_model, layout, mixer):
    model = make_model(mixer=mixer, layout=layout)
    arguments = draw(200)
    stepped, after_steps = step_through(model, arguments)
    whole, after_whole = model(*arguments)
    assert_close(stepped, whole, 1e-4)
    assert whole.std() > 0.05
    follow = draw(5, first=200)
    assert_close(step_through(model, follow, after_whole)[0], step_through(model, follow, after_steps)[0], 1e-4)


@both_layouts
@both_mixers
def test_neither_present_nor_future_actions_matter_but_past_ones_do(make_model, layout, mixer):
    model = make_model(layout=layout, mixer=mixer)
    states, actions, returns_to_go, timesteps = draw(30)
    changed = actions.clone()
    changed[:, 12:] += 0.5
    before, after = (
        model(states, actions, returns_to_go, timesteps)[0],
        model(states, changed, returns_to_go, timesteps)[0],
    )
    assert torch.equal(before[:, :13], after[:, :13])
    assert (before[:, 13:] - after[:, 13:]).abs().amax(-1).min() > 1e-5


@both_layouts
@pytest.mark.parametrize("which", [0, 2])
def test_present_observations_and_returns_matter_and_future_ones_do_not(make_model, layout, which):
    model = make_model(layout=layout)
    arguments = list(draw(30))
    before = model(*arguments)[0]
    arguments[which] = arguments[which].clone()
    arguments[which][:, 12:] += 5.0
    after = model(*arguments)[0]
    assert torch.equal(before[:, :12], after[:, :12])
    assert (before[:, 12] - after[:, 12]).abs().max() > 1e-4


@both_layouts
@both_mixers
@all_timesteps
@pytest.mark.parametrize(("left", "right"), [(4, 0), (0, 4), (3, 5)])
def test_padding_is_as_if_it_were_not_there(make_model, layout, mixer, timesteps, left, right):
    model = make_model(layout=layout, mixer=mixer, timesteps=timesteps)
    for first in (0, 6):
        arguments = draw(20, first=first)
        plain, after_plain = model(*arguments)
        padded = [
            F.pad(part, (0, 0) * (part.ndim - 2) + (left, right), value=3 if part.dtype == torch.int64 else 7.0)
            for part in arguments
        ]
        valid = F.pad(torch.ones(2, 20, dtype=torch.bool), (left, right))
        outputs, after_padded = model(*padded, valid=valid)
        assert_close(outputs[:, left : left + 20], plain)
        follow = draw(3, first=first + 20)
        assert_close(model(*follow, state=after_padded)[0], model(*follow, state=after_plain)[0])


@both_layouts
@both_mixers
def test_right_padding_with_a_previous_action_is_as_if_it_were_not_there(make_model, layout, mixer):
    model = make_model(layout=layout, mixer=mixer)
    arguments, previous = draw(20, first=6), torch.tensor([[0.5, 4.0], [-0.5, 1.0]])
    padded = [F.pad(part, (0, 0) * (part.ndim - 2) + (0, 5), value=3) for part in arguments]
    valid = F.pad(torch.ones(2, 20, dtype=torch.bool), (0, 5))
    assert_close(model(*padded, previous, valid)[0][:, :20], model(*arguments, previous)[0])


@both_layouts
def test_left_padding_with_a_previous_action_is_as_if_it_were_not_there(make_model, layout):
    model = make_model(layout=layout)
    arguments, previous = draw(20, first=6), torch.tensor([[0.5, 4.0], [-0.5, 1.0]])
    padded = [F.pad(part, (0, 0) * (part.ndim - 2) + (5, 0), value=3) for part in arguments]
    valid = F.pad(torch.ones(2, 20, dtype=torch.bool), (5, 0))
    assert_close(model(*padded, previous, valid)[0][:, 5:], model(*arguments, previous)[0])


@both_layouts
@both_mixers
@all_timesteps
def test_packed_episodes_equal_separate_ones(make_model, layout, mixer, timesteps):
    model = make_model(layout=layout, mixer=mixer, timesteps=timesteps)
    lengths = (7, 1, 12)
    episodes = [draw(length, seed=length) for length in lengths]
    packed = tuple(torch.cat(parts, 1) for parts in zip(*episodes, strict=True))
    separate = torch.cat([model(*episode)[0] for episode in episodes], 1)
    assert_close(model(*packed)[0], separate)
    # A state and an action from before the first episode are forgotten too.
    before = model(*draw(5, seed=50))[1]
    assert_close(model(*packed, torch.ones(2, ACTION_SIZE), state=before)[0], separate)
    assert_close(step_through(model, packed)[0], separate)


@both_layouts
@both_mixers
@pytest.mark.parametrize("split", [1, 13, 69])
def test_splitting_and_resuming_changes_nothing(make_model, layout, mixer, split):
    model = make_model(layout=layout, mixer=mixer, timesteps="sinusoidal")
    arguments = draw(70)
    first, state = model(*piece(arguments, slice(0, split)))
    second, _ = model(*piece(arguments, slice(split, None)), arguments[1][:, split - 1], state=state)
    assert_close(torch.cat([first, second], 1), model(*arguments)[0])


@both_layouts
def test_a_row_does_not_depend_on_the_others(make_model, layout):
    model = make_model(layout=layout)
    arguments = draw(30, batch=4)
    together, _ = model(*arguments)
    for row in range(4):
        assert_close(together[row : row + 1], model(*(part[row : row + 1] for part in arguments))[0])


@both_layouts
def test_an_unknown_previous_action_is_not_a_zero_one(make_model, layout):
    model = make_model(layout=layout)
    inside = draw(10, first=5)
    unknown, _ = model(*inside)
    zero, _ = model(*inside, torch.zeros(2, ACTION_SIZE))
    assert (unknown - zero).abs().max() > 1e-3
    # The same as the step after a padded one, whose action is not known either.
    longer = draw(11, first=4)
    longer = tuple(torch.cat([a[:, :1], b], 1) for a, b in zip(longer, inside, strict=True))
    valid = torch.ones(2, 11, dtype=torch.bool)
    valid[:, 0] = False
    assert_close(model(*longer, valid=valid)[0][:, 1:], unknown)


@both_layouts
def test_reset_rows_start_an_episode_and_the_others_go_on(make_model, layout):
    model = make_model(layout=layout)
    state = model(*draw(10))[1]
    rows = torch.tensor([True, False])
    follow, previous = draw(1, first=10, seed=4), torch.ones(2, ACTION_SIZE)
    outputs = model(*follow, previous, state=model.reset_state(state, rows))[0]
    assert_close(outputs[0], model(*follow, previous)[0][0])
    assert_close(outputs[1], model(*follow, previous, state=state)[0][1])


@both_layouts
def test_the_loss_is_the_mean_squared_error_of_scaled_actions_over_valid_steps(make_model, layout, scaling):
    model = make_model(layout=layout)
    arguments = draw(12)
    valid = torch.ones(2, 12, dtype=torch.bool)
    valid[0, 5:] = valid[1, 9:] = False
    half_range = torch.from_numpy(scaling.action_high - scaling.action_low) / 2

    def error(valid):
        return ((model(*arguments, valid=valid)[0] - arguments[1]) / half_range).square()

    masked = error(valid)
    assert_close(model.loss(*arguments, valid=valid), torch.cat([masked[0, :5], masked[1, :9]]).mean())
    assert_close(model.loss(*arguments), error(None).mean())


@both_layouts
def test_the_loss_and_its_gradient_ignore_padding(make_model, layout):
    model = make_model(layout=layout)
    valid = torch.ones(2, 12, dtype=torch.bool)
    valid[0, 5:] = valid[1, 9:] = False
    results = []
    for filler in (0.0, 1000.0):
        states, actions, returns_to_go, timesteps = draw(12)
        states = states.masked_fill(~valid.unsqueeze(-1), filler)
        actions = actions.masked_fill(~valid.unsqueeze(-1), filler)
        returns_to_go = returns_to_go.masked_fill(~valid, filler)
        model.zero_grad()
        loss = model.loss(states, actions, returns_to_go, timesteps, valid=valid)
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for zero, large in zip(*results, strict=True):
        assert_close(zero, large, 1e-6)


def test_scaling_units_and_statistics_together_leaves_the_output_unchanged(loud, scaling):
    config = ModelConfig(blocks=1, width=16, dropout=0.0)
    model = loud(DecisionModel(config, scaling)).eval()
    other_units = replace(
        scaling,
        observation_mean=scaling.observation_mean * 4 + 1,
        observation_std=scaling.observation_std * 4,
        return_scale=scaling.return_scale * 8,
    )
    other = loud(DecisionModel(config, other_units)).eval()
    states, actions, returns_to_go, timesteps = draw(20)
    assert_close(
        other(states * 4 + 1, actions, returns_to_go * 8, timesteps)[0],
        model(states, actions, returns_to_go, timesteps)[0],
        1e-4,
    )


def test_scaling_action_bounds_scales_the_actions(loud, scaling):
    config = ModelConfig(blocks=1, width=16, dropout=0.0)
    doubled = replace(scaling, action_low=scaling.action_low * 2, action_high=scaling.action_high * 2)
    states, actions, returns_to_go, timesteps = draw(20)
    plain = loud(DecisionModel(config, scaling)).eval()(states, actions, returns_to_go, timesteps)[0]
    wide = loud(DecisionModel(config, doubled)).eval()(states, actions * 2, returns_to_go, timesteps)[0]
    assert_close(wide, plain * 2)


def test_saturated_actions_are_the_bounds_and_no_other_leaves_them(make_model, scaling):
    model = make_model()
    low, high = torch.from_numpy(scaling.action_low), torch.from_numpy(scaling.action_high)
    actions, _ = model(*draw(200, batch=4))
    assert ((actions >= low) & (actions <= high)).all()
    for bias, bound in ((-1000.0, low), (1000.0, high)):
        torch.nn.init.constant_(model.head.bias, bias)
        assert_close(model(*draw(5))[0], bound.expand(2, 5, -1))


def test_saturated_actions_do_not_leave_odd_bounds_by_a_rounding_error():
    rng = np.random.default_rng(0)
    low = -rng.uniform(0.1, 3, 200).astype(np.float32)
    high = rng.uniform(0.1, 3, 200).astype(np.float32)
    model = DecisionModel(ModelConfig(blocks=1, width=8), Scaling(np.zeros(1), np.ones(1), low, high)).eval()
    torch.nn.init.constant_(model.head.bias, 100.0)
    action, _ = model(torch.zeros(1, 1, 1), torch.zeros(1, 1, 200), torch.zeros(1, 1), torch.zeros(1, 1).long())
    assert (action[0, 0].detach().numpy() <= high).all()


def test_sinusoids_are_vaswanis_formula(make_model):
    """What the timestep adds is read off the model itself, at the sum of the embeddings."""
    model = make_model(timesteps="sinusoidal", layout="fused", blocks=1)
    seen = []
    model.embed_norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    states, actions, returns_to_go, _ = draw(50)
    timesteps = torch.randint(1, 5000, (2, 50), generator=torch.Generator().manual_seed(1))
    previous = torch.zeros(2, ACTION_SIZE)
    model(states, actions, returns_to_go, timesteps, previous)
    plain = make_model(timesteps="none", layout="fused", blocks=1)
    plain.load_state_dict(model.state_dict())
    plain.embed_norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    plain(states, actions, returns_to_go, timesteps, previous)
    added = seen[0] - seen[1]
    expected = torch.empty(2, 50, 16, dtype=torch.float64)
    for i in range(8):
        angle = timesteps.double() / math.pow(10_000, 2 * i / 16)
        expected[..., i], expected[..., 8 + i] = angle.sin(), angle.cos()
    assert_close(added.double(), expected, 1e-3)


@pytest.mark.parametrize("width", [15, 16])
def test_sinusoidal_timesteps_fit_any_width_and_any_length(make_model, width):
    model = make_model(timesteps="sinusoidal", width=width, heads=1)
    outputs, _ = model(*draw(3, first=10**6))
    assert outputs.isfinite().all()


def test_the_state_after_two_thousand_steps_is_as_large_as_after_ten(make_model):
    model = make_model(blocks=1, layout="fused")
    after_ten = step_through(model, draw(10))[1]
    after_many = step_through(model, draw(2000))[1]
    assert state_bytes(after_many) == state_bytes(after_ten) == state_bytes(model.initial_state(2))


@pytest.mark.slow
@both_layouts
def test_a_hundred_thousand_steps_keep_the_size_of_the_state_and_agree_with_forward(make_model, layout):
    model = make_model(layout=layout, blocks=1)
    arguments = draw(100_000, batch=1)
    outputs, state = step_through(model, arguments)
    assert state_bytes(state) == state_bytes(model.initial_state(1))
    with torch.inference_mode():
        assert_close(outputs, model(*arguments)[0], 1e-4)


def test_a_softmax_state_grows_with_every_token(make_model):
    for layout, per_step in (("interleaved", 3), ("fused", 1)):
        model = make_model(mixer="softmax", layout=layout, blocks=1)
        state = step_through(model, draw(10))[1]
        assert model.tokens_per_step == per_step
        assert state[0].live.shape[1] == 10 * per_step


def test_dropout_is_off_in_evaluation_and_on_in_training(make_model):
    model = make_model(dropout=0.5)
    arguments = draw(10)
    assert torch.equal(model(*arguments)[0], model(*arguments)[0])
    model.train()
    assert not torch.equal(model(*arguments)[0], model(*arguments)[0])


@pytest.mark.parametrize("which", range(4))
def test_shapes_that_do_not_fit_are_refused(make_model, which):
    model = make_model()
    name = ("states", "actions", "returns_to_go", "timesteps")[which]
    arguments = list(draw(10))
    arguments[which] = arguments[which][:, :9] if which else arguments[which][..., :3]
    with pytest.raises(InvalidInput, match=f"{name} has shape"):
        model(*arguments)


def test_a_previous_action_that_does_not_fit_is_refused(make_model):
    with pytest.raises(InvalidInput, match=r"previous_action has shape \(2, 3\); expected \(2, 2\)"):
        make_model()(*draw(10), torch.zeros(2, 3))


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
        ({"recency": True, "mixer": "softmax"}, "recency is an option of the mixer aaren, not of softmax"),
    ],
)
def test_configurations_that_cannot_be_are_refused(changes, message):
    with pytest.raises(InvalidInput, match=message):
        ModelConfig(**changes)


def test_a_width_that_is_no_multiple_of_the_heads_is_refused(scaling):
    with pytest.raises(InvalidInput, match="multiple of the heads"):
        DecisionModel(ModelConfig(width=10, heads=3), scaling)


def test_a_saved_configuration_with_unknown_fields_is_refused():
    assert config_from_dict({"width": 64}) == ModelConfig(width=64)
    with pytest.raises(InvalidInput, match=r"unknown fields \['depth'\]"):
        config_from_dict({"depth": 3})


@pytest.mark.parametrize(
    "changes",
    [
        {"observation_std": np.zeros(4)},
        {"observation_std": np.ones(3)},
        {"action_high": np.array([1.0, 0.0])},
        {"action_low": np.zeros(3)},
        {"return_scale": 0.0},
        {"return_scale": -1.0},
        {"return_scale": np.nan},
        {"observation_std": np.full(4, np.nan)},
    ],
)
def test_scaling_that_cannot_be_is_refused(scaling, changes):
    with pytest.raises(InvalidInput):
        replace(scaling, **changes)


def test_scaling_is_saved_with_the_weights_but_not_trained(make_model, scaling):
    model = make_model()
    trained = {name for name, _ in model.named_parameters()}
    saved = model.state_dict()
    for name in ("observation_mean", "observation_std", "action_low", "action_high"):
        assert name not in trained
        np.testing.assert_array_equal(saved[name], getattr(scaling, name))
    assert count_parameters(model) == sum(saved[name].numel() for name in trained)
