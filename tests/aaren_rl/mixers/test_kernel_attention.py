"""Attentions with a kernel, against the formulas of their sources in float64 loops over rows, heads and tokens."""

import copy
import math

import pytest
import torch

from aaren_rl import mixers
from aaren_rl.errors import InvalidInput
from aaren_rl.mixers import Performer, Softmax, state_tensors
from aaren_rl.mixers.rfa import GATE_BIAS

WIDTH, HEADS = 12, 3
HEAD_WIDTH = WIDTH // HEADS
NAMES = ["linear", "performer", "rfa"]

every = pytest.mark.parametrize("name", NAMES)


def linear_phi(mixer, head, x):
    return torch.where(x > 0, x + 1, torch.exp(x))


def performer_phi(mixer, head, x):
    x, w = x / HEAD_WIDTH**0.25, mixer.directions[head]
    return torch.exp(w @ x - x @ x / 2) / len(w) ** 0.5


def rfa_phi(mixer, head, x):
    angles = mixer.directions[head] @ (mixer.scale[head, 0] * x / x.norm())
    return torch.cat([torch.sin(angles), torch.cos(angles)]) / len(angles) ** 0.5


PHI = {"linear": linear_phi, "performer": performer_phi, "rfa": rfa_phi}


def gate(mixer, head, token):
    return 1 / (1 + torch.exp(-(mixer.gate.weight[head] @ token + mixer.gate.bias[head] + GATE_BIAS)))


def reference(mixer, name, x, reset, valid):
    """Outputs at the real tokens, 0 elsewhere, and of each whether the denominator was too small."""
    phi, rows, guarded = PHI[name], [], torch.zeros(*valid.shape, HEADS, dtype=torch.bool)
    projected = [part(x).unflatten(-1, (HEADS, HEAD_WIDTH)) for part in (mixer.query, mixer.key, mixer.value)]
    for row in range(x.shape[0]):
        heads = []
        for head in range(HEADS):
            s, z, largest, outputs = 0.0, 0.0, 0.0, []
            for t in range(x.shape[1]):
                if reset[row, t]:
                    s, z, largest = 0.0, 0.0, 0.0
                if not valid[row, t]:
                    outputs.append(torch.zeros(HEAD_WIDTH, dtype=x.dtype))
                    continue
                q, k, v = (part[row, t, head] for part in projected)
                kept = gate(mixer, head, x[row, t]) if name == "rfa" else torch.ones(())
                weight = 1 - kept if name == "rfa" else torch.ones(())
                features = phi(mixer, head, k)
                s = kept * s + weight * torch.outer(features, v)
                z = kept * z + weight * features
                largest = max(float(kept.detach()) * largest, float(weight.detach()))
                read = phi(mixer, head, q)
                denominator = read @ z
                if name == "rfa" and denominator < 0.15625 * largest:
                    denominator, guarded[row, t, head] = 0.15625 * largest, True
                outputs.append(read @ s / denominator)
            heads.append(torch.stack(outputs))
        rows.append(mixer.output(torch.cat(heads, -1)))
    return torch.stack(rows), guarded


def build(name, loud, seed=0):
    return loud(mixers.get(name)(WIDTH, HEADS), seed).double()


def draw(time, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, time, WIDTH, generator=generator, dtype=torch.float64)


def marks(time, batch=2):
    generator = torch.Generator().manual_seed(4)
    return (torch.rand(batch, time, generator=generator) < share for share in (0.03, 0.85))


def in_pieces(mixer, x, reset, valid):
    outputs, state = [], None
    for piece in (slice(0, 7), slice(7, 8), slice(8, None)):
        y, state = mixer(x[:, piece], state, reset[:, piece], valid[:, piece])
        outputs.append(y)
    return torch.cat(outputs, 1)


def gradients(mixer, y, x, valid):
    weights = draw(x.shape[1], seed=5) * valid.unsqueeze(-1)
    return torch.autograd.grad((y * weights).sum(), [x, *mixer.parameters()])


