"""Mixers that keep tokens in slots, against lists of the tokens that are seen, row by row and head by head."""

import math

import pytest
import torch

from aaren_rl import mixers
from aaren_rl.errors import InvalidInput
from aaren_rl.mixers.bigbird import PRIME, ROUNDS, keyed_hash, reservoir_place
from aaren_rl.mixers.routing import STRENGTH, with_k_means

WIDTH, HEADS, SIZE = 12, 3, 4
FIRST, SAMPLED = 4, 4
NAMES = ("longformer", "bigbird", "reformer", "routing")


def draw(batch, time, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, time, WIDTH, generator=generator, dtype=torch.float64)
    reset = torch.rand(batch, time, generator=generator) < 0.01
    return x, reset, torch.rand(batch, time, generator=generator) < 0.85


def hash_of(number, key):
    """In whole numbers of any size."""
    for constant in ROUNDS:
        number = pow(number + key + constant, 5, PRIME)
    return number


class FirstAndLast:
    """What a head of longformer sees of an episode's tokens so far."""

    def __init__(self, mixer, head):
        self.span, self.tokens = mixer.span, []

    def seen(self, token, query):
        self.tokens.append(token)
        return sorted({*self.tokens[:FIRST], *self.tokens[-self.span :]})

    @staticmethod
    def compared(query, key):
        return query, key, SIZE**-0.5


class WithSample(FirstAndLast):
    """And of bigbird: a reservoir of what has left the window."""

    def __init__(self, mixer, head):
        super().__init__(mixer, head)
        self.head, self.sample = head, []

    def seen(self, token, query):
        others = super().seen(token, query)
        left = len(self.tokens) - 1 - self.span
        number = left - FIRST
        if 0 <= number < SAMPLED:
            self.sample.append(self.tokens[left])
        elif number >= SAMPLED:
            place = hash_of(number, self.head) % (number + 1)
            if place < SAMPLED:
                self.sample[place] = self.tokens[left]
        assert not set(self.sample) & set(others)
        return sorted({*others, *self.sample})


class Bucket:
    """And of reformer."""

    def __init__(self, mixer, head):
        self.span, self.rotation, self.buckets = mixer.span, mixer.rotations[head], {}

    def seen(self, token, query):
        rotated = query @ self.rotation
        bucket = self.buckets.setdefault(int(torch.cat([rotated, -rotated]).argmax()), [])
        others = bucket[len(bucket) - min(len(bucket), self.span - 1) :]
        bucket.append(token)
        return others or [token]

    @staticmethod
    def compared(query, key):
        return query, query / query.square().sum(-1, keepdim=True).sqrt(), 1.0


