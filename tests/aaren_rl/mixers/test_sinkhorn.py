"""Sinkhorn attention against its formula: whole matrices of each episode, divided entry by entry."""

import pytest
import torch
from helpers import episode_by_episode

from aaren_rl import mixers
from aaren_rl.errors import InvalidInput
from aaren_rl.mixers import Sinkhorn
from aaren_rl.mixers.sinkhorn import SIZE

WIDTH, HEADS = 6, 2


def draw(time, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, time, WIDTH, generator=generator, dtype=torch.float64)
    reset = torch.rand(batch, time, generator=generator) < 0.02
    valid = torch.rand(batch, time, generator=generator) < 0.9
    # Some episodes are long, and some end with their first token.
    reset[0], reset[1, 5:8] = False, True
    return x, reset, valid


def matrix(scores, rounds):
    """Causal balancing of (i, j) -> score, by dividing."""
    entries = {place: score.exp() for place, score in scores.items()}

    def by_row(entries):
        return {(i, j): e / sum(entries[k] for k in entries if k[0] == i) for (i, j), e in entries.items()}

    def by_column(entries):
        return {
            (i, j): e / sum(entries[k] for k in entries if k[1] == j and k[0] <= i) for (i, j), e in entries.items()
        }

    for _ in range(rounds):
        entries = by_column(by_row(entries))
    return by_row(entries)


def attend(query, keys, values):
    """One head of one token."""
    scores = torch.stack([query @ key for key in keys]) / query.shape[0] ** 0.5
    return scores.exp() @ torch.stack(values) / scores.exp().sum()


def mixed_episode(mixer, x, number):
    """The tokens (time, WIDTH) of one episode, each window choosing among `number` before it."""
    keys, values, queries = mixer.key(x), mixer.value(x), mixer.query(x)
    scores = [{} for _ in range(HEADS)]
    for i in range(1, -(-x.shape[0] // SIZE)):
        oldest = max(0, i - number)
        total = x[oldest * SIZE : i * SIZE + 1].sum(0)
        given = mixer.score(mixer.summary(total).relu()).relu()
        for head in range(HEADS):
            for j in range(oldest, i):
                scores[head][i, j] = given[head * number + i - j - 1]
    outputs = []
    balanced = [matrix(of_head, mixer.rounds) for of_head in scores]
    for t in range(x.shape[0]):
        i, heads = t // SIZE, []
        for head, own in enumerate(torch.arange(WIDTH).chunk(HEADS)):
            seen = []
            for entries in (keys[:, own], values[:, own]):
                chosen = [(j, weight) for (row, j), weight in balanced[head].items() if row == i]
                window = [sum(weight * entries[j * SIZE + p] for j, weight in chosen) for p in range(SIZE if i else 0)]
                seen.append(window + list(entries[i * SIZE : t + 1]))
            heads.append(attend(queries[t, own], *seen))
        outputs.append(mixer.output(torch.cat(heads)))
    return outputs


def reference(mixer, x, reset, valid, number):
    return episode_by_episode(lambda episode: mixed_episode(mixer, episode, number), x, reset, valid)


@pytest.mark.parametrize(("span", "number", "time"), [(3, 1, 40), (11, 3, 70), (20, 4, 136)])
def test_is_the_formula_with_resets_and_padding(loud, assert_is_formula, span, number, time):
    mixer = loud(Sinkhorn(WIDTH, HEADS, span)).double()
    x, reset, valid = draw(time)
    assert_is_formula(
        mixer,
        lambda x: reference(mixer, x, reset, valid, number),
        x,
        reset,
        valid,
        # Softmax ignores a shift of all scores.
        without=mixer.key.bias,
        # With one window to choose there is nothing to score.
        may_be_silent=number == 1,
    )


def balanced(rows, rounds, scores, number=None):
    """Of the mixer: the square matrix of scores by window, each row choosing among those before it."""

    class Balancing(Sinkhorn):
        pass

    Balancing.rounds = rounds
    mixer = Balancing(WIDTH, 1, SIZE * (number or rows)).double()
    age = torch.arange(1, mixer.windows + 1)
    row = torch.arange(1, rows + 1).unsqueeze(1)
    chosen = (row >= age).view(1, rows, 1, -1)
    by_age = scores[row - 1, (row - age).clamp(0)].view(1, rows, 1, -1)
    weights, columns = mixer.balance(by_age, chosen, mixer.initial_state(1).columns)
    square = torch.zeros(rows, rows, dtype=torch.float64)
    for i in range(1, rows + 1):
        for a in range(1, min(i, mixer.windows) + 1):
            square[i - 1, i - a] = weights[0, i - 1, 0, a - 1]
    return square, columns


def test_the_last_row_after_one_round_is_that_of_plain_sinkhorn():
    """The columns of the last row are whole ones."""
    scores = torch.randn(6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    plain = scores.exp().tril()
    plain = plain / plain.sum(1, keepdim=True)
    plain = plain / plain.sum(0, keepdim=True)
    plain = plain / plain.sum(1, keepdim=True)
    torch.testing.assert_close(balanced(6, 1, scores)[0][-1], plain[-1])


@pytest.mark.parametrize("number", [2, 4, 8])
def test_with_many_rounds_rows_and_columns_sum_to_one(number):
    scores = torch.randn(8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    squares = [balanced(8, rounds, scores, number)[0] for rounds in (1, 3, 30, 300)]
    for square in squares:
        torch.testing.assert_close(square.sum(1), torch.ones(8, dtype=torch.float64))
    errors = [(square.sum(0) - 1).abs().max().item() for square in squares]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.2
    assert errors[-1] < 0.01


def test_scores_move_weight_in_their_row_and_the_next():
    scores = torch.zeros(5, 5, dtype=torch.float64)
    even, _ = balanced(5, Sinkhorn.rounds, scores, 4)
    scores[3, 0] = 5.0
    one, _ = balanced(5, Sinkhorn.rounds, scores, 4)
    torch.testing.assert_close(one[:3], even[:3])
    assert one[3, 0] > 2.5 * even[3, 0]
    # Its column has been used up for row 4, which no longer can choose window 0 itself.
    assert (one[4] - even[4]).abs().max() > 1e-3


def test_scores_of_any_size_give_no_nan():
    scores = 1e6 * torch.randn(9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores.requires_grad_()
    square, columns = balanced(9, 3, scores, 4)
    assert square.isfinite().all()
    assert columns.isfinite().all()
    square.square().sum().backward()
    assert scores.grad.isfinite().all()


def test_the_span_is_rounded_up_to_windows():
    assert [mixers.build(f"sinkhorn:{span}", WIDTH, HEADS).windows for span in (1, 5, 6, 20, 21)] == [1, 1, 2, 4, 5]
    for span in (0, -3):
        with pytest.raises(InvalidInput, match=f"a window of {span} tokens; expected at least 1"):
            Sinkhorn(WIDTH, HEADS, span)