@every
def test_outputs_and_gradients_are_the_formulas(loud, name):
    mixer, x = build(name, loud), draw(75).requires_grad_()
    reset, valid = marks(75)
    if name == "rfa":
        # Features that differ much, so that some denominators are small.
        mixer.scale.data *= 8
    expected, guarded = reference(mixer, name, x, reset, valid)
    expected_gradients = gradients(mixer, expected, x, valid)
    # The guard is met and missed, where there is one.
    assert bool(guarded[valid].any()) == (name == "rfa")
    assert not guarded[valid].all()
    for run in (lambda x: mixer(x, None, reset, valid)[0], lambda x: in_pieces(mixer, x, reset, valid)):
        y = run(x)
        torch.testing.assert_close(y[valid], expected[valid], rtol=1e-9, atol=1e-10)
        for ours, theirs in zip(gradients(mixer, y, x, valid), expected_gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


def test_the_last_token_of_linear_is_the_formula_over_all(loud):
    mixer, x = build("linear", loud), draw(200)
    q, k, v = (part(x).unflatten(-1, (HEADS, HEAD_WIDTH)) for part in (mixer.query, mixer.key, mixer.value))
    q, k = torch.nn.functional.elu(q) + 1, torch.nn.functional.elu(k) + 1
    weights = torch.einsum("bthf,bihf->bhti", q, k)
    everywhere = torch.einsum("bhti,bihd->bthd", weights / weights.sum(-1, keepdim=True), v)
    torch.testing.assert_close(mixer(x)[0][:, -1], mixer.output(everywhere.flatten(2))[:, -1])


def test_more_features_bring_performer_to_softmax(loud):
    softmax, x = loud(Softmax(WIDTH, HEADS), std=0.1).double(), draw(50)
    wanted, _ = softmax(x)
    errors = []
    for sets in (2, 64, 1024):
        performer = Performer(WIDTH, HEADS, sets).double()
        performer.load_state_dict(softmax.state_dict(), strict=False)
        errors.append(((performer(x)[0] - wanted).square().mean().sqrt() / wanted.std()).item())
    # The error falls with the root of the number of features, or about: 32 and 16 times as many.
    assert errors[0] > 2.5 * errors[1] > 6.25 * errors[2]
    assert errors[2] < 0.01


def test_directions_of_performer_are_orthogonal_in_sets():
    size, sets = 16, 50
    directions = Performer(2 * size, 2, sets).directions
    assert directions.shape == (2, sets * size, size)
    vectors = directions.reshape(-1, size, size)
    products = vectors @ vectors.mT
    across = products - torch.diag_embed(products.diagonal(dim1=1, dim2=2))
    assert across.abs().max() < 1e-4
    # Chi-squared lengths, and no side of the sphere preferred: 1600 vectors, 5 standard errors.
    squared = directions.square().sum(-1)
    assert abs(float(squared.mean()) - size) < 5 * math.sqrt(2 * size / 1600)
    assert abs(float(squared.var()) - 2 * size) < 10
    assert directions.mean((0, 1)).abs().max() < 5 / 1600**0.5


def test_performer_survives_features_that_underflow(loud):
    mixer, x = build("performer", loud), draw(20)
    mixer.key.bias.data += 20
    q, k, v = (part(x).unflatten(-1, (HEADS, HEAD_WIDTH)) for part in (mixer.query, mixer.key, mixer.value))
    w = mixer.directions
    logs_q, logs_k = (torch.einsum("bthd,hfd->bthf", part / HEAD_WIDTH**0.25, w) for part in (q, k))
    logs_k = logs_k - k.square().sum(-1, keepdim=True) / HEAD_WIDTH**0.5 / 2
    kernel = torch.logsumexp(logs_q.unsqueeze(2) + logs_k.unsqueeze(1), -1)
    assert torch.exp(logs_k.float()).max() == 0
    later = torch.ones(20, 20, dtype=torch.bool).triu(1)[:, :, None]
    weights = kernel.masked_fill(later, -torch.inf).softmax(2)
    expected = mixer.output(torch.einsum("btih,bihd->bthd", weights, v).flatten(2))
    torch.testing.assert_close(mixer(x)[0], expected)
    # Logarithms of hundreds keep 4 digits behind the point in float32.
    torch.testing.assert_close(mixer.float()(x.float())[0], expected.float(), rtol=1e-2, atol=1e-2)


def test_rfa_without_a_gate_is_a_mean_weighted_by_the_kernel(loud):
    mixer, x = build("rfa", loud), draw(90)
    with torch.no_grad():
        mixer.gate.weight.zero_()
        mixer.gate.bias.fill_(40.0)
    q, k, v = (part(x).unflatten(-1, (HEADS, HEAD_WIDTH)) for part in (mixer.query, mixer.key, mixer.value))
    phi_q, phi_k = (
        torch.stack([torch.stack([rfa_phi(mixer, h, part[0, t, h]) for h in range(HEADS)]) for t in range(90)])
        for part in (q, k)
    )
    weights = torch.einsum("thf,ihf->hti", phi_q, phi_k).tril()
    mean = torch.einsum("hti,ihd->thd", weights / weights.sum(-1, keepdim=True).clamp(min=0.15625), v[0])
    torch.testing.assert_close(mixer(x)[0][0], mixer.output(mean.flatten(1)))


def test_rfa_with_a_closed_gate_forgets_all_before(loud):
    mixer, x = build("rfa", loud), draw(90)
    with torch.no_grad():
        mixer.gate.weight.zero_()
        mixer.gate.bias.fill_(-60.0)
    alone, _ = mixer(x, reset=torch.ones(2, 90, dtype=torch.bool))
    torch.testing.assert_close(mixer(x)[0], alone)


def test_the_product_of_rfa_features_is_the_gaussian_kernel():
    size = 400
    mixer = mixers.get("rfa")(size, 1).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 1, 30, size, generator=generator, dtype=torch.float64)
    near = x + 0.5 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    unit, unit_near = (part / part.norm(dim=-1, keepdim=True) for part in (x, near))
    wanted = torch.exp(-torch.cdist(unit, unit_near).square() / 2)
    queries, keys, *_ = mixer.weigh(x[0], x, near)
    # 400 pairs of features: a standard error of 0.035 at most.
    assert (queries @ keys.mT - wanted).abs().max() < 0.15


