import math

import pytest
import torch
from torch.nn import functional as F

from aaren_rl import mixers
from aaren_rl.errors import InvalidInput
from aaren_rl.mixers import FactorisedSynthesizer, Linformer, Local
from aaren_rl.mixers.base.chunkwise import CHUNK
from aaren_rl.mixers.base.sliding_window import SlidingWindow

WIDTH, HEADS = 12, 3
SIZE = WIDTH // HEADS


def attention(mixer, window, ages):
    """Softmax attention of the newest token of a window to those of some ages (Vaswani et al. 2017, section 3.2)."""
    query, mixed = mixer.query(window[-1]), []
    for head in range(HEADS):
        part = slice(head * SIZE, (head + 1) * SIZE)
        scores = [query[part] @ mixer.key(window[-1 - age])[part] / math.sqrt(SIZE) for age in ages]
        total = sum(torch.exp(score) for score in scores)
        values = [mixer.value(window[-1 - age])[part] for age in ages]
        mixed.append(sum(torch.exp(score) / total * value for score, value in zip(scores, values, strict=True)))
    return mixer.output(torch.cat(mixed))


def local(mixer, window):
    return attention(mixer, window, range(len(window)))


def strided(mixer, window):
    return attention(mixer, window, [age for age in range(len(window)) if age % 4 == 0])


def synthesized(mixer, window, logits):
    """Tay et al. 2020, section 3, with the logits of each head in the order of ages."""
    mixed = []
    for head in range(HEADS):
        weights = torch.softmax(logits[head][: len(window)], 0)
        values = [mixer.value(token)[head * SIZE : (head + 1) * SIZE] for token in reversed(window)]
        mixed.append(sum(weight * value for weight, value in zip(weights, values, strict=True)))
    return mixer.output(torch.cat(mixed))


def synthesizer_dense(mixer, window):
    # Parameters stand in the order of the window, the newest last.
    logits = mixer.logit(torch.relu(mixer.hidden(window[-1]))).chunk(HEADS)
    return synthesized(mixer, window, [one.flip(0) for one in logits])


def synthesizer_random(mixer, window):
    return synthesized(mixer, window, [one.flip(0) for one in mixer.logit])


def synthesizer_factorised(mixer, window):
    a, b = mixer.factors
    logits = []
    for both in mixer.factor(torch.relu(mixer.hidden(window[-1]))).chunk(HEADS):
        logits.append(both[:a].repeat_interleave(b) * both[a:].tile(a))
    return synthesized(mixer, window, logits)


def gmlp(mixer, window):
    """Liu et al. 2021, section 2: the spatial gating unit on the whole window, its last row."""
    weights = mixer.spatial_weight[mixer.span - len(window) :]
    u = F.gelu(F.linear(window[-1], mixer.gated.weight, mixer.gated.bias))
    v = torch.stack([F.gelu(F.linear(token, mixer.gate.weight, mixer.gate.bias)) for token in window])
    centred = v - v.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.norm.weight + mixer.norm.bias
    return mixer.output(u * (weights @ normed + mixer.spatial_bias))


def mlp_mixer(mixer, window):
    """Tolstikhin et al. 2021, equation 1, on a window filled up with zeros, its last row."""
    missing = [torch.zeros_like(window[0])] * (mixer.span - len(window))
    columns = torch.stack([*missing, *window])
    hidden = F.gelu(mixer.hidden.weight @ columns + mixer.hidden.bias.unsqueeze(1))
    return (mixer.output.weight @ hidden).squeeze(0) + mixer.output.bias


def fnet(mixer, window):
    """The whole transform over both dimensions (Lee-Thorp et al. 2021, equation 3), from the newest token on."""
    missing = [torch.zeros_like(window[0])] * (mixer.span - len(window))
    whole = torch.fft.fft2(torch.stack([*reversed(window), *missing]), norm="ortho").real
    return mixer.output(torch.stack([whole[channel % mixer.span, channel] for channel in range(WIDTH)]))


