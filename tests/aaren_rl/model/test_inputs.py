"""The inputs alone: from a segment to tokens, resets and validity."""

import copy

import pytest
import torch
from helpers import assert_close, assert_same, cut, double, draw_segment, pad
from torch.nn import functional as F

from aaren_rl.data.segment import Segment
from aaren_rl.model.inputs import Masks

# A row that starts inside an episode after one step of padding, with a second episode packed behind the first.
TIMESTEPS = torch.tensor([[3, 7, 8, 9, 0, 1]])
REAL = torch.tensor([[0, 1, 1, 1, 1, 1]]).bool()
FIRST = torch.tensor([[0, 0, 0, 0, 1, 0]]).bool()
OPENING = torch.tensor([[0, 1, 0, 0, 0, 0]]).bool()
KNOWN = {
    True: torch.tensor([[0, 1, 1, 1, 0, 1]]).bool(),
    False: torch.tensor([[0, 0, 1, 1, 0, 1]]).bool(),
}

both_layouts = pytest.mark.parametrize("layout", ["interleaved", "fused"])
previous_given_or_not = pytest.mark.parametrize("given", [True, False])
VARIANTS = [
    {},
    {"previous_action": False},
    {"reward": True},
    {"reward": True, "previous_action": False},
    {"return_to_go": False},
    {"return_to_go": False, "previous_action": False},
    {"timesteps": "first"},
    {"timesteps": "learned"},
    {"timesteps": "sinusoidal"},
    {"timesteps": "learned", "reward": True},
    {"timesteps": "learned", "previous_action": False},
]
all_variants = pytest.mark.parametrize("variant", VARIANTS, ids=str)


@previous_given_or_not
def test_masks_are_those_of_their_picture(given):
    masks = Masks.of(TIMESTEPS, REAL, given)
    for name, ours, expected in zip(Masks._fields, masks, (REAL, FIRST, OPENING, KNOWN[given]), strict=True):
        assert_same(name, ours, expected)


@pytest.mark.parametrize(
    ("timesteps", "valid", "first", "opening", "known"),
    [
        # Without a mask all steps are real, and the first of a row opens it.
        ([4, 5, 6], None, [0, 0, 0], [1, 0, 0], [1, 1, 1]),
        ([0, 1, 2], None, [1, 0, 0], [1, 0, 0], [0, 1, 1]),
        # Episodes of a single step.
        ([0, 0, 0], None, [1, 1, 1], [1, 0, 0], [0, 0, 0]),
        # Padding on the right, where a timestep of 0 starts no episode.
        ([6, 7, 0], [1, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, 1]),
        # A single real step, which alone opens its row.
        ([6, 7, 8], [1, 0, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0]),
        # A row of padding.
        ([0, 1, 2], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]),
    ],
)
def test_masks_of_other_rows(timesteps, valid, first, opening, known):
    steps = torch.tensor([timesteps])
    masks = Masks.of(steps, None if valid is None else torch.tensor([valid]).bool(), True)
    expected = [torch.tensor([part]).bool() for part in (valid or [1, 1, 1], first, opening)]
    for name, ours, theirs in zip(("real", "first", "opening"), masks, expected, strict=False):
        assert_same(name, ours, theirs)
    assert_same("known", masks.known & masks.real, torch.tensor([known]).bool() & expected[0])


def picture(given):
    """The row of the picture, with and without what was before it."""
    segment = draw_segment(6, batch=1)._replace(timesteps=TIMESTEPS, valid=REAL)
    return segment._replace(previous_action=torch.tensor([[0.5, 4.0]])) if given else segment


@previous_given_or_not
def test_fused_tokens_reset_at_first_steps(make_model, given):
    tokens = make_model(layout="fused").inputs(picture(given))
    assert tokens.x.shape == (1, 6, 16)
    assert_same("reset", tokens.reset, FIRST)
    assert_same("valid", tokens.valid, REAL)


