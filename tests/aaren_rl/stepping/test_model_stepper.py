import copy

import numpy as np
import pytest
import torch
from helpers import double, open_norms, predict
from torch import nn

from aaren_rl import mixers
from aaren_rl.data.segment import Segment
from aaren_rl.data.spaces import Box
from aaren_rl.errors import InvalidInput
from aaren_rl.mixers import Aaren, Mixer, state_tensors
from aaren_rl.mixers.aaren import stepper as aaren_stepper
from aaren_rl.mixers.base.contract import PlainStepper
from aaren_rl.model import DecisionModel, ModelConfig
from aaren_rl.model.inputs_stepper import ACTION, RETURN_TO_GO, TIMESTEP
from aaren_rl.stepping.model_stepper import ModelStepper
from aaren_rl.stepping.numpy_model_stepper import NumpyModelStepper

OBSERVATION_SIZE, ACTION_SIZE = 4, 2
MIXERS = ACTION + ACTION_SIZE
"""Column of a row of state at which the mixers' states start."""

TARGETS = np.array([90.0, 150.0, -20.0], dtype=np.float32)

both_layouts = pytest.mark.parametrize("layout", ["interleaved", "fused"])
both_libraries = pytest.mark.parametrize("library", ["torch", "numpy"])
both_forms = pytest.mark.parametrize("form", ["bounded", "running"])

SHAPES = [
    *(
        ({"layout": layout, "heads": heads}, form)
        for layout in ("interleaved", "fused")
        for heads in (1, 4)
        for form in ("bounded", "running")
    ),
    *(
        ({"layout": layout, "timesteps": timesteps}, "bounded")
        for layout in ("interleaved", "fused")
        for timesteps in ("first", "learned", "sinusoidal")
    ),
    *(
        ({"layout": layout, **variant}, "bounded")
        for layout in ("interleaved", "fused")
        for variant in (
            {"previous_action": False},
            {"reward": True},
            {"reward": True, "previous_action": False, "timesteps": "first"},
            {"return_to_go": False},
            {"return_to_go": False, "previous_action": False, "timesteps": "sinusoidal"},
            {"norm": "post"},
            {"condition": "norm"},
            {"condition": "norm", "reach": True},
            {"condition": "norm", "norm": "post"},
        )
    ),
    *(
        ({"layout": layout, "heads": heads, "mixer": "aaren(recency=true)"}, form)
        for layout in ("interleaved", "fused")
        for heads in (1, 4)
        for form in ("bounded", "running")
    ),
    *(
        ({"layout": layout, "heads": heads, "mixer": mixer}, "always running")
        for layout in ("interleaved", "fused")
        for heads in (1, 4)
        for mixer in ("gated-aaren", "aaren(rotary=0.5, recency=true)")
    ),
]
"""Shapes of models, and which of Aaren's two forms acts; with gates or rotation there is one form."""


@pytest.fixture
def make_model(make_model):
    """As everywhere, with layer norms that let all through."""
    return lambda **changes: open_norms(make_model(**changes))


@pytest.fixture
def take(monkeypatch):
    """Makes Aaren act in one of its forms."""

    def change(form):
        if form == "running":
            monkeypatch.setattr(aaren_stepper, "NARROW", -1.0)

    return change


def make_step(model, library="torch"):
    """The step as a function of arrays, and the row of state it starts from."""
    step = ModelStepper(model)
    if library == "numpy":
        return NumpyModelStepper.of(step), step.start.numpy().copy()

    def function(*arrays):
        with torch.inference_mode():
            return tuple(part.numpy() for part in step(*(torch.from_numpy(array) for array in arrays)))

    return function, step.start.numpy().copy()


def forms_of(model):
    return {block.mixer.bounded for block in ModelStepper(model).trunk.blocks}


