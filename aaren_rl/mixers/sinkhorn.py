"""Softmax attention to the window of a token and to a soft permutation of the windows before it."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.base.chunkwise import Chunkwise, checked_span, latest, pick
from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.registry import register
from aaren_rl.mixers.base.tumbling_window import (
    TumblingWindows,
    live_windows,
    marked_positions,
    tumbling_windows,
    visible_windows,
)

SIZE = 5
"""Tokens of a window; the usual span of 20 tokens is four windows."""

LOW = -1e30
"""Logarithm of a missing entry of the matrix: finite, so that no gradient is NaN."""


class SinkhornState(NamedTuple):
    """The last windows, the tokens of the unfinished one, and the last row of the matrix; the newest last.

    Attributes:
        windows: keys, then values, of the last completed windows, (batch, windows, SIZE, 2 width).
        sums: sum of the tokens of each, (batch, windows, width).
        live: (batch, windows) bool, False before the first window of the episode.
        recent: keys, values and tokens of the last tokens, (batch, SIZE - 1, 3 width).
        filled: how many of `recent` belong to the unfinished window, (batch,).
        weights: last row of the matrix, by age, (batch, heads, windows).
        columns: logarithms of the column sums up to that row, (batch, heads, rounds, windows).
    """

    windows: Tensor
    sums: Tensor
    live: Tensor
    recent: Tensor
    filled: Tensor
    weights: Tensor
    columns: Tensor


class Rows(NamedTuple):
    """Rows of the matrix: the last one of the state, then one for each window that starts in the chunk.

    Attributes:
        weights: by age, (batch, rows, heads, windows).
        columns: logarithms of the column sums up to each row, (batch, rows, heads, rounds, windows).
        before: windows that the chunk completes before each row, (batch, rows).
    """

    weights: Tensor
    columns: Tensor
    before: Tensor


@register("sinkhorn")
class Sinkhorn(Chunkwise):
    """Sparse Sinkhorn attention with causal balancing (Tay et al. 2020, "Sparse Sinkhorn Attention", arXiv 2002.11296).

    Tokens lie in windows of 5 (the source's blocks), counted from the start of the episode. A token attends by softmax
    to its window up to itself and to one sorted window: position by position, the sum of keys and values of earlier
    windows j with weights ``S_ij`` for its window i. In the first window it attends to its window alone. A network
    scores the windows, ``R_i = relu(W_2 relu(W_1 s_i + b_1) + b_2)``. Two rounds of causal balancing turn ``exp(R)``
    into ``S``: each divides every row by its sum, then every entry by the sum of its column up to its row.

    The source sorts all earlier windows, and ``s_i`` is the sum of all tokens up to the first one of window i. Here a
    row chooses among the last few completed windows, scored by their age, and ``s_i`` sums the tokens of these and the
    first one of window i. Finally, rows are divided by their sums once more: a sorted window is a weighted mean. The
    source's Gumbel noise and temperature are left out. Each head sorts separately.

    Causal balancing favours the newest window: its column has one entry up to its first row, which weighs 1 after each
    round. With many rounds nothing else would be left.

    Memory: window, keys and values of the last windows and of the unfinished one, and the column sums.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        span: tokens of the windows that are sorted; rounded up to whole windows of 5.

    Raises:
        InvalidInput: the width is not a multiple of the heads, or span is below 1.
    """

    capability = Capability(
        source="Tay et al. 2020, sections on causal sorting and balancing",
        differs="sorts the last windows, by age, not all; rows are balanced last; no noise",
        parallel="T (n + 256) d",
        step="n d",
        sees="its window of 5 and the windows of {n} before",
    )
    rounds: ClassVar[int] = 2
    """Rounds of balancing; each leaves less weight beside the newest window."""

    def __init__(self, width: int, heads: int, span: int = 20) -> None:
        super().__init__(width, heads)
        self.windows = -(-checked_span(span) // SIZE)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.summary = nn.Linear(width, width)
        self.score = nn.Linear(width, heads * self.windows)
        self.output = nn.Linear(width, width)

    def initial_state(self, batch_size: int) -> SinkhornState:
        """No tokens yet."""
        zeros, width = self.key.weight.new_zeros, self.width
        live = torch.zeros(batch_size, self.windows, dtype=torch.bool, device=self.key.weight.device)
        return SinkhornState(
            zeros(batch_size, self.windows, SIZE, 2 * width),
            zeros(batch_size, self.windows, width),
            live,
            zeros(batch_size, SIZE - 1, 3 * width),
            live.new_zeros(batch_size, dtype=torch.long),
            zeros(batch_size, self.heads, self.windows),
            zeros(batch_size, self.heads, self.rounds, self.windows),
        )

    def mix_chunk(
        self, x: Tensor, state: SinkhornState, episode: Tensor, count: Tensor | None
    ) -> tuple[Tensor, SinkhornState]:
        """See `Chunkwise.mix_chunk`."""
        # 1. Find the windows of the chunk, and those that each token sees.
        entries = torch.cat([self.key(x), self.value(x), x], -1)
        found = tumbling_windows(state.recent, state.filled, entries, episode, count, SIZE)
        attended, summed = torch.split(found.completed, [2 * self.width, self.width], -1)
        windows, sums = torch.cat([state.windows, attended], 1), torch.cat([state.sums, summed.sum(2)], 1)
        visible = visible_windows(found, state.live, episode)
        sorts = visible.any(2)
        # 2. Balance a row for each window that starts here and sees others.
        starts = ((found.position == 0) & sorts).long()
        rows = self._rows(x, state, found, visible, marked_positions(starts, SIZE), sums)
        # 3. Attend to the sorted window of the row and to the tokens of the window.
        row = torch.arange(rows.before.shape[1], device=x.device)
        in_row = (starts.cumsum(1).unsqueeze(2) == row) & sorts.unsqueeze(2)
        y = self._attend(x, found, self._sorted(rows, windows), in_row)
        # 4. Keep the last windows and the last row.
        real = torch.full_like(found.filled, x.shape[1]) if count is None else count
        at = torch.arange(x.shape[1], device=x.device)
        last = (starts * (at < real.unsqueeze(1))).sum(1, keepdim=True)
        number = attended.shape[1]
        after = SinkhornState(
            latest(windows, self.windows, found.completed_count, number),
            latest(sums, self.windows, found.completed_count, number),
            live_windows(found, state.live, episode),
            found.recent,
            found.filled,
            pick(rows.weights, last).squeeze(1),
            pick(rows.columns, last).squeeze(1),
        )
        return y, after

    def _rows(
        self, x: Tensor, state: SinkhornState, found: TumblingWindows, visible: Tensor, first: Tensor, sums: Tensor
    ) -> Rows:
        """Balances the rows of the windows whose first tokens are at `first`, (batch, number)."""
        before = found.completed_before.gather(1, first)
        candidate = pick(visible, first)
        ages = torch.arange(1, self.windows + 1, device=x.device)
        chosen = candidate.gather(2, before.unsqueeze(2) + self.windows - ages)
        summary = pick(x, first) + candidate.to(sums.dtype) @ sums
        scores = F.relu(self.score(F.relu(self.summary(summary))))
        weights, columns = self.balance(
            torch.unflatten(scores, -1, (self.heads, self.windows)), chosen.unsqueeze(2), state.columns
        )
        # The row of the unfinished window of the state comes first.
        return Rows(
            torch.cat([state.weights.unsqueeze(1), weights], 1),
            torch.cat([state.columns.unsqueeze(1), columns], 1),
            F.pad(before, (1, 0)),
        )

    def balance(self, scores: Tensor, chosen: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Balances the matrix of scores by age: entry (i, a) belongs to window i - a.

        All rows are balanced at once, by one shifted sum per age. For 3 sorted windows:

                     window 0  1  2  3              age 1  2  3
            row 1           x                           0
            row 2           x  x               ->       1  0          entries are numbers of windows
            row 3           x  x  x                     2  1  0
            row 4              x  x  x                  3  2  1

        Args:
            scores: R, (batch, rows, heads, windows). Successive rows belong to successive windows.
            chosen: mask of the entries that exist, (batch, rows, 1, windows) bool.
            before: logarithms of the column sums up to the row before the first, for each round,
                (batch, heads, rounds, windows).

        Returns:
            S, (batch, rows, heads, windows), and the logarithms of the column sums up to each row,
            (batch, rows, heads, rounds, windows).
        """
        matrix = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(~chosen, LOW)
        sums = []
        for turn in range(self.rounds):
            matrix = (matrix - matrix.logsumexp(-1, keepdim=True)).masked_fill(~chosen, LOW)
            column = [matrix[..., 0]]
            for age in range(1, self.windows):
                # One row further down, the same window is one older.
                earlier = torch.cat([before[:, None, :, turn, age - 1].to(matrix), column[-1][:, :-1]], 1)
                column.append(torch.stack([earlier, matrix[..., age]]).logsumexp(0))
            sums.append(torch.stack(column, -1))
            matrix = (matrix - sums[-1]).masked_fill(~chosen, LOW)
        return matrix.softmax(-1).masked_fill(~chosen, 0.0), torch.stack(sums, -2)

    def _sorted(self, rows: Rows, windows: Tensor) -> Tensor:
        """Keys and values of the sorted window of each row, (2, batch, heads, rows * SIZE, head width).

        Args:
            rows: rows of the matrix.
            windows: keys and values of the windows of the state and of the chunk, (batch, number, SIZE, 2 width).
        """
        age = rows.before.unsqueeze(2) + self.windows - torch.arange(windows.shape[1], device=windows.device)
        inside = (age >= 1) & (age <= self.windows)
        by_age = (age - 1).clamp(0, self.windows - 1).unsqueeze(2).expand(-1, -1, self.heads, -1)
        matrix = rows.weights.gather(-1, by_age).masked_fill(~inside.unsqueeze(2), 0.0)
        parts = torch.unflatten(windows, -1, (2, self.heads, self.head_width))
        mixed = torch.einsum("brhn,bnpchw->cbhrpw", matrix.to(parts.dtype), parts)
        return mixed.flatten(3, 4)

    def _attend(self, x: Tensor, found: TumblingWindows, sorted_windows: Tensor, in_row: Tensor) -> Tensor:
        """Attends to sorted windows and single tokens; `in_row` masks the row of each token, (batch, time, rows)."""
        keys, values = sorted_windows.unbind(0)
        own_keys, own_values, _ = torch.split(found.entries, self.width, -1)
        mixed = F.scaled_dot_product_attention(
            self._split_heads(self.query(x)),
            torch.cat([keys, self._split_heads(own_keys)], 2),
            torch.cat([values, self._split_heads(own_values)], 2),
            attn_mask=torch.cat([in_row.repeat_interleave(SIZE, 2), found.in_window], 2).unsqueeze(1),
        )
        return self.output(self._join_heads(mixed))  # type: ignore[no-any-return]