@previous_given_or_not
def test_interleaved_tokens_lack_unknown_outcomes(make_model, given):
    tokens = make_model(layout="interleaved").inputs(picture(given))
    assert tokens.x.shape == (1, 18, 16)
    no = torch.zeros_like(FIRST)
    # Outcome, return-to-go and observation of each step; the episode starts before the outcome's place.
    assert_same("reset", tokens.reset.view(1, 6, 3), torch.stack([FIRST, no, no], -1))
    assert_same("valid", tokens.valid.view(1, 6, 3), torch.stack([KNOWN[given], REAL, REAL], -1))


def test_interleaved_tokens_without_an_outcome_are_all_there(make_model):
    tokens = make_model(layout="interleaved", previous_action=False).inputs(picture(False))
    assert tokens.x.shape == (1, 12, 16)
    no = torch.zeros_like(FIRST)
    assert_same("reset", tokens.reset.view(1, 6, 2), torch.stack([FIRST, no], -1))
    assert_same("valid", tokens.valid.view(1, 6, 2), torch.stack([REAL, REAL], -1))


def test_fused_tokens_without_padding_need_no_mask(make_model):
    tokens = make_model(layout="fused").inputs(draw_segment(5, first=2))
    assert tokens.valid is None
    assert not tokens.reset.any()


def expected_tokens(inputs, segment, row, t):
    """The tokens of one step by the definition, each a vector of the width; None for a missing one."""
    config, timestep = inputs.config, int(segment.timesteps[row, t])
    valid = torch.ones_like(segment.timesteps, dtype=torch.bool) if segment.valid is None else segment.valid
    opens = not valid[row, :t].any()
    before = segment.previous_action, segment.previous_reward
    known = timestep > 0 and (not opens or before != (None, None))
    action = before[0][row] if opens and before[0] is not None else segment.actions[row, t - 1]
    parts = []
    if config.outcome:
        outcome = torch.zeros(config.width, dtype=torch.float64)
        if known and config.previous_action:
            low, high = (torch.from_numpy(bound).double() for bound in inputs.action_space.bounds())
            scaled = (action - low) / (high - low) * 2 - 1
            outcome = outcome + inputs.embed_action.weight @ scaled + inputs.embed_action.bias
        if known and config.reward:
            reward = before[1][row] if opens and before[1] is not None else segment.rewards[row, t - 1]
            outcome = outcome + inputs.embed_reward.weight[:, 0] * reward / inputs.reward_scale
            if not config.previous_action:
                outcome = outcome + inputs.embed_reward.bias
        parts.append(outcome)
    if config.return_to_go:
        wanted = segment.returns_to_go[row, t] / inputs.return_scale
        parts.append(inputs.embed_return.weight[:, 0] * wanted + inputs.embed_return.bias)
    observed = (segment.observations[row, t] - inputs.observation.mean) / inputs.observation.std
    parts.append(inputs.embed_observation.weight @ observed + inputs.embed_observation.bias)

    def time(step):
        return 0.0 if inputs.embed_timestep is None else inputs.embed_timestep(torch.tensor(step))

    if config.layout == "fused":
        return [inputs.norm(sum(parts) + time(timestep))]
    times = [time(timestep)] * len(parts)
    if config.outcome:
        # The outcome belongs to the step before.
        times[0] = time(max(timestep - 1, 0))
    tokens = [inputs.norm(part + time) for part, time in zip(parts, times, strict=True)]
    return [None, *tokens[1:]] if config.outcome and not known else tokens


@both_layouts
@all_variants
@previous_given_or_not
def test_tokens_are_what_the_definition_says(make_model, layout, variant, given):
    inputs = copy.deepcopy(make_model(layout=layout, **variant).inputs).double()
    rewards = torch.rand(2, 6, generator=torch.Generator().manual_seed(3)) * 4 - 2
    segment = draw_segment(6)._replace(
        timesteps=TIMESTEPS.expand(2, -1), valid=torch.cat([REAL, torch.ones_like(REAL)]), rewards=rewards
    )
    if given:
        known = {
            "previous_action": torch.tensor([[0.5, 4.0], [-0.5, 1.0]]),
            "previous_reward": torch.tensor([1.5, -0.5]),
        }
        segment = segment._replace(**known)
    segment = double(segment)
    tokens = inputs(segment)
    x = tokens.x.view(2, 6, inputs.config.tokens_per_step, 16)
    valid = segment.valid if tokens.valid is None else tokens.valid
    valid = valid.view(2, 6, inputs.config.tokens_per_step)
    for row, t in segment.valid.nonzero().tolist():
        for number, expected in enumerate(expected_tokens(inputs, segment, row, t)):
            assert valid[row, t, number] == (expected is not None)
            if expected is not None:
                assert_close(f"token {number} of step {t}", x[row, t, number], expected, rtol=1e-9, atol=1e-9)