def draw(time, batch=3, starts=(), seed=0):
    """Observations (batch, time, size), rewards of the step before, and where episodes start, all made up."""
    rng = np.random.default_rng(seed)
    begins = np.zeros((batch, time), dtype=bool)
    begins[:, 0] = True
    for row, t in starts:
        begins[row, t] = True
    observations = rng.normal(size=(batch, time, OBSERVATION_SIZE)) * [0.5, 2, 1, 10] + [1, -2, 0.5, 30]
    return observations.astype(np.float32), rng.uniform(0, 1, (batch, time)).astype(np.float32), begins


def act(step, start, observations, rewards, begins, targets=TARGETS):
    """Actions (batch, time, size), each fed back as the previous one, and the last state."""
    fresh = np.tile(start, (len(observations), 1))
    fresh[:, RETURN_TO_GO] = targets[: len(fresh)]
    state, actions = fresh, []
    with np.errstate(all="raise", under="ignore"):
        for t in range(observations.shape[1]):
            state = np.where(begins[:, t, None], fresh, state)
            earned = np.where(begins[:, t], np.float32(0), rewards[:, t])
            action, state = step(observations[:, t], earned, state)
            actions.append(action.copy())
    return np.stack(actions, 1), state


def forward(model, actions, observations, rewards, begins, targets=TARGETS):
    """What the model predicts for the whole of it at once, in float64."""
    returns_to_go, timesteps = np.zeros(rewards.shape), np.zeros(rewards.shape, dtype=np.int64)
    for t in range(rewards.shape[1]):
        last = t - 1 if t else 0
        returns_to_go[:, t] = np.where(begins[:, t], targets[: len(rewards)], returns_to_go[:, last] - rewards[:, t])
        timesteps[:, t] = np.where(begins[:, t], 0, timesteps[:, last] + 1)
    # What stands at a step is the reward of the action before it.
    arrays = observations, timesteps, actions, np.roll(rewards, -1, 1), returns_to_go
    segment = Segment(*map(torch.from_numpy, arrays))
    with torch.inference_mode():
        return predict(copy.deepcopy(model).double(), double(segment)).numpy()


def assert_acts_like(model, library, given, tolerance=1e-4, targets=TARGETS):
    actions, state = act(*make_step(model, library), *given, targets)
    np.testing.assert_allclose(actions, forward(model, actions, *given, targets), rtol=0, atol=tolerance)
    assert actions.std((0, 1)).min() > 0.05
    return actions, state


@both_libraries
@pytest.mark.parametrize(("shape", "form"), SHAPES)
def test_three_hundred_steps_with_resets_equal_one_forward(make_model, take, shape, form, library):
    take(form)
    model = make_model(**shape)
    if library == "numpy" and model.config.norm == "post":
        assert NumpyModelStepper.of(ModelStepper(model)) is None
        return
    if form != "always running":
        assert forms_of(model) == {form == "bounded"}
    # A row without an end, one with an episode of a single step, and one alone in its reset.
    assert_acts_like(model, library, draw(300, starts=[(1, 100), (1, 101), (1, 250), (2, 37)]))


@both_libraries
@both_layouts
def test_weights_near_their_start_act_like_the_model(observation_space, action_space, scaling, layout, library):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = ModelConfig(width=24, heads=3, layout=layout)
        model = DecisionModel(config, observation_space, action_space, scaling).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.15)
    assert_acts_like(model, library, draw(60))