class Cluster:
    """And of routing, whose queries are normed."""

    def __init__(self, mixer, head):
        self.span, self.centroids, self.clusters = mixer.span, mixer.centroids[head], {}

    def seen(self, token, query):
        cluster = self.clusters.setdefault(int((self.centroids @ query).argmax()), [])
        cluster.append(token)
        return cluster[-self.span :]

    @staticmethod
    def compared(query, key):
        query = query - query.mean(-1, keepdim=True)
        query = query / (query.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return query, query, SIZE**-0.5


RULES = {"longformer": FirstAndLast, "bigbird": WithSample, "reformer": Bucket, "routing": Cluster}


def linear(layer, x):
    return x @ layer.weight.T + layer.bias


def loop(name, mixer, x, reset, valid):
    """Outputs by the definition, 0 for padding, and the k-means objective of routing."""
    rule, objective = RULES[name], torch.zeros((), dtype=torch.float64)
    rows = []
    for row in range(x.shape[0]):
        own = torch.where(valid[row, :, None], x[row], 0.0)
        value = linear(mixer.value, own).view(-1, HEADS, SIZE)
        query = linear(mixer.query, own).view(-1, HEADS, SIZE)
        key = linear(mixer.key, own).view(-1, HEADS, SIZE) if hasattr(mixer, "key") else query
        query, key, scale = rule.compared(query, key)
        outputs = []
        for t in range(x.shape[1]):
            if t == 0 or reset[row, t]:
                keeps = [rule(mixer, head) for head in range(HEADS)]
            if not valid[row, t]:
                outputs.append(torch.zeros(WIDTH, dtype=torch.float64))
                continue
            mixed = []
            for head in range(HEADS):
                seen = keeps[head].seen(t, query[t, head])
                weights = torch.softmax(scale * key[seen, head] @ query[t, head], 0)
                mixed.append(weights @ value[seen, head])
                if name == "routing":
                    distances = (query[t, head].detach() - mixer.centroids[head]).square().sum(-1)
                    objective = objective + distances[(mixer.centroids[head] @ query[t, head]).argmax()] / 2
            outputs.append(linear(mixer.output, torch.cat(mixed)))
        rows.append(torch.stack(outputs))
    return torch.stack(rows), objective


def in_pieces(mixer, x, reset, valid, ends):
    outputs, state, start = [], None, 0
    for end in ends:
        y, state = mixer(x[:, start:end], state, reset[:, start:end], valid[:, start:end])
        outputs.append(y)
        start = end
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("span", [1, 5, 200])
@pytest.mark.parametrize("name", NAMES)
def test_each_is_attention_to_the_list_of_tokens_it_sees(loud, name, span):
    """Over more than a chunk, in one pass and in pieces, with resets and padding, in outputs and gradients."""
    mixer = loud(mixers.get(name)(WIDTH, HEADS, span)).double()
    x, reset, valid = draw(2, 150)
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for run in (
        lambda x: loop(name, mixer, x, reset, valid),
        lambda x: (mixer(x, None, reset, valid)[0], None),
        lambda x: (in_pieces(mixer, x, reset, valid, (1, 30, 31, 140, 150)), None),
    ):
        mixer.zero_grad()
        given = x.clone().requires_grad_()
        y, objective = run(given)
        loss = (y[valid] * weights[valid]).sum()
        if objective is not None:
            loss = loss + STRENGTH * objective
        loss.backward()
        gradients = (p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in mixer.parameters())
        found.append((y[valid].detach(), given.grad, *gradients))
    for other in found[1:]:
        for ours, theirs in zip(other, found[0], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    if name == "routing":
        assert mixer.centroids.grad.abs().max() > STRENGTH


@pytest.mark.parametrize(("name", "longest"), [("longformer", 6 + FIRST), ("bigbird", 6 + FIRST + SAMPLED)])
def test_what_fits_into_its_slots_is_seen_whole(loud, name, longest):
    mixer = loud(mixers.get(name)(WIDTH, HEADS, span=6)).double()
    full = mixers.Softmax(WIDTH, HEADS).double()
    full.load_state_dict(mixer.state_dict())
    x, _, _ = draw(3, longest + 1)
    ours, theirs = mixer(x)[0], full(x)[0]
    torch.testing.assert_close(ours[:, :longest], theirs[:, :longest], rtol=0, atol=1e-12)
    assert (ours[:, longest] - theirs[:, longest]).abs().max() > 1e-4


def samples(keys, length):
    """Which tokens are in the samples of many keys after `length` tokens, (keys, 4)."""
    place = reservoir_place(torch.arange(length), torch.arange(keys).unsqueeze(-1))
    held = torch.full((keys, SAMPLED + 1), -1)
    for number in range(length):
        held.scatter_(1, place[:, number, None], number)
    return held[:, :SAMPLED]


def assert_uniform(observed, share):
    """A chi-squared statistic is within 4 deviations of its mean; a count's variance is n share (1 - share)."""
    expected = observed.double().mean()
    statistic = float(((observed - expected) ** 2 / expected).sum() / (1 - share))
    freedom = observed.numel() - 1
    assert abs(statistic - freedom) < 4 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("length", [5, 16, 60])
def test_a_reservoir_is_a_uniform_sample_of_distinct_tokens(length):
    keys = 20_000
    held = samples(keys, length)
    ordered = held.sort(1).values
    assert ordered[:, 0].min() >= 0
    assert (ordered.diff(dim=1) > 0).all()
    assert_uniform(torch.bincount(held.flatten(), minlength=length), SAMPLED / length)
    # Any two are in it together as often as any other two, which takes draws that do not depend on each other.
    together = torch.zeros(length, length, dtype=torch.long)
    for first in range(SAMPLED):
        for second in range(first + 1, SAMPLED):
            together += torch.bincount(ordered[:, first] * length + ordered[:, second], minlength=length**2).view(
                length, length
            )
    pairs = together[torch.ones(length, length, dtype=torch.bool).triu(1)]
    expected = keys * SAMPLED * (SAMPLED - 1) / (length * (length - 1))
    assert ((pairs - expected).abs() < 5 * math.sqrt(expected)).all()


def test_over_positions_too_what_falls_into_a_sample_is_uniform():
    numbers = torch.arange(200_000)
    place = reservoir_place(numbers, torch.tensor(2))[SAMPLED:]
    assert_uniform(torch.bincount(keyed_hash(numbers, torch.tensor(2)) % 64, minlength=64), 1 / 64)
    share = SAMPLED / (numbers[SAMPLED:] + 1)
    taken = (place < SAMPLED).sum()
    assert abs(taken - share.sum()) < 4 * (share * (1 - share)).sum().sqrt()


def test_the_hash_is_that_of_whole_numbers_without_bounds():
    numbers = [*range(50), 10**6, PRIME - 1, PRIME, PRIME + 7, 2**40 + 3]
    for key in (0, 1, 11):
        ours = keyed_hash(torch.tensor(numbers), torch.tensor(key))
        assert ours.tolist() == [hash_of(number, key) for number in numbers]


def test_heads_of_bigbird_see_samples_of_their_own(loud):
    mixer = mixers.get("bigbird")(WIDTH, HEADS, span=3).double()
    held = mixer(draw(1, 400)[0])[1].rank[0, :, -SAMPLED:]
    assert len({tuple(sorted(ranks)) for ranks in held.tolist()}) == HEADS


def test_one_descent_step_moves_a_centroid_to_its_mean():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(5, 2, 30, SIZE, generator=generator, dtype=torch.float64)
    values = torch.randn(5, 2, 30, SIZE, generator=generator, dtype=torch.float64, requires_grad=True)
    centroids = torch.randn(2, 3, SIZE, generator=generator, dtype=torch.float64, requires_grad=True)
    cluster = torch.randint(0, 2, (5, 2, 30), generator=generator)
    real = torch.rand(5, 30, generator=generator) < 0.7
    passed = with_k_means(values, centroids, points, cluster, real)
    assert torch.equal(passed, values)
    upstream = torch.randn(values.shape, generator=generator, dtype=torch.float64)
    passed.backward(upstream)
    assert torch.equal(values.grad, upstream)
    for head in range(2):
        for number in range(2):
            members = points[:, head][(cluster[:, head] == number) & real]
            moved = centroids[head, number] - centroids.grad[head, number] / (STRENGTH * len(members))
            torch.testing.assert_close(moved, members.mean(0), rtol=0, atol=1e-9)
    # No point, no move.
    assert torch.equal(centroids.grad[:, 2], torch.zeros(2, SIZE, dtype=torch.float64))


def test_under_autocast_counts_of_centroids_stay_whole():
    """Half precision knows no odd number above 256."""
    points, cluster = torch.ones(1, 1, 1001, 2), torch.zeros(1, 1, 1001, dtype=torch.long)
    centroids = torch.zeros(1, 1, 2, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        values = with_k_means(torch.zeros_like(points).requires_grad_(), centroids, points, cluster, cluster[0] == 0)
    values.sum().backward()
    torch.testing.assert_close(centroids.grad, torch.full((1, 1, 2), -1001 * STRENGTH))


def test_centroids_begin_on_the_sphere_of_the_queries():
    centroids = mixers.get("routing")(WIDTH, HEADS).centroids
    torch.testing.assert_close(centroids.mean(-1), torch.zeros(HEADS, 8), rtol=0, atol=1e-6)
    torch.testing.assert_close(centroids.square().mean(-1), torch.ones(HEADS, 8), rtol=0, atol=1e-2)


def test_rotations_of_reformer_are_fixed_and_saved():
    first, second = mixers.get("reformer")(WIDTH, HEADS), mixers.get("reformer")(WIDTH, HEADS)
    assert torch.equal(first.rotations, second.rotations)
    assert "rotations" in first.state_dict()


@pytest.mark.parametrize("name", NAMES)
def test_a_window_without_a_token_is_refused(name):
    with pytest.raises(InvalidInput, match="a window of 0 tokens; expected at least 1"):
        mixers.get(name)(WIDTH, HEADS, span=0)