def linformer(mixer, window):
    """Wang et al. 2020, equation 7."""
    missing = torch.zeros(mixer.span - len(window), WIDTH, dtype=window[0].dtype)
    keys, values = (torch.cat([missing, part(torch.stack(window))]) for part in (mixer.key, mixer.value))
    query, mixed = mixer.query(window[-1]), []
    for head in range(HEADS):
        part = slice(head * SIZE, (head + 1) * SIZE)
        weights = torch.softmax(mixer.project_keys @ keys[:, part] @ query[part] / math.sqrt(SIZE), 0)
        mixed.append(weights @ (mixer.project_values @ values[:, part]))
    return mixer.output(torch.cat(mixed))


FORMULAS = {
    "fnet": fnet,
    "gmlp": gmlp,
    "linformer": linformer,
    "local": local,
    "mlp-mixer": mlp_mixer,
    "strided": strided,
    "synthesizer-dense": synthesizer_dense,
    "synthesizer-factorised": synthesizer_factorised,
    "synthesizer-random": synthesizer_random,
}
every_window = pytest.mark.parametrize("name", FORMULAS)


def build(name, loud, span):
    return loud(mixers.build(f"{name}:{span}", WIDTH, HEADS)).double()


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loop(mixer, formula, x, reset, valid, first):
    """The formula on the last tokens of the episode, row by row, of each token from the first; zeros for padding."""
    rows = []
    for row in range(x.shape[0]):
        episode, outputs = [], []
        for t in range(x.shape[1]):
            if reset[row, t]:
                episode = []
            if valid[row, t]:
                episode.append(x[row, t])
            wanted = valid[row, t] and t >= first
            outputs.append(formula(mixer, episode[-mixer.span :]) if wanted else torch.zeros_like(x[row, t]))
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