@both_libraries
@both_layouts
@both_forms
def test_only_the_first_step_has_no_previous_action(make_model, take, layout, form, library):
    take(form)
    model = make_model(layout=layout)
    (observations, *_), (step, start) = draw(2), make_step(model, library)
    state = np.tile(start, (3, 1))
    state[:, RETURN_TO_GO] = TARGETS
    action, after = step(observations[:, 0], np.zeros(3, np.float32), state.copy())
    any_action = torch.full((3, ACTION_SIZE), 77.0)
    with torch.inference_mode():
        now = torch.from_numpy(observations[:, 0]), torch.zeros(3).long(), torch.from_numpy(TARGETS), any_action
        expected, _ = model.step(Segment.of_one_step(*now), model.initial_state(3))
    np.testing.assert_allclose(action, expected, rtol=0, atol=1e-5)
    assert np.isfinite(after).all()
    np.testing.assert_array_equal(after[:, TIMESTEP], 1)
    np.testing.assert_array_equal(after[:, ACTION:MIXERS], action)
    other = after.copy()
    other[:, ACTION:MIXERS] += 0.5
    second, changed = (step(observations[:, 1], np.zeros(3, np.float32), s)[0] for s in (after.copy(), other))
    assert np.abs(second - changed).max(1).min() > 1e-3


@both_libraries
def test_a_reward_lowers_the_return_to_go(make_model, library):
    step, start = make_step(make_model(), library)
    (observations, *_), fresh = draw(1), np.tile(start, (3, 1))
    fresh[:, RETURN_TO_GO] = TARGETS
    lower = fresh.copy()
    lower[:, RETURN_TO_GO] -= 30
    by_reward, after = step(observations[:, 0], np.full(3, 30, np.float32), fresh.copy())
    np.testing.assert_allclose(by_reward, step(observations[:, 0], np.zeros(3, np.float32), lower)[0], atol=1e-6)
    np.testing.assert_allclose(after[:, RETURN_TO_GO], TARGETS - 30)
    assert np.abs(by_reward - step(observations[:, 0], np.zeros(3, np.float32), fresh)[0]).max() > 1e-3


@both_libraries
@both_layouts
@both_forms
def test_a_batch_equals_its_rows_one_by_one(make_model, take, layout, form, library):
    take(form)
    model = make_model(layout=layout)
    given = draw(40, starts=[(0, 11), (2, 12)])
    together, state = act(*make_step(model, library), *given)
    for row in range(3):
        one = slice(row, row + 1)
        alone, alone_state = act(*make_step(model, library), *(part[one] for part in given), TARGETS[one])
        np.testing.assert_allclose(alone[0], together[row], rtol=0, atol=1e-5)
        np.testing.assert_allclose(alone_state[0], state[row], rtol=1e-4, atol=1e-4)


@both_layouts
@both_forms
def test_numpy_carries_the_mixers_sums_that_torch_does(make_model, take, layout, form):
    """Counts and maxima exactly; values only up to their mean where one head's are centred beforehand."""
    take(form)
    model, given = make_model(layout=layout, heads=4, blocks=1), draw(30, starts=[(1, 4)])
    (_, ours), (_, theirs) = act(*make_step(model, "numpy"), *given), act(*make_step(model), *given)
    np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-4)


@both_libraries
def test_saturated_actions_are_the_bounds_exactly(make_model, action_space, library):
    low, high = action_space.bounds()
    for bias, bound in ((1000.0, high), (-1000.0, low)):
        model = make_model()
        torch.nn.init.constant_(model.head.linear.bias, bias)
        actions, _ = act(*make_step(model, library), *draw(5))
        np.testing.assert_array_equal(actions, np.broadcast_to(bound, actions.shape))


@both_libraries
def test_bounds_of_minus_one_and_one_are_kept_as_they_are(make_model, library):
    model = make_model(actions=Box.bounded([-1.0] * 2, [1.0] * 2))
    assert ModelStepper(model).head.unit_range
    actions, _ = assert_acts_like(model, library, draw(30))
    assert np.abs(actions).max() <= 1


def scale_scores(model, factor):
    with torch.no_grad():
        for block in model.trunk.blocks:
            block.mixer.key.weight.mul_(factor)


@both_libraries
@both_layouts
def test_scores_of_a_wide_range_are_taken_by_the_running_form(make_model, layout, library):
    model = make_model(layout=layout)
    scale_scores(model, 300.0)
    assert forms_of(model) == {False}
    # Scores in the hundreds are rounded to some 1e-5.
    assert_acts_like(model, library, draw(100, starts=[(1, 30)]), tolerance=5e-3)


