"""Mixers with a matrix memory, against the formulas of their sources in float64 loops over rows, heads and tokens."""

import copy
import math

import pytest
import torch
from helpers import draw_segment, episode_by_episode
from torch import nn

from aaren_rl import mixers
from aaren_rl.mixers import state_tensors

WIDTH, HEADS = 12, 3
HEAD_WIDTH = WIDTH // HEADS
NAMES = ["gated-deltanet", "mamba2", "mlstm", "rotary-linear"]

every = pytest.mark.parametrize("name", NAMES)


def linear(layer, x):
    return layer.weight @ x + layer.bias


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def silu(x):
    return x * sigmoid(x)


def normed(x):
    return x / torch.sqrt(x.square().mean() + 1e-6)


def part(layer, x, head, size):
    return linear(layer, x)[head * size : (head + 1) * size]


def forget(mixer, x, head):
    return sigmoid(linear(mixer.forget, x)[head] + mixer.forget_bias[head])


def gated(mixer, head, x, read):
    return silu(part(mixer.norm.gate, x, head, HEAD_WIDTH)) * mixer.norm.scale[head, 0] * normed(read)


def rotary_linear(mixer, tokens):
    """The definition without a state: every query turned back by the age of every key, and decays written out."""
    time, heads = len(tokens), []
    for head in range(HEADS):
        q, k = (
            torch.stack([part(layer, x, head, mixer.features) + offset[head, 0] for x in tokens])
            for layer, offset in ((mixer.query, mixer.query_offset), (mixer.key, mixer.key_offset))
        )
        # A pair as a complex number: its product with another is the real part of the one times the other's conjugate.
        q, k = (torch.complex(features[:, ::2], features[:, 1::2]) for features in (q, k))
        kept, reads = [forget(mixer, x, head) for x in tokens], []
        for t in range(time):
            read = 0.0
            for i in range(t + 1):
                turned = torch.polar(torch.ones(()).double(), torch.exp(mixer.log_frequency[head]) * (t - i)) * k[i]
                weight = (q[t].conj() * turned).real.sum() * torch.stack(kept[i + 1 : t + 1] or [torch.ones(())]).prod()
                read = read + weight * part(mixer.value, tokens[i], head, HEAD_WIDTH)
            reads.append(gated(mixer, head, tokens[t], read))
        heads.append(torch.stack(reads))
    return [linear(mixer.output, read) for read in torch.cat(heads, -1)]


def gated_deltanet(mixer, tokens):
    memory, outputs = [torch.zeros(HEAD_WIDTH, HEAD_WIDTH, dtype=tokens.dtype)] * HEADS, []
    for x in tokens:
        heads = []
        for head in range(HEADS):
            q, k, v = (part(layer, x, head, HEAD_WIDTH) for layer in (mixer.query, mixer.key, mixer.value))
            q, k, b = q / q.norm(), k / k.norm(), 2 * sigmoid(linear(mixer.write, x)[head])
            erased = torch.eye(HEAD_WIDTH, dtype=x.dtype) - b * torch.outer(k, k)
            memory[head] = forget(mixer, x, head) * erased @ memory[head] + b * torch.outer(k, v)
            heads.append(gated(mixer, head, x, memory[head].T @ q))
        outputs.append(linear(mixer.output, torch.cat(heads)))
    return outputs


def mamba2(mixer, tokens):
    inner, count = 2 * WIDTH, mixer.memories
    size = inner // count
    memory, outputs = [torch.zeros(64, size, dtype=tokens.dtype)] * count, []
    for u in tokens:
        z, x, b, c, step = linear(mixer.project, u).split([inner, inner, 64, 64, count])
        y = []
        for head in range(count):
            dt = torch.log(1 + torch.exp(step[head] + mixer.step_bias[head]))
            own = x[head * size : (head + 1) * size]
            kept = torch.exp(-dt * torch.exp(mixer.log_rate[head]))
            memory[head] = kept * memory[head] + dt * torch.outer(b, own)
            y.append(memory[head].T @ c + mixer.skip[head, 0] * own)
        outputs.append(linear(mixer.output, normed(torch.cat(y) * silu(z)) * mixer.scale))
    return outputs


