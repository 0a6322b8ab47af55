"""Aaren, its options, and the short convolution in front of any mixer, against their definitions."""

import numpy as np
import pytest
import torch
from helpers import draw_segment

from aaren_rl import mixers
from aaren_rl.errors import InvalidInput
from aaren_rl.mixers import Aaren, GatedAaren, state_bytes
from aaren_rl.ops.prefix_attention.decay import PIECE

WIDTH, HEADS = 12, 3
SIZE = WIDTH // HEADS

OPTIONS = [
    "aaren",
    "aaren(recency=true)",
    "aaren(forget=true)",
    "aaren(rotary=1)",
    "aaren(rotary=0.5)",
    "aaren(gate=true)",
    "aaren(forget=true, recency=true, rotary=1)",
    "aaren(forget=true, rotary=1, lasting=true)",
    "gated-aaren(conv=0)",
]


def tokens(time, batch=3, seed=0):
    return torch.randn(batch, time, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def masks(time, seed=4):
    """Resets and padding anywhere; padding resets nothing."""
    generator = torch.Generator().manual_seed(seed)
    valid = torch.rand(3, time, generator=generator) < 0.85
    return (torch.rand(3, time, generator=generator) < 0.08) & valid, valid


def assert_close(ours, theirs, tolerance=1e-10):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("heads", [1, 3])
def test_aaren_is_the_papers_formula_with_the_keys_written_out(loud, heads):
    mixer = loud(Aaren(WIDTH, heads), seed=2).double()
    x = tokens(30)
    size = WIDTH // heads
    query = (mixer.query.weight @ mixer.query_token + mixer.query.bias).reshape(heads, size)
    keys = (x @ mixer.key.weight.T + mixer.key.bias).reshape(3, 30, heads, size)
    values = (x @ mixer.value.weight.T + mixer.value.bias).reshape(3, 30, heads, size)
    expected = []
    for k in range(30):
        scores = torch.einsum("hd,bihd->bih", query, keys[:, : k + 1]) / size**0.5
        mixed = torch.einsum("bih,bihd->bhd", scores.softmax(1), values[:, : k + 1])
        expected.append(mixed.flatten(1) @ mixer.output.weight.T + mixer.output.bias)
    assert_close(mixer(x)[0], torch.stack(expected, 1))


def definition(mixer, x, reset, valid):
    """Aaren with all its options, token by token: attention of the learned query to the live tokens of the episode."""
    query = mixer.query(mixer.query_token).view(HEADS, SIZE)
    outputs = {}
    for row in range(x.shape[0]):
        seen = []
        for t in range(x.shape[1]):
            if reset[row, t]:
                seen = []
            if not valid[row, t]:
                continue
            seen.append(t)
            own = x[row, seen]
            age = torch.arange(len(seen) - 1, -1, -1, dtype=x.dtype)
            scores = torch.einsum("hd,thd->ht", query, mixer.key(own).view(-1, HEADS, SIZE)) * SIZE**-0.5
            if mixer.recency:
                scores = scores - torch.log1p(torch.exp(mixer.slope_before_softplus)).unsqueeze(1) * age
            if mixer.keep is not None:
                gates = torch.sigmoid(mixer.keep(own) + mixer.keep_bias).T  # (heads, tokens)
                # What all later tokens leave of the weight of each.
                left = [gates[:, i + 1 :].prod(1) for i in range(len(seen))]
                scores = scores + torch.stack(left, 1).log()
            values = mixer.value(own).view(-1, HEADS, SIZE)
            if mixer.log_frequency is not None:
                values = turned(values, mixer.log_frequency.exp(), age)
            mixed = torch.einsum("ht,thd->hd", scores.softmax(-1), values).flatten()
            if mixer.gate is not None:
                gate = mixer.gate(x[row, t])
                mixed = mixed * gate * torch.sigmoid(gate)
            if mixer.lasting_token is not None:
                other = mixer.query(mixer.lasting_token).view(HEADS, SIZE)
                scores = torch.einsum("hd,thd->ht", other, mixer.key(own).view(-1, HEADS, SIZE)) * SIZE**-0.5
                values = mixer.value(own).view(-1, HEADS, SIZE)
                mixed = mixed + torch.einsum("ht,thd->hd", scores.softmax(-1), values).flatten()
            outputs[row, t] = mixer.output(mixed)
    return outputs


def turned(values, frequencies, age):
    """Values (tokens, heads, size) whose first pairs of numbers turn by frequency (heads, pairs) times age."""
    angle = frequencies * age[:, None, None]
    pairs = frequencies.shape[1]
    x, y = values[..., 0 : 2 * pairs : 2], values[..., 1 : 2 * pairs : 2]
    both = torch.stack([x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()], -1).flatten(2)
    return torch.cat([both, values[..., 2 * pairs :]], -1)


@pytest.mark.parametrize("spec", OPTIONS)
def test_outputs_and_gradients_are_those_of_the_definition(spec, loud, assert_is_formula):
    mixer = loud(mixers.build(spec, WIDTH, HEADS)).double()
    reset, valid = masks(23)
    # Softmax ignores a shift of all scores, so the bias of the keys has no gradient.
    formula = lambda x: definition(mixer, x, reset, valid)  # noqa: E731
    assert_is_formula(mixer, formula, tokens(23), reset, valid, without=mixer.key.bias)


@pytest.mark.parametrize("spec", OPTIONS)
def test_a_row_cut_into_pieces_has_the_gradients_of_the_whole(spec, loud):
    mixer, x = loud(mixers.build(spec, WIDTH, HEADS)).double(), tokens(37)
    reset, valid = masks(37)
    weights = tokens(37, seed=5) * valid.unsqueeze(-1)

    def in_pieces(x):
        outputs, state = [], None
        for piece in (slice(0, 11), slice(11, 12), slice(12, 37)):
            y, state = mixer(x[:, piece], state, reset[:, piece], valid[:, piece])
            outputs.append(y)
        return torch.cat(outputs, 1)

    found = []
    for run in (lambda x: mixer(x, None, reset, valid)[0], in_pieces):
        mixer.zero_grad()
        given = x.clone().requires_grad_()
        (run(given) * weights).sum().backward()
        found.append((given.grad, *(p.grad.clone() for p in mixer.parameters() if p is not mixer.key.bias)))
    for whole, pieces in zip(*found, strict=True):
        assert whole.abs().max() > 1e-5
        assert_close(pieces, whole)


@pytest.mark.parametrize("spec", ["aaren(recency=true)", "gated-aaren(conv=0)"])
def test_thousands_of_tokens_lose_no_digits_in_float32(spec):
    """A sum of all decays, or an angle in float32, would be off by 1e-3 and more."""
    mixer = mixers.build(spec, WIDTH, HEADS)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, part in mixer.named_parameters():
            if "frequency" not in name and "slope" not in name:
                part.normal_(std=0.3, generator=generator)
    x = torch.randn(1, 8 * PIECE + 77, WIDTH, generator=generator)
    with torch.no_grad():
        ours = mixer(x)[0]
        exact = mixer.double()(x.double())[0]
    assert (ours - exact).abs().max() < 5e-5 * exact.abs().max()


@pytest.mark.parametrize("heads", [1, 3])
def test_a_gated_aaren_that_turns_and_forgets_nothing_is_the_papers_layer(heads, loud):
    gated = loud(mixers.build("gated-aaren(conv=0, gate=false, lasting=false)", WIDTH, heads)).double()
    with torch.no_grad():
        gated.keep.weight.zero_()
        gated.keep_bias.fill_(1e3)
        gated.log_frequency.fill_(-1e3)
    plain = Aaren(WIDTH, heads).double()
    plain.load_state_dict(gated.state_dict(), strict=False)
    assert_close(gated(tokens(30))[0], plain(tokens(30))[0])


def test_a_gate_that_shuts_forgets_all_before(loud):
    mixer, x = loud(Aaren(WIDTH, HEADS, forget=True)).double(), tokens(9)
    shut = torch.zeros(WIDTH, dtype=torch.float64)
    shut[0] = 1e4
    with torch.no_grad():
        mixer.keep.weight.zero_()
        mixer.keep.weight[:, 0] = -1.0
        mixer.key.weight[:, 0] = 0.0
    x[:, :, 0] = 0.0
    x[:, 5] += shut
    assert_close(mixer(x)[0][:, 5:], mixer(x[:, 5:])[0])


def test_frequencies_span_their_range_over_every_head():
    periods = 2 * np.pi / Aaren(32, 4, rotary=1.0).log_frequency.detach().exp()
    assert periods.shape == (4, 4)
    assert_close(periods.min(), torch.tensor(2.0), 1e-5)
    assert_close(periods.max(), torch.tensor(256.0), 1e-5)
    ratios = periods[:, 1:] / periods[:, :-1]
    assert_close(ratios, torch.full_like(ratios, 128.0 ** (4 / 15)), 1e-5)


def test_forget_gates_start_between_a_short_and_a_long_memory():
    biases = Aaren(32, 4, forget=True).keep_bias
    assert biases.tolist() == [2.0, 3.0, 4.0, 5.0]
    assert Aaren(32, 1, forget=True).keep_bias.tolist() == [3.5]


@pytest.mark.parametrize(
    ("width", "heads", "options", "message"),
    [
        (12, 4, {"rotary": 1.0}, "heads of width 3; expected an even width"),
        (12, 3, {"rotary": 0.1}, "less than one pair"),
        (12, 3, {"rotary": -0.5}, "rotary is -0.5; expected a share"),
        (12, 3, {"rotary": 1.5}, "from 0 to 1"),
        (12, 3, {"rotary": float("nan")}, "from 0 to 1"),
    ],
)
def test_a_share_that_does_not_fit_the_heads_is_refused(width, heads, options, message):
    with pytest.raises(InvalidInput, match=message):
        Aaren(width, heads, **options)


def test_gated_aaren_is_a_name_for_aarens_options():
    written = mixers.build("aaren(conv=4, forget=true, gate=true, lasting=true, rotary=1)", WIDTH, HEADS)
    named = mixers.build("gated-aaren", WIDTH, HEADS)
    assert isinstance(named.mixer, GatedAaren)
    shapes = {name: part.shape for name, part in named.state_dict().items()}
    assert shapes == {name: part.shape for name, part in written.state_dict().items()}
    written.load_state_dict(named.state_dict())
    assert_close(named.double()(tokens(9))[0], written.double()(tokens(9))[0])


def test_the_state_is_twice_the_papers_and_the_last_three_tokens():
    plain, gated = (mixers.build(name, WIDTH, HEADS).initial_state(1) for name in ("aaren", "gated-aaren"))
    assert state_bytes(gated) == 2 * state_bytes(plain) + 3 * WIDTH * 4


def test_a_lasting_mean_remembers_what_a_gate_forgot(loud):
    mixer, x = loud(Aaren(WIDTH, HEADS, forget=True, lasting=True)).double(), tokens(400)
    with torch.no_grad():
        mixer.keep_bias.fill_(-3.0)
    changed = x.clone()
    changed[:, 0] += 1.0
    assert (mixer(x)[0] - mixer(changed)[0])[:, -1].abs().max() > 1e-4
    mixer.lasting_token = None
    assert (mixer(x)[0] - mixer(changed)[0])[:, -1].abs().max() < 1e-12


def test_slopes_begin_as_those_of_press(loud):
    torch.testing.assert_close(Aaren(16, 8, recency=True).slopes, 2.0 ** -torch.arange(1.0, 9))
    torch.testing.assert_close(Aaren(16, 1, recency=True).slopes, torch.tensor([2.0**-8]))


@pytest.mark.slow
def test_it_is_trained_where_the_loss_is_compiled(make_model):
    """Complex numbers, an index and a loop over pieces must all be traced."""
    model, segment, gradients = make_model(mixer="gated-aaren", blocks=1), draw_segment(6, batch=3), []
    for loss in (torch.compile(model.loss), model.loss):
        model.zero_grad()
        loss(segment)[0].backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for compiled, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
