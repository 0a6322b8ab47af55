"""The option `conv` of every mixer: a short causal convolution of the tokens in front of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.errors import InvalidInput
from aaren_rl.mixers.base.contract import Mixer
from aaren_rl.mixers.base.convolution_stepper import ConvolutionStepper
from aaren_rl.mixers.base.state import State

MOST_TAPS = 64
"""Largest number of taps; a longer memory is the mixer's task."""


class ConvolvedState(NamedTuple):
    """State of a convolution and of the mixer behind it.

    Attributes:
        past: the last tokens, (batch, taps - 1, width), the newest last; zeros before the first of an episode.
        mixer: state of the mixer.
    """

    past: Tensor
    mixer: State


class ShortConvolution(Mixer):
    """Adds to each token a weighted sum of the last tokens, feature by feature, and mixes the result.

    ``x'_t = x_t + sum_{k<taps} w_k * x_{t-k}``, with a weight for each feature and k. Today's recurrent layers have
    such a depthwise convolution of 4 taps (Gu and Dao 2023, arXiv 2312.00752, section 3.4), followed by an activation.
    Here the token itself is added, and there is no activation. A mixer behind it can compare neighbours. Alone it does
    not reach beyond its taps.

    Args:
        mixer: mixer of the convolved tokens.
        taps: tokens of the convolution, the current one included.

    Raises:
        InvalidInput: taps is below 2 or above `MOST_TAPS`.
    """

    def __init__(self, mixer: Mixer, taps: int) -> None:
        super().__init__(mixer.width, mixer.heads)
        if not 2 <= taps <= MOST_TAPS:
            raise InvalidInput(f"conv is {taps}; expected 0 for no convolution, or 2 to {MOST_TAPS} taps")
        self.mixer, self.taps = mixer, taps
        # As torch's Conv1d starts.
        self.weight = nn.Parameter(torch.empty(taps, mixer.width).uniform_(-(taps**-0.5), taps**-0.5))
        self.memory, self.cuda_graph = mixer.memory, mixer.cuda_graph  # type: ignore[misc]

    def initial_state(self, batch_size: int) -> ConvolvedState:
        """No tokens, and the mixer's initial state."""
        return ConvolvedState(self._no_tokens(batch_size), self.mixer.initial_state(batch_size))

    def reset_state(self, state: ConvolvedState, rows: Tensor) -> ConvolvedState:
        """See `Mixer.reset_state`."""
        past = state.past.masked_fill(rows.view(-1, 1, 1), 0.0)
        return ConvolvedState(past, self.mixer.reset_state(state.mixer, rows))

    def forward(
        self,
        x: Tensor,
        state: ConvolvedState | None = None,
        reset: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> tuple[Tensor, ConvolvedState]:
        """See `Mixer.forward`; the state is a `ConvolvedState`."""
        before = self._no_tokens(x.shape[0]) if state is None else state.past
        convolved, past = self._convolve(x, before.to(x.dtype), reset, valid)
        mixed, after = self.mixer(convolved, None if state is None else state.mixer, reset, valid)
        return mixed, ConvolvedState(past, after)

    def step(self, x_t: Tensor, state: ConvolvedState) -> tuple[Tensor, ConvolvedState]:
        """See `Mixer.step`."""
        entries = torch.cat([state.past.to(x_t.dtype), x_t.unsqueeze(1)], 1)  # (batch, taps, width)
        convolved = x_t + (entries * self.weight.flip(0)).sum(1)
        mixed, after = self.mixer.step(convolved, state.mixer)
        return mixed, ConvolvedState(entries[:, 1:], after)

    def stepper(self, norm: nn.LayerNorm, tokens: int, outputs: int) -> ConvolutionStepper:
        """See `Mixer.stepper`."""
        return ConvolutionStepper(self.weight, self.mixer, norm, tokens, outputs)

    def _no_tokens(self, batch_size: int) -> Tensor:
        return self.weight.new_zeros(batch_size, self.taps - 1, self.width)

    def _convolve(self, x: Tensor, past: Tensor, reset: Tensor | None, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Convolved tokens (batch, time, width), and the last tokens of each row, (batch, taps - 1, width).

        Tokens are found by their number among the real ones. For 3 taps, with `.` for padding:

            entry      0   1 | 2  3  4  5
            token      past  | a  .  b  c
            number    -1   0 | 1     2  3
        """
        earlier, width = self.taps - 1, self.width
        if valid is not None:
            x = x.masked_fill(~valid.unsqueeze(-1), 0.0)
        batch, time = x.shape[:2]
        entry, number = _entries_by_number(x, valid, earlier)
        episode = torch.zeros_like(number) if reset is None else reset.cumsum(1)
        # The past belongs to episode 0 of the row.
        episodes = F.pad(episode, (earlier, 0))
        entries = torch.cat([past, x], 1)  # (batch, earlier + time, width)
        # One row of zeros stands for all tokens of other episodes.
        rows = torch.cat([entries.reshape(-1, width), x.new_zeros(1, width)])
        first = torch.arange(batch, device=x.device).unsqueeze(1) * (earlier + time)

        def pick(numbers: Tensor, of_episode: Tensor) -> Tensor:
            """Tokens of the numbers given, less 1 - earlier; zeros where they belong to another episode."""
            index = entry.gather(1, numbers)
            same = episodes.gather(1, index) == of_episode
            # Rows by index_select are faster than a gather of single numbers.
            chosen = torch.where(same, first + index, batch * (earlier + time))
            return rows.index_select(0, chosen.flatten()).view(*index.shape, width)

        convolved = x * (1 + self.weight[0])
        for age in range(1, self.taps):
            # Before the first real token, numbers point nowhere; what padding becomes has no meaning.
            numbers = (number + (earlier - 1 - age)).clamp(min=0)
            convolved = torch.addcmul(convolved, pick(numbers, episode), self.weight[age])
        return convolved, pick(number[:, -1:] + torch.arange(earlier, device=x.device), episode[:, -1:])


def _entries_by_number(x: Tensor, valid: Tensor | None, earlier: int) -> tuple[Tensor, Tensor]:
    """Place of the entry with each number, (batch, earlier + time), from number 1 - earlier on; numbers of all tokens.

    Padding has the number of the last real token before it.
    """
    batch, time = x.shape[:2]
    place = torch.arange(earlier + time, device=x.device).expand(batch, -1)
    if valid is None:
        return place, place[:, earlier:] - (earlier - 1)
    number = valid.cumsum(1)
    # Padding goes behind the real tokens, where no number points.
    target = torch.where(valid, number, number[:, -1:] + (~valid).cumsum(1)) + (earlier - 1)
    return place.scatter(1, target, place[:, earlier:]), number
