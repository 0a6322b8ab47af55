"""Softmax attention to the own block of tokens and to a soft permutation of those before it."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.base.buckets import group, places, seen, still_live
from aaren_rl.mixers.base.chunkwise import Bounded, checked_span, latest, pick
from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.registry import register

SIZE = 5
"""Tokens of a block: a window of 20 tokens is four of them."""

LOW = -1e30
"""The logarithm of what is no part of the matrix: finite, so that no gradient is NaN."""


class SinkhornState(NamedTuple):
    """What is remembered, the newest last.

    Attributes:
        blocks: keys and values of the last complete blocks, (batch, blocks, block size, 2 width).
        sums: of their tokens, (batch, blocks, width).
        live: (batch, blocks) bool, False before the first block of the episode.
        recent: keys, values and tokens of the last tokens, (batch, block size - 1, 3 width).
        begun: how many of them are of the block under way, (batch,).
        weights: of the blocks in the last row of the matrix, by age, (batch, heads, blocks).
        columns: logarithms of the sums of the columns up to that row, (batch, heads, rounds, blocks).
    """

    blocks: Tensor
    sums: Tensor
    live: Tensor
    recent: Tensor
    begun: Tensor
    weights: Tensor
    columns: Tensor


@register("sinkhorn")
class Sinkhorn(Bounded):
    """Sparse Sinkhorn attention with causal balancing (Tay et al. 2020, "Sparse Sinkhorn Attention", arXiv 2002.11296).

    Tokens lie in blocks, counted from the start of the episode. A token attends by softmax to its own block up to
    itself and to one sorted block: position by position the sum of the keys and values of earlier blocks j, weighted by
    ``S_ij`` for the block i of the token; in the first block to its own alone. A network scores the blocks,
    ``R_i = relu(W_2 relu(W_1 s_i + b_1) + b_2)``, and ``S`` is ``exp(R)`` after two rounds in each of which every row
    is divided by its sum, and every entry by the sum of its column up to its row, which is the causal balancing. All
    rows of a sequence are balanced at once, by one shifted sum per age of a block.

    The source sorts all earlier blocks, and ``s_i`` is the sum of all tokens up to the first one of block i. Here a row
    chooses among the last few complete blocks, scored by their age and not by their number in the sequence, and ``s_i``
    is the sum of the tokens of these and of the first one of block i: what of the source's sum is still in the state.
    At the end rows are divided by their sums once more, so that a sorted block is a weighted mean. The source's Gumbel
    noise and temperature are left out. Each head sorts on its own.

    Causal balancing itself favours the newest block: the sum of its column up to its first row is that entry alone, so
    that it weighs 1 after each round. With ever more rounds nothing else is left.

    Memory: window, keys and values of the last blocks and of the one under way, and the running sums.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        span: tokens of the blocks that are sorted; rounded up to whole blocks of 5.

    Raises:
        InvalidInput: the width is not a multiple of the heads, or span is below 1.
    """

    capability = Capability(
        source="Tay et al. 2020, sections on causal sorting and balancing",
        differs="sorts the last blocks, by age, not all; rows are balanced last; no noise",
        parallel="T (n + 256) d",
        step="n d",
        sees="its block of 5 and the blocks of {n} before",
    )
    rounds: ClassVar[int] = 2
    """Of balancing; each leaves less beside the newest block."""

    def __init__(self, width: int, heads: int, span: int = 20) -> None:
        super().__init__(width, heads)
        self.blocks = -(-checked_span(span) // SIZE)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.summary = nn.Linear(width, width)
        self.score = nn.Linear(width, heads * self.blocks)
        self.output = nn.Linear(width, width)

    def initial_state(self, batch_size: int) -> SinkhornState:
        """Nothing remembered."""
        zeros, width = self.key.weight.new_zeros, self.width
        live = torch.zeros(batch_size, self.blocks, dtype=torch.bool, device=self.key.weight.device)
        return SinkhornState(
            zeros(batch_size, self.blocks, SIZE, 2 * width),
            zeros(batch_size, self.blocks, width),
            live,
            zeros(batch_size, SIZE - 1, 3 * width),
            live.new_zeros(batch_size, dtype=torch.long),
            zeros(batch_size, self.heads, self.blocks),
            zeros(batch_size, self.heads, self.rounds, self.blocks),
        )

    def run(
        self, x: Tensor, state: SinkhornState, episode: Tensor, count: Tensor | None
    ) -> tuple[Tensor, SinkhornState]:
        """See `Bounded.run`."""
        tokens = torch.cat([self.key(x), self.value(x), x], -1)
        groups = group(state.recent, state.begun, tokens, episode, count, SIZE)
        attended, summed = torch.split(groups.members, [2 * self.width, self.width], -1)
        blocks, sums = torch.cat([state.blocks, attended], 1), torch.cat([state.sums, summed.sum(2)], 1)
        sees = seen(groups, state.live, episode)
        sorts = sees.any(2)

        # A row of the matrix for every block that begins here and has others before it.
        begins = ((groups.place == 0) & sorts).long()
        first = places(begins, SIZE)
        before = groups.before.gather(1, first)
        candidate = pick(sees, first)
        ages = torch.arange(1, self.blocks + 1, device=x.device)
        chosen = candidate.gather(2, before.unsqueeze(2) + self.blocks - ages)
        summary = pick(x, first) + candidate.to(sums.dtype) @ sums
        scores = F.relu(self.score(F.relu(self.summary(summary))))
        weights, columns = self.balance(
            torch.unflatten(scores, -1, (self.heads, self.blocks)), chosen.unsqueeze(2), state.columns
        )

        # The row under way at the start of these tokens comes first.
        weights = torch.cat([state.weights.unsqueeze(1), weights], 1)
        columns = torch.cat([state.columns.unsqueeze(1), columns], 1)
        keys, values = self._sorted(weights, F.pad(before, (1, 0)), blocks)
        own_keys, own_values, _ = torch.split(groups.tokens, self.width, -1)
        row = torch.arange(weights.shape[1], device=x.device)
        in_row = (begins.cumsum(1).unsqueeze(2) == row) & sorts.unsqueeze(2)
        mixed = F.scaled_dot_product_attention(
            self._split_heads(self.query(x)),
            torch.cat([keys, self._split_heads(own_keys)], 2),
            torch.cat([values, self._split_heads(own_values)], 2),
            attn_mask=torch.cat([in_row.repeat_interleave(SIZE, 2), groups.own], 2).unsqueeze(1),
        )

        real = torch.full_like(groups.begun, x.shape[1]) if count is None else count
        at = torch.arange(x.shape[1], device=x.device)
        last = (begins * (at < real.unsqueeze(1))).sum(1, keepdim=True)
        number = attended.shape[1]
        after = SinkhornState(
            latest(blocks, self.blocks, groups.complete, number),
            latest(sums, self.blocks, groups.complete, number),
            still_live(groups, state.live, episode),
            groups.recent,
            groups.begun,
            pick(weights, last).squeeze(1),
            pick(columns, last).squeeze(1),
        )
        return self.output(self._join_heads(mixed)), after

    def balance(self, scores: Tensor, chosen: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """The matrix of the scores, by the age of a block and not by its number: entry (i, a) is that of block i - a.

        Args:
            scores: R, (batch, rows, heads, blocks); each row follows on the one before, of the block before.
            chosen: (batch, rows, 1, blocks) bool, which entries there are.
            before: logarithms of the sums of the columns up to the row before the first, for each round,
                (batch, heads, rounds, blocks).

        Returns:
            S like the scores, and the sums of the columns up to each row, (batch, rows, heads, rounds, blocks).
        """
        matrix = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(~chosen, LOW)
        sums = []
        for turn in range(self.rounds):
            matrix = (matrix - matrix.logsumexp(-1, keepdim=True)).masked_fill(~chosen, LOW)
            column = [matrix[..., 0]]
            for age in range(1, self.blocks):
                # A column is one block: a row further down it is one older.
                earlier = torch.cat([before[:, None, :, turn, age - 1].to(matrix), column[-1][:, :-1]], 1)
                column.append(torch.stack([earlier, matrix[..., age]]).logsumexp(0))
            sums.append(torch.stack(column, -1))
            matrix = (matrix - sums[-1]).masked_fill(~chosen, LOW)
        return matrix.softmax(-1).masked_fill(~chosen, 0.0), torch.stack(sums, -2)

    def _sorted(self, weights: Tensor, before: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the sorted blocks of all rows.

        Args:
            weights: (batch, rows, heads, blocks), by age.
            before: how many of the blocks completed here each row has before it, (batch, rows).
            blocks: keys and values of blocks, remembered and completed here, (batch, number, SIZE, 2 width).

        Returns:
            Twice (batch, heads, rows * SIZE, head width).
        """
        age = before.unsqueeze(2) + self.blocks - torch.arange(blocks.shape[1], device=blocks.device)
        inside = (age >= 1) & (age <= self.blocks)
        by_age = (age - 1).clamp(0, self.blocks - 1).unsqueeze(2).expand(-1, -1, self.heads, -1)
        matrix = weights.gather(-1, by_age).masked_fill(~inside.unsqueeze(2), 0.0)
        parts = torch.unflatten(blocks, -1, (2, self.heads, self.head_width))
        mixed = torch.einsum("brhn,bnpchw->cbhrpw", matrix.to(parts.dtype), parts)
        keys, values = mixed.flatten(3, 4).unbind(0)
        return keys, values