@every
def test_sums_are_float32_under_autocast(loud, name):
    mixer, x = build(name, loud).float().eval(), draw(70).float()
    wanted, _ = mixer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = mixer(x[:, :-1])
        last, state = mixer.step(x[:, -1], state)
    assert all(part.dtype == torch.float32 for part in state_tensors(state))
    assert y.dtype == last.dtype == torch.bfloat16
    torch.testing.assert_close(torch.cat([y, last.unsqueeze(1)], 1).float(), wanted, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", ["performer", "rfa"])
def test_directions_are_the_same_for_every_seed_and_saved(name):
    kinds = [mixers.get(name)(WIDTH, HEADS) for seed in (1, 2) if torch.manual_seed(seed)]
    assert torch.equal(kinds[0].directions, kinds[1].directions)
    assert not torch.equal(kinds[0].directions[0], kinds[0].directions[1])
    assert torch.equal(kinds[0].state_dict()["directions"], kinds[0].directions)


def test_a_performer_without_features_is_refused():
    with pytest.raises(InvalidInput, match="expansion is 0; expected at least 1"):
        Performer(WIDTH, HEADS, 0)


def test_linear_attention_keeps_its_digits_far_from_nought():
    """elu(x) + 1 taken literally has none left below -17 in float32."""
    torch.manual_seed(0)
    mixer = mixers.Linear(8, 2)
    with torch.no_grad():
        mixer.query.bias.fill_(-20.0)
        mixer.key.bias.fill_(-5.0)
    x = torch.randn(2, 30, 8)
    exact = copy.deepcopy(mixer).double()(x.double())[0]
    torch.testing.assert_close(mixer(x)[0].double(), exact, rtol=1e-4, atol=1e-4)