def mlstm(mixer, tokens):
    """As section 2.3 has it, without the stabilising state."""
    memory, outputs = [torch.zeros(HEAD_WIDTH, HEAD_WIDTH, dtype=tokens.dtype)] * HEADS, []
    normaliser = [torch.zeros(HEAD_WIDTH, dtype=tokens.dtype)] * HEADS
    for x in tokens:
        heads = []
        for head in range(HEADS):
            q, k, v = (part(layer, x, head, HEAD_WIDTH) for layer in (mixer.query, mixer.key, mixer.value))
            k, f, i = k / HEAD_WIDTH**0.5, forget(mixer, x, head), torch.exp(linear(mixer.input, x)[head])
            memory[head] = f * memory[head] + i * torch.outer(v, k)
            normaliser[head] = f * normaliser[head] + i * k
            heads.append(memory[head] @ q / max(abs(normaliser[head] @ q), torch.ones((), dtype=x.dtype)))
        outputs.append(linear(mixer.output, sigmoid(linear(mixer.output_gate, x)) * torch.cat(heads)))
    return outputs


FORMULAS = {"gated-deltanet": gated_deltanet, "mamba2": mamba2, "mlstm": mlstm, "rotary-linear": rotary_linear}
"""(mixer, tokens of one episode) to the outputs."""


def reference(mixer, name, x, reset, valid):
    """Outputs by (row, token)."""
    return episode_by_episode(lambda episode: FORMULAS[name](mixer, episode), x, reset, valid)


def build(name, loud, heads=HEADS, std=0.5):
    return loud(mixers.build(name, WIDTH, heads), std=std).double()


def draw(time, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, time, WIDTH, generator=generator, dtype=torch.float64)


@every
def test_outputs_and_gradients_are_the_formulas(loud, assert_is_formula, name):
    """Over two chunks, with resets and padding anywhere."""
    mixer, generator = build(name, loud), torch.Generator().manual_seed(4)
    reset, valid = (torch.rand(2, 75, generator=generator) < share for share in (0.03, 0.85))
    assert_is_formula(mixer, lambda x: reference(mixer, name, x, reset, valid), draw(75), reset, valid)


def test_both_denominators_of_mlstm_are_met(loud):
    mixer = build("mlstm", loud)
    terms, _ = mixer.terms(draw(75))
    weights = terms.log_decay.cumsum(-1).unsqueeze(3) + (terms.log_weight - terms.log_decay.cumsum(-1)).unsqueeze(2)
    normaliser = ((terms.queries @ terms.keys.mT) * weights.exp()).tril().sum(-1)
    assert (normaliser.abs() < 1).any()
    assert (normaliser > 1).any()
    assert (normaliser < -1).any()


