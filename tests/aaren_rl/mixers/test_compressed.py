"""Memory-compressed attention against its formula, token by token on lists of the tokens of each episode."""

import pytest
import torch
from torch.nn import functional as F

from aaren_rl import mixers
from aaren_rl.errors import InvalidInput
from aaren_rl.mixers import Compressed, state_bytes

WIDTH, HEADS = 6, 2


def draw(time, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, time, WIDTH, generator=generator, dtype=torch.float64)
    reset = torch.rand(batch, time, generator=generator) < 0.06
    valid = torch.rand(batch, time, generator=generator) < 0.9
    # Some episodes are long, and some end with their first token.
    reset[0], reset[1, 5:8] = False, True
    return x, reset, valid


def attend(query, keys, values):
    """One head of one token."""
    scores = torch.stack([query @ key for key in keys]) / query.shape[0] ** 0.5
    return scores.exp() @ torch.stack(values) / scores.exp().sum()


def compress(mixer, part, triple):
    """Three keys (part 0) or values (part 1) as one."""
    rows = slice(part * WIDTH, (part + 1) * WIDTH)
    kernel, bias = mixer.compress.weight[rows, 0], mixer.compress.bias[rows]
    return bias + kernel[:, 0] * triple[0] + kernel[:, 1] * triple[1] + kernel[:, 2] * triple[2]


def reference(mixer, x, reset, valid, triples):
    outputs = {}
    for row in range(x.shape[0]):
        for t in range(x.shape[1]):
            if t == 0 or reset[row, t]:
                own, whole = ([], []), ([], [])
            if not valid[row, t]:
                continue
            if len(own[0]) == 3:
                for part in range(2):
                    whole[part].append(compress(mixer, part, own[part]))
                own = ([], [])
            own[0].append(mixer.key(x[row, t]))
            own[1].append(mixer.value(x[row, t]))
            seen = [whole[part][-triples:] + own[part] for part in range(2)]
            query = mixer.query(x[row, t])
            heads = [
                attend(query[head], [key[head] for key in seen[0]], [value[head] for value in seen[1]])
                for head in torch.arange(WIDTH).chunk(HEADS)
            ]
            outputs[row, t] = mixer.output(torch.cat(heads))
    return outputs


@pytest.mark.parametrize(("span", "triples", "time"), [(1, 1, 20), (10, 4, 50), (12, 4, 140)])
def test_is_the_formula_with_resets_and_padding(loud, assert_is_formula, span, triples, time):
    mixer = loud(Compressed(WIDTH, HEADS, span)).double()
    x, reset, valid = draw(time)
    # The keys' bias counts, since compressing changes it.
    assert_is_formula(mixer, lambda x: reference(mixer, x, reset, valid, triples), x, reset, valid)


def test_after_whole_triples_it_is_a_strided_convolution(loud):
    mixer = loud(Compressed(WIDTH, HEADS, span=15)).double()
    x = draw(16)[0]
    kernels = mixer.compress.weight.chunk(2), mixer.compress.bias.chunk(2)
    keys, values = (
        torch.cat([F.conv1d(layer(x).mT[..., :15], kernel, bias, stride=3, groups=WIDTH).mT, layer(x)[:, 15:]], 1)
        for layer, kernel, bias in zip((mixer.key, mixer.value), *kernels, strict=True)
    )
    query, keys, values = (
        part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (mixer.query(x[:, 15:]), keys, values)
    )
    mixed = F.scaled_dot_product_attention(query, keys, values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixer(x)[0][:, 15:], mixer.output(mixed))


def test_a_token_sees_its_span_and_nothing_before(loud):
    mixer = loud(Compressed(WIDTH, HEADS, span=7)).double()  # Three triples.
    x = draw(40)[0].requires_grad_()
    for t, first in ((38, 27), (37, 27), (36, 27), (35, 24)):
        (gradient,) = torch.autograd.grad(mixer(x)[0][:, t].sum(), x)
        reached = gradient.abs().amax((0, 2)).nonzero().flatten().tolist()
        assert reached == list(range(first, t + 1))


def test_the_span_is_rounded_up_to_triples():
    assert [mixers.build(f"compressed:{span}", WIDTH, HEADS).triples for span in (1, 3, 4, 60, 61)] == [1, 1, 2, 20, 21]
    for span in (0, -3):
        with pytest.raises(InvalidInput, match=f"a window of {span} tokens; expected at least 1"):
            Compressed(WIDTH, HEADS, span)


def test_the_state_is_a_third_of_its_window():
    # Keys and values in float32, a flag for each triple, two tokens, and how many of them count.
    assert state_bytes(Compressed(WIDTH, HEADS, span=60).initial_state(1)) == (20 + 2) * 2 * WIDTH * 4 + 20 + 8
