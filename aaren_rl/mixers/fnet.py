"""Fourier transforms in place of attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.registry import register
from aaren_rl.mixers.base.sliding_window import Windowed


@register("fnet")
class FNet(Windowed):
    """Fourier mixing (Lee-Thorp et al. 2021, "FNet", arXiv 2105.03824, section 3.2), causal, and a projection.

    The source gives position k of a sequence the real part of frequency k of ``F_time(F_hidden(x))``, which takes a
    sequence that has an end. Here ``z = F_hidden(x)`` is the same, and channel c reads one frequency,
    ``f = c mod span``, of the transform of the last `span` tokens counted by age:
    ``o_{t,c} = Re(sum_a z_{t-a,c} exp(-2 pi i f a / span))``, with 0 where the episode has no token of that age. That
    is a causal convolution with fixed Fourier filters, and another function than the source's: a token reads many
    frequencies, one in each channel, where there a position reads one, in all channels. The first transform is divided
    by sqrt(width) and the second by sqrt(span), so that both are orthonormal; the source leaves them large and norms
    their sum with the tokens.

    Mixing has no parameters. The projection, which the source lacks, writes to the residual stream as in all other
    mixers: without it what is added would be as large as the tokens from the start, with frequencies in place of
    channels. Memory: window, the complex z of `span - 1` tokens.

    Args:
        width: size of a token.
        heads: checked as everywhere, otherwise without effect: the source has no heads.
        span: tokens of the window, the current one included.
    """

    capability = Capability(
        source="Lee-Thorp et al. 2021, section 3.2",
        differs="a channel reads one frequency of the last tokens, not a position one of the sequence; a projection",
        parallel="T (n + 128 + d) d",
        step="(n + d) d",
        sees="the last {n}",
    )

    hidden_waves: Tensor
    time_waves: Tensor

    def __init__(self, width: int, heads: int, span: int = 20) -> None:
        super().__init__(width, heads, span, 2 * width)
        channel, place = torch.arange(width), torch.arange(span)
        # As matrices, as in the source for short sequences, since not every exported graph has complex numbers. In
        # float64 whatever the parameters are, so that a model in float64 is exact.
        hidden = _angles(channel, channel, width)
        waves = torch.cat([hidden.cos(), -hidden.sin()], 1) / math.sqrt(width)
        self.register_buffer("hidden_waves", waves, persistent=False)
        time = _angles(place, channel % span, span)
        self.register_buffer("time_waves", torch.stack([time.cos(), time.sin()]), persistent=False)
        self.output = nn.Linear(width, width)

    def remember(self, x: Tensor) -> Tensor:
        """See `Windowed.remember`: real and imaginary part of the transform along the hidden dimension."""
        return x @ self.hidden_waves.to(x.dtype)

    def mix(self, x: Tensor, past: Tensor, seen: Tensor) -> Tensor:
        """See `Windowed.mix`."""
        place = torch.arange(past.shape[1], device=past.device) % self.span
        cos, sin = self.time_waves.to(past.dtype)[:, place]
        real, imaginary = past.chunk(2, -1)
        # Each entry is turned by its place, and the sum back by the token's: together, by the age.
        turned = torch.cat([real * cos - imaginary * sin, real * sin + imaginary * cos], -1)
        real, imaginary = (seen.to(turned.dtype) @ turned).chunk(2, -1)
        cos, sin = cos[self.span - 1 :], sin[self.span - 1 :]
        return self.output((real * cos + imaginary * sin) / math.sqrt(self.span))  # type: ignore[no-any-return]


def _angles(place: Tensor, frequency: Tensor, number: int) -> Tensor:
    """Of the waves of a discrete Fourier transform, (places, frequencies) in float64."""
    return (place.unsqueeze(1) * frequency % number).double() * (2 * math.pi / number)