@pytest.mark.parametrize("size", [1, 3])
@every
def test_heads_of_odd_widths_are_the_formula_too(loud, monkeypatch, assert_is_formula, name, size):
    monkeypatch.setitem(globals(), "HEADS", WIDTH // size if size == 3 else 5)
    monkeypatch.setitem(globals(), "WIDTH", HEADS * size)
    monkeypatch.setitem(globals(), "HEAD_WIDTH", size)
    mixer, valid = build(name, loud, HEADS), torch.ones(1, 6, dtype=torch.bool)
    formula = lambda x: reference(mixer, name, x, ~valid, valid)  # noqa: E731
    # A query or key of one number and unit length is 1 or -1.
    assert_is_formula(mixer, formula, draw(6, 1), ~valid, valid, may_be_silent=size == 1)


@every
def test_float32_stays_right_over_thousands_of_tokens(loud, name):
    mixer, x = build(name, loud, std=0.3), draw(3000)
    with torch.no_grad():
        expected, _ = mixer(x)
        single = copy.deepcopy(mixer).float()
        outputs, state = single(x.float())
        stepped, after = [], None
        for t in range(3000):
            y, after = single.step(x[:, t].float(), single.initial_state(2) if after is None else after)
            stepped.append(y)
    for found in (outputs, torch.stack(stepped, 1)):
        assert (found - expected).square().mean().sqrt() < 1e-4 * expected.std()
    assert all(part.dtype == torch.float32 for part in state_tensors(state))


@every
def test_memories_are_float32_under_autocast(loud, name):
    mixer, x = build(name, loud, std=0.3).float().eval(), draw(70).float()
    expected, _ = mixer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = mixer(x[:, :-1])
        last, state = mixer.step(x[:, -1], state)
    assert all(part.dtype == torch.float32 for part in state_tensors(state))
    assert y.dtype == last.dtype == torch.bfloat16
    outputs = torch.cat([y, last.unsqueeze(1)], 1).float()
    # mLSTM divides by sums of either sign.
    assert (outputs - expected).square().mean().sqrt() < (0.06 if name == "mlstm" else 0.03) * expected.std()


@pytest.mark.parametrize("heads", [1, 4])
@every
def test_a_model_starts_with_a_head_that_keeps_hundreds_of_tokens(make_model, name, heads):
    model = make_model(mixer=name, heads=heads, width=64)
    mixer = next(model.trunk.mixers())
    torch.manual_seed(0)
    fresh = mixers.build(name, 64, heads)
    with torch.no_grad():
        mixer.load_state_dict(fresh.state_dict())
        model.trunk.initialise()
        terms, _ = mixer.terms(nn.functional.layer_norm(torch.randn(4, 300, 64), (64,)))
    kept = terms.log_decay.sum(-1).exp().mean(0)
    assert 0.6 < kept[0] < 0.9
    assert kept.min() > 0.5 if heads == 1 and name != "mamba2" else kept.min() < 1e-3


@pytest.mark.slow
@every
def test_it_is_trained_where_the_loss_is_compiled(make_model, name):
    model, segment, gradients = make_model(mixer=name, blocks=1), draw_segment(6, batch=3), []
    for loss in (torch.compile(model.loss, backend="aot_eager"), model.loss):
        model.zero_grad()
        loss(segment)[0].backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for compiled, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)


def test_angles_begin_with_periods_from_256_tokens_to_2():
    mixer = mixers.build("rotary-linear", 64, 4)
    periods = 2 * math.pi / mixer.frequencies
    torch.testing.assert_close(periods[0], 2.0 ** torch.linspace(8, 1, 8))
    assert (periods == periods[0]).all()


def single_head(name, width):
    """A mixer whose tokens are its keys, values and queries, and whose output is what the head reads, normed."""
    mixer = mixers.build(name, width, 1).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.zero_()
        for layer in (mixer.query, mixer.key, mixer.value, mixer.output):
            layer.weight.copy_(torch.eye(width))
        mixer.forget.bias.fill_(40.0)
    return mixer


def test_rotary_linear_recalls_a_token_by_its_age():
    """With offsets alone, weights are a sum of cosines of the age, whose phase picks an age."""
    width, age = 128, 5
    mixer = mixers.build("rotary-linear", width, 1).double()
    x = draw(60, 1)[..., :1].repeat(1, 1, width)
    with torch.no_grad():
        for layer in (mixer.query, mixer.key, mixer.value, mixer.forget):
            layer.weight.zero_()
            layer.bias.zero_()
        mixer.value.weight[0, 0] = 1.0
        mixer.forget.bias.fill_(40.0)
        mixer.log_frequency.copy_((2 * math.pi * torch.arange(64).double() / 127).clamp(min=1e-30).log())
        angles = mixer.frequencies * age
        mixer.query_offset.copy_(torch.stack([angles.cos(), angles.sin()], -1).view(1, 1, width))
        terms, _ = mixer.terms(x)
        _, state = mixer(x[:, :-1])
        read, _ = mixer.mix_token(mixer.terms(x[:, -1:])[0], state)
    # All frequencies of 127 tokens once: 1 at the age, and a half everywhere from the constant.
    expected = 63.5 * x[0, -1 - age, 0] + 0.5 * x[0, :, 0].sum()
    torch.testing.assert_close(read[0, 0, 0, 0], expected)
    assert terms.log_decay.abs().max() < 1e-15