def assert_equals_loop(mixer, name, x, reset, valid, first=0):
    found = []
    unwanted = ~valid | (torch.arange(x.shape[1]) < first)
    for run in (
        lambda x: loop(mixer, FORMULAS[name], x, reset, valid, first),
        lambda x: mixer(x, None, reset, valid)[0].masked_fill(unwanted.unsqueeze(-1), 0.0),
    ):
        given = x.clone().requires_grad_()
        y = run(given)
        loss = (y * draw(*x.shape, seed=1)).sum()
        found.append([y, *torch.autograd.grad(loss, [given, *mixer.parameters()])])
    assert found[0][1].abs().max() > 1e-3
    for ours, theirs in zip(*reversed(found), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@every_window
@pytest.mark.parametrize("span", [1, 2, 7, 20])
def test_it_is_its_sources_formula_on_every_window(loud, name, span):
    generator = torch.Generator().manual_seed(span)
    reset = torch.rand(3, 34, generator=generator) < 0.06
    valid = torch.rand(3, 34, generator=generator) < 0.85
    # Full windows in the first row, no padding in the second, a reset that falls on padding in the last.
    reset[0], valid[1], reset[2, 9], valid[2, 9] = False, True, True, False
    assert_equals_loop(build(name, loud, span), name, draw(3, 34, WIDTH), reset, valid)


@every_window
def test_it_is_its_sources_formula_beyond_a_chunk(loud, name):
    time = CHUNK + 21
    reset, valid = torch.zeros(1, time, dtype=torch.bool), torch.ones(1, time, dtype=torch.bool)
    valid[0, 3:9] = False
    assert_equals_loop(build(name, loud, 13), name, draw(1, time, WIDTH), reset, valid, first=CHUNK - 5)


@every_window
@pytest.mark.parametrize("span", [1, 9])
def test_only_the_window_matters(loud, name, span):
    mixer, x = build(name, loud, span), draw(1, 40, WIDTH).requires_grad_()
    mixer(x)[0][0, -1].cos().sum().backward()
    seen = [age for age in range(span) if name != "strided" or age % 4 == 0]
    assert x.grad[0].abs().amax(-1).flip(0).gt(0).nonzero().flatten().tolist() == seen


@every_window
def test_autocast_costs_no_more_than_its_precision(loud, name):
    mixer, x = build(name, loud, 20).float(), draw(2, 40, WIDTH).float()
    expected, _ = mixer(x)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, state = mixer(x)
        assert mixer.step(x[:, 0], state)[0].isfinite().all()
    torch.testing.assert_close(outputs.float(), expected, rtol=0, atol=0.05 * expected.abs().max().item())


@every_window
def test_a_window_without_a_token_is_refused(name):
    with pytest.raises(InvalidInput, match="a window of 0 tokens"):
        mixers.get(name)(WIDTH, HEADS, span=0)


@every_window
def test_it_is_as_large_as_attention_with_known_exceptions(name):
    squares = sum(parameter.numel() for parameter in mixers.get(name)(64, 1).parameters()) / 64**2
    learning_less = {"fnet": 1, "mlp-mixer": 0, "synthesizer-dense": 3.3, "synthesizer-factorised": 3.1}
    assert squares == pytest.approx({"synthesizer-random": 2, **learning_less}.get(name, 4), rel=0.06, abs=0.25)


def test_what_lies_along_windows_and_along_the_past():
    sliding = SlidingWindow(4, 2, span=5, entry_size=3)
    weights, past = draw(2, 3, 6, 5), draw(2, 10, 3)
    laid = sliding.along_past(weights)
    expected = torch.zeros(2, 3, 6, 10, dtype=torch.float64)
    for t in range(6):
        expected[..., t, t : t + 5] = weights[..., t, :]
    assert torch.equal(laid, expected)
    assert torch.equal(sliding.along_window(laid), weights)
    assert torch.equal(sliding.ages(6)[laid[0, 0] != 0].view(6, 5), torch.arange(4, -1, -1).expand(6, 5))
    seen = sliding.along_past((draw(2, 6, 5, seed=1) > 0).double()) > 0
    windows, found = sliding.windows(past, seen)
    for row in range(2):
        for t in range(6):
            for place in range(5):
                assert found[row, t, place] == seen[row, t, t + place]
                assert torch.equal(windows[row, t, place], past[row, t + place] * found[row, t, place])


def test_factors_fit_any_span():
    for span in range(1, 60):
        a, b = FactorisedSynthesizer(WIDTH, HEADS, span).factors
        assert a * (b - 1) < span <= a * b
        assert 0 <= a - b <= 1
    exact = {span: FactorisedSynthesizer(WIDTH, HEADS, span).factors for span in (1, 12, 20, 49)}
    assert exact == {1: (1, 1), 12: (4, 3), 20: (5, 4), 49: (7, 7)}


def test_a_gmlp_begins_without_mixing(loud):
    mixer = mixers.build("gmlp", WIDTH, HEADS)
    x = draw(2, 30, WIDTH).float()
    alone = mixer.output(F.gelu(mixer.gated(x)))
    together, _ = mixer(x)
    assert 0 < (together - alone).norm() < 0.2 * alone.norm()


def test_linformer_of_full_rank_is_attention(loud, monkeypatch):
    """With projections that leave keys and values as they are, of a full window."""
    monkeypatch.setattr(Linformer, "rank", 6)
    ours, theirs = build("linformer", loud, 6), loud(Local(WIDTH, HEADS, 6)).double()
    with torch.no_grad():
        ours.project_keys.copy_(torch.eye(6))
        ours.project_values.copy_(torch.eye(6))
    theirs.load_state_dict({name: part for name, part in ours.state_dict().items() if "project" not in name})
    x = draw(2, 20, WIDTH)
    torch.testing.assert_close(ours(x)[0][:, 5:], theirs(x)[0][:, 5:])
    assert (ours(x)[0] - theirs(x)[0])[:, :5].abs().amax((0, 2)).min() > 1e-3