@both_libraries
@both_layouts
def test_scores_of_any_size_leave_everything_finite(make_model, layout, library):
    model = make_model(layout=layout)
    scale_scores(model, 1e7)
    actions, state = act(*make_step(model, library), *draw(50))
    assert np.isfinite(actions).all()
    assert np.isfinite(state).all()


@both_libraries
@both_layouts
def test_the_widest_range_of_the_bounded_form_loses_nothing(make_model, layout, library):
    model = make_model(layout=layout, blocks=1, heads=1)
    low, high = 1.0, 1e6
    for _ in range(60):
        factor = (low + high) / 2
        tried = copy.deepcopy(model)
        scale_scores(tried, factor)
        low, high = (factor, high) if forms_of(tried) == {True} else (low, factor)
    scale_scores(model, low)
    assert forms_of(model) == {True}
    assert_acts_like(model, library, draw(100), tolerance=2e-4)


def log_weights(model, actions, given, targets):
    """Logarithm of the sum of exp(score) over the tokens of the first step, and over all, of a block of one head."""
    wide, seen = copy.deepcopy(model).double(), []
    wide.trunk.blocks[0].mixer_norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    forward(wide, actions, *given, targets)
    mixer = wide.trunk.blocks[0].mixer
    with torch.inference_mode():
        scores = mixer.key(seen[0][0]) @ mixer.query(mixer.query_token) / mixer.width**0.5
    # The first step has no token of a previous action.
    tokens = model.config.tokens_per_step
    first = 1 if tokens == 3 else 0
    return [float(scores[first:end].logsumexp(0)) for end in (tokens, len(scores))]


@pytest.mark.parametrize(("layout", "form"), [("fused", "bounded"), ("interleaved", "running")])
def test_twenty_thousand_steps_stay_finite_and_right(make_model, take, layout, form):
    take(form)
    model, time = make_model(layout=layout, blocks=1, width=8, heads=1), 20_000
    observations, rewards, begins = draw(time, batch=1)
    given, targets = (observations, rewards * 0.01, begins), TARGETS[:1]
    actions, state = act(*make_step(model, "numpy"), *given, targets)
    assert np.isfinite(state).all()
    assert state[0, TIMESTEP] == time
    expected = forward(model, actions, *given, targets)
    np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-3)
    assert actions.std(1).min() > 0.05
    # The count, or the count and the maximum, weigh all tokens against those of the first step as their scores do.
    _, early = act(*make_step(model, "numpy"), *(part[:, :1] for part in given), targets)
    counted = [float(np.log(row[0, 12]) + (row[0, 13] if form == "running" else 0)) for row in (early, state)]
    first, whole = log_weights(model, actions, given, targets)
    assert counted[1] - counted[0] == pytest.approx(whole - first, abs=1e-4)


@both_forms
def test_fifteen_thousand_tokens_are_counted_to_the_last(loud, take, form):
    take(form)
    mixer, norm = loud(Aaren(8, 2)), torch.nn.LayerNorm(8)
    for part in (mixer.query.weight, mixer.query.bias):
        torch.nn.init.zeros_(part)
    x, live = norm(torch.randn(6, 8)), torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    with torch.inference_mode():
        step = mixer.stepper(norm, 3, 1)
        assert step.bounded == (form == "bounded")
        state = step.start.repeat(2, 1)
        for _ in range(5_000):
            _, state = step(x, torch.zeros(2, 8), state, live)
            live = None
    assert (state.view(2, 2, -1)[..., 4] == 3 * 5_000 - 1).all()
    assert state.isfinite().all()