def test_gated_deltanet_answers_a_key_with_its_last_value():
    mixer, size = single_head("gated-deltanet", 8), 8
    with torch.no_grad():
        # The first four numbers of a token are its key, the others its value; b is 1.
        mixer.key.weight[4:] = mixer.query.weight[4:] = 0.0
        mixer.value.weight[:4] = 0.0
    keys = torch.eye(4, dtype=torch.float64)[[0, 1, 2, 0, 3, 1]]
    values = draw(6, 1)[0, :, :4]
    terms, _ = mixer.terms(torch.cat([keys, values], -1)[None])
    memory = mixer.initial_state(1).double()
    for t in range(6):
        _, memory = mixer.mix_token(type(terms)(*(piece[:, :, t : t + 1] for piece in terms)), memory)
    torch.testing.assert_close(memory[0, 0, :4, size // 2 :], values[[3, 5, 2, 4]])


def test_gated_deltanet_tracks_parity_by_a_negative_eigenvalue():
    """b = 2 mirrors the memory at the plane that the key is normal to."""
    mixer = single_head("gated-deltanet", 4)
    with torch.no_grad():
        mixer.write.bias.fill_(40.0)
        mixer.value.weight.zero_()
    x = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64).expand(1, 101, 4)
    memory = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    _, after = mixer(x, memory)
    torch.testing.assert_close(after[0, 0, 0], -torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(after[0, 0, 1:], torch.ones(3, 4, dtype=torch.float64))


def test_gated_deltanet_stays_bounded_where_one_key_comes_again_and_again():
    mixer = single_head("gated-deltanet", 8).float()
    torch.nn.init.constant_(mixer.write.bias, 30.0)
    x = torch.ones(1, 2000, 8) + 1e-3 * draw(2000, 1)[..., :8].float()
    outputs, memory = mixer(x)
    assert outputs.isfinite().all()
    assert memory.abs().max() < 10


@pytest.mark.parametrize("shift", [300.0, -300.0])
def test_mlstm_takes_input_gates_of_any_size(loud, shift):
    """Shifting all gates up leaves C q / |n q|; down, nothing."""
    mixer, x = build("mlstm", loud), draw(90)
    with torch.no_grad():
        mixer.input.bias += 200.0
        large, _ = mixer(x)
        mixer.input.bias += shift - 200.0
        outputs, state = mixer(x)
        single, _ = mixer.float()(x.float())
    assert all(part.isfinite().all() for part in state)
    expected = large if shift > 0 else mixer.output.bias.double().expand_as(large)
    torch.testing.assert_close(outputs, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(single.double(), expected, rtol=1e-2, atol=1e-2)


def test_mamba2_starts_with_the_steps_and_rates_of_its_source():
    mixer = mixers.build("mamba2", 64, 1)
    assert mixer.memories == 8
    steps, rates = nn.functional.softplus(mixer.step_bias), mixer.log_rate.exp()
    torch.testing.assert_close(steps[[0, -1]], torch.tensor([0.001, 0.1]))
    torch.testing.assert_close(rates[[0, -1]], torch.tensor([1.0, 16.0]))
    assert (steps.diff() > 0).all()
    assert (rates.diff() > 0).all()
    assert mixers.build("mamba2", 15, 5).memories == 10