@both_layouts
def test_tokens_of_real_steps_do_not_depend_on_padding(make_model, layout):
    inputs = make_model(layout=layout).inputs
    segment = draw_segment(7, first=3)._replace(previous_action=torch.ones(2, 2))
    tokens = inputs.config.tokens_per_step
    plain = inputs(segment)
    for filler in (0.0, 100.0):
        padded = inputs(pad(segment, 2, 3, filler))
        inside = slice(2 * tokens, -3 * tokens)
        assert_close("x", padded.x[:, inside], plain.x)
        assert_same("reset", padded.reset[:, inside], plain.reset)
        assert padded.valid[:, inside].all()
        assert not padded.valid[:, : 2 * tokens].any()
        assert not padded.valid[:, -3 * tokens :].any()


@both_layouts
@all_variants
def test_one_step_has_the_tokens_of_its_place_in_a_segment(make_model, layout, variant):
    inputs = make_model(layout=layout, **variant).inputs
    segment = draw_segment(6)._replace(rewards=torch.rand(2, 6, generator=torch.Generator().manual_seed(3)))
    whole, tokens = inputs(segment), inputs.config.tokens_per_step
    for t in range(1, 6):
        now = segment.observations[:, t], segment.timesteps[:, t], segment.returns_to_go[:, t]
        one = inputs(Segment.of_one_step(*now, segment.actions[:, t - 1], segment.rewards[:, t - 1]))
        assert_close(f"x of step {t}", one.x, whole.x[:, t * tokens : (t + 1) * tokens])
        assert one.valid is None or one.valid.all()
        assert not one.reset.any()


def test_weights_of_layers_map_features_side_by_side(make_model):
    """The outcome's layer has the action, the reward and a 1 as inputs, in this order."""
    inputs = make_model(reward=True).inputs
    (outcome, none), returns, observation = inputs.layers()
    action, reward = torch.tensor([0.3, -0.7]), torch.tensor([2.0])
    expected = inputs.embed_action(action) + F.linear(reward, inputs.embed_reward.weight)
    assert none is None
    assert_close("outcome", outcome @ torch.cat([action, reward, torch.ones(1)]), expected)
    assert_same("return-to-go", returns[0], inputs.embed_return.weight)
    assert_same("observation", observation[0], inputs.embed_observation.weight)


def test_dropout_is_on_the_tokens_while_training(make_model):
    inputs, segment = make_model(dropout=0.5, layout="fused").inputs, draw_segment(50)
    assert not (inputs(segment).x == 0).any()
    dropped = (inputs.train()(cut(segment, slice(0, 50))).x == 0).double().mean()
    assert 0.4 < dropped < 0.6


@both_layouts
@pytest.mark.parametrize("timesteps", ["first", "learned", "sinusoidal"])
def test_timesteps_are_added_in_the_precision_of_weights(make_model, layout, timesteps):
    """Products under autocast come in bf16; the sum with the embedding, and the norm behind it, do not."""
    inputs = make_model(layout=layout, timesteps=timesteps).inputs
    seen = []
    inputs.norm.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        inputs(draw_segment(5))
    assert seen == [torch.float32]


@both_layouts
@all_variants
def test_a_first_step_in_float64_needs_no_outcome(make_model, layout, variant):
    inputs = make_model(layout=layout, **variant).double().inputs
    segment = double(draw_segment(1))._replace(actions=None, rewards=None)
    assert inputs(segment).x.dtype == torch.float64