def attention(mixer, x, live):
    """The definition in float64: at each token softmax attention over the live ones up to it, (batch, time, width)."""
    mixer, x = copy.deepcopy(mixer).double(), x.double()
    query = mixer.query(mixer.query_token).view(mixer.heads, -1)
    keys, values = (layer(x).unflatten(-1, (mixer.heads, -1)) for layer in (mixer.key, mixer.value))
    scores = torch.einsum("hd,bthd->bth", query, keys) / mixer.head_width**0.5
    outputs = []
    for t in range(x.shape[1]):
        some = scores[:, : t + 1].masked_fill(~live[:, : t + 1, None], -torch.inf)
        mixed = torch.einsum("bth,bthd->bhd", some.softmax(1).nan_to_num(0.0), values[:, : t + 1])
        outputs.append(mixer.output(mixed.flatten(1)))
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize(("tokens", "outputs"), [(1, 1), (3, 1), (3, 3)])
@pytest.mark.parametrize("form", ["bounded", "running", "plain"])
def test_steppers_equal_the_definition_of_attention(loud, take, form, tokens, outputs, heads):
    take(form)
    mixer, norm = loud(Aaren(16, heads)).eval(), loud(torch.nn.LayerNorm(16), seed=1, std=1.0)
    generator, steps, batch = torch.Generator().manual_seed(2), 12, 3
    with torch.inference_mode():
        step = PlainStepper(mixer, tokens, outputs) if form == "plain" else mixer.stepper(norm, tokens, outputs)
        x = norm(torch.randn(batch, steps, tokens, 16, generator=generator))
        onto = torch.randn(batch, steps, outputs, 16, generator=generator)
        live = torch.ones(batch, steps, tokens)
        if tokens > 1:
            # At the start, and in one row in the middle.
            live[:, 0, 0] = live[1, 5, 0] = 0
        expected = attention(mixer, x.flatten(1, 2), live.flatten(1).bool()).unflatten(1, (steps, tokens))
        state = step.start.repeat(batch, 1)
        assert state.isfinite().all()
        for t in range(steps):
            y, state = step(x[:, t].flatten(0, 1), onto[:, t].flatten(0, 1), state, live[:, t] if tokens > 1 else None)
            added = y.view(batch, outputs, 16) - onto[:, t]
            seen = live[:, t, tokens - outputs :].bool()
            torch.testing.assert_close(added.double()[seen], expected[:, t, -outputs:][seen], rtol=1e-4, atol=1e-4)
            assert y.isfinite().all()


@both_forms
@pytest.mark.parametrize("heads", [1, 2])
def test_scores_at_both_ends_of_the_range_are_right(loud, take, form, heads):
    """Scores at both ends of what a layer norm can give, 50 apart, in either order."""
    take(form)
    mixer, norm = loud(Aaren(16, heads)), torch.nn.LayerNorm(16)
    with torch.inference_mode():
        direction = (mixer.query(mixer.query_token)[: 16 // heads] @ mixer.key.weight[: 16 // heads]) * 1.0
        x = direction / direction.norm() * 4
        spread = float((direction @ x) / (16 // heads) ** 0.5)
        mixer.query.weight.mul_(25 / spread)
        mixer.query.bias.mul_(25 / spread)
        for head in range(1, heads):
            # The other heads' scores stay in reach of the bounded form.
            mixer.key.weight[head * 8 : head * 8 + 8].mul_(0.1)
        step = mixer.stepper(norm, 1, 1)
        assert step.bounded == (form == "bounded")
        for signs in ([-1] * 8 + [1, -1, -1], [1] + [-1] * 10):
            tokens = x * torch.tensor(signs).unsqueeze(-1)
            expected = attention(mixer, tokens[None], torch.ones(1, len(signs), dtype=torch.bool))[0]
            state = step.start[None]
            for token, wanted in zip(tokens, expected, strict=True):
                y, state = step(token[None], torch.zeros(1, 16), state, None)
                torch.testing.assert_close(y[0].double(), wanted, rtol=1e-4, atol=1e-4)


@both_forms
@pytest.mark.parametrize("shift", [-300.0, 300.0])
@pytest.mark.parametrize("source", ["norm", "key"])
def test_a_shift_of_all_scores_changes_nothing(loud, take, form, shift, source):
    """Scores far from 0 in a narrow range, through the layer norm's bias or the key's."""
    take(form)
    mixer, norm = loud(Aaren(16, 1)), torch.nn.LayerNorm(16)
    with torch.inference_mode():
        query = mixer.query(mixer.query_token) / 4
        direction = query @ mixer.key.weight if source == "norm" else query
        (norm if source == "norm" else mixer.key).bias.copy_(direction / direction.square().sum() * shift)
        step = mixer.stepper(norm, 1, 1)
        assert step.bounded == (form == "bounded")
        x = norm(torch.randn(30, 16, generator=torch.Generator().manual_seed(0)))
        expected, state = attention(mixer, x[None], torch.ones(1, 30, dtype=torch.bool))[0], step.start[None]
        for token, wanted in zip(x, expected, strict=True):
            y, state = step(token[None], torch.zeros(1, 16), state, None)
            # Large values of a large bias, and scores of 300, are rounded to some 1e-5.
            torch.testing.assert_close(y[0].double(), wanted, rtol=1e-3, atol=1e-3)


@both_layouts
def test_mixers_without_a_stepper_go_token_by_token(make_model, monkeypatch, layout):
    model, given = make_model(layout=layout), draw(80, starts=[(1, 20)])
    folded, _ = act(*make_step(model), *given)
    monkeypatch.setattr(Aaren, "stepper", Mixer.stepper)
    assert all(isinstance(block.mixer, PlainStepper) for block in ModelStepper(model).trunk.blocks)
    assert NumpyModelStepper.of(ModelStepper(model)) is None
    plain, _ = assert_acts_like(model, "torch", given)
    np.testing.assert_allclose(plain, folded, rtol=0, atol=1e-4)


def has_numpy_form(mixer):
    norm = nn.LayerNorm(4)
    return mixers.build(mixer, 4, 1).stepper(norm, 1, 1).to_numpy(norm) is not None


FIXED_SIZE = [name for name in mixers.names() if mixers.get(name).memory != "growing"]


@both_layouts
@pytest.mark.parametrize(
    ("mixer", "library"),
    [(name, "torch") for name in FIXED_SIZE] + [(name, "numpy") for name in FIXED_SIZE if has_numpy_form(name)],
)
def test_conformance_a_step_of_it_acts_like_the_model(make_model, mixer, layout, library):
    model = make_model(mixer=mixer, layout=layout, heads=1)
    with torch.no_grad():
        # So that no action saturates.
        model.head.linear.bias.zero_()
    carried = sum(part.numel() for part in state_tensors(model.initial_state(1)))
    # Linear attention needs no largest weight, which is 1; rotary-linear has the phases of its 8 pairs. Each of the two
    # means of gated-aaren has a log-normaliser in place of sum and maximum.
    changed = {"aaren": -2, "linear": -2, "rotary-linear": 2 * 16, "gated-aaren": -4}
    size = carried + changed.get(mixer, 0)
    assert len(ModelStepper(model).start) == MIXERS + size
    assert ModelStepper(model).mixed == MIXERS
    # What mLSTM reads is divided by what may be near 0, which magnifies the rounding of float32.
    tolerance = 4e-4 if mixer == "mlstm" else 1e-4
    assert_acts_like(model, library, draw(200, starts=[(1, 100), (1, 101), (2, 37)]), tolerance)


@both_libraries
@both_layouts
def test_blocks_of_all_mixers_of_constant_memory_act_like_the_model(make_model, layout, library):
    model = make_model(mixer="gru,lstm,mingru,minlstm,perceiver,none,strided:9,aaren", blocks=8, layout=layout, heads=4)
    assert_acts_like(model, library, draw(100, starts=[(1, 40), (1, 41), (2, 37)]))


def test_a_mixer_whose_state_grows_is_refused(make_model):
    with pytest.raises(
        InvalidInput, match=r"state of mixer 'softmax' grows .* mixers of constant memory or with a window"
    ):
        ModelStepper(make_model(mixer="softmax"))


@both_libraries
def test_making_a_step_leaves_model_and_random_state_alone(make_model, library):
    model = make_model(timesteps="learned", dropout=0.1).train()
    weights, random = {name: part.clone() for name, part in model.state_dict().items()}, torch.get_rng_state()
    act(*make_step(model, library), *draw(3))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(part, weights[name]) for name, part in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())


@both_libraries
@both_layouts
@pytest.mark.parametrize("timesteps", ["none", "learned"])
def test_later_changes_of_the_weights_have_no_effect(make_model, loud, layout, timesteps, library):
    model, given = make_model(layout=layout, timesteps=timesteps), draw(10)
    step = make_step(model, library)
    before, _ = act(*step, *given)
    loud(model, seed=5)
    np.testing.assert_array_equal(act(*step, *given)[0], before)
    assert np.abs(act(*make_step(model, library), *given)[0] - before).max() > 0.1


@both_libraries
def test_arguments_are_not_changed(make_model, library):
    step, start = make_step(make_model(), library)
    observations, rewards, _ = draw(2)
    state = step(observations[:, 0], rewards[:, 0], np.tile(start, (3, 1)))[1]
    given = observations[:, 1].copy(), rewards[:, 1].copy(), np.array(state)
    copies = [part.copy() for part in given]
    step(*given)
    for part, kept in zip(given, copies, strict=True):
        np.testing.assert_array_equal(part, kept)


def test_each_first_state_has_its_return_to_go(make_model):
    step = ModelStepper(make_model())
    state = step.initial_state(torch.tensor([5.0, 6.0]))
    assert state[:, RETURN_TO_GO].tolist() == [5.0, 6.0]
    assert (state[:, 1:] == step.start[1:]).all()
    # The action before the first is the middle of the bounds, which scales to nothing.
    assert step.start[:MIXERS].tolist() == [0.0, 0.0, 0.0, 2.5]


@pytest.mark.parametrize("narrow", [60.0, -1.0], ids=["bounded", "running"])
@pytest.mark.parametrize("heads", [1, 2])
def test_a_million_steps_into_an_episode_new_tokens_still_count(monkeypatch, narrow, heads):
    """The sums that a million tokens left are put in place, and the mean of 2,000 more is followed in float64."""
    monkeypatch.setattr("aaren_rl.mixers.aaren.stepper.NARROW", narrow)
    torch.manual_seed(0)
    width, before = 8, 1_000_000
    mixer, norm = Aaren(width, heads), nn.LayerNorm(width)
    with torch.no_grad():
        # One score for all tokens, and values that are the tokens, so that the output is their plain mean.
        mixer.query_token.zero_()
        mixer.query.bias.zero_()
        for layer in (mixer.value, mixer.output):
            layer.weight.copy_(torch.eye(width))
            layer.bias.zero_()
        stepper = mixer.stepper(norm, 1, 1)
        assert stepper.bounded == (narrow > 0)
        token = torch.linspace(-1.0, 1.0, width)[None]
        _, state = stepper(torch.zeros(1, width), torch.zeros(1, width), stepper.start[None], None)
        state = (
            state * before
            if stepper.bounded
            else torch.cat(
                [
                    piece * torch.tensor([*[float(before)] * (width // heads + 1), 1.0])
                    for piece in state.chunk(heads, -1)
                ],
                -1,
            )
        )
        more = 2_000
        for _ in range(more):
            mixed, state = stepper(token, torch.zeros(1, width), state, None)
    expected = token.double() * more / (before + more)
    torch.testing.assert_close(mixed.double(), expected, rtol=1e-5, atol=0)
