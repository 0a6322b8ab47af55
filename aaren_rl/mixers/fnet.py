"""Fourier transforms in place of attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.registry import register
from aaren_rl.mixers.base.sliding_window import SlidingWindow


@register("fnet")
class FNet(SlidingWindow):
    """Fourier mixing (Lee-Thorp et al. 2021, "FNet", arXiv 2105.03824, section 3.2), causal, and a projection.

    In the source, position k of a sequence takes the real part of frequency k of ``F_time(F_hidden(x))``, which needs
    the end of the sequence. Here ``z = F_hidden(x)`` is the same. Channel c reads one frequency, ``f = c mod span``, of
    the last `span` tokens by age: ``o_{t,c} = Re(sum_a z_{t-a,c} exp(-2 pi i f a / span))``, with 0 for missing tokens.
    This is a causal convolution with fixed Fourier filters, and another function than the source's: here a token reads
    a frequency per channel, there a position reads one frequency in all channels. Division by sqrt(width) and
    sqrt(span) makes both transforms orthonormal; the source leaves them large and norms their sum with the tokens.

    Mixing has no parameters. The projection, which the source lacks, writes to the residual stream as in other mixers.
    Without it, a block would add vectors as large as the tokens from the start, with frequencies in place of channels.
    Memory: window, the complex z of `span - 1` tokens.

    Args:
        width: size of a token.
        heads: checked, otherwise without effect: the source has no heads.
        span: tokens of the window, the current one included.
    """

    capability = Capability(
        source="Lee-Thorp et al. 2021, section 3.2",
        differs="each channel reads one frequency of the window, not each position one of the sequence; a projection",
        parallel="T (n + 128 + d) d",
        step="(n + d) d",
        sees="the last {n}",
    )

    hidden_waves: Tensor
    time_waves: Tensor

    def __init__(self, width: int, heads: int, span: int = 20) -> None:
        super().__init__(width, heads, span, 2 * width)
        channel, position = torch.arange(width), torch.arange(span)
        # Real matrices, as in the source for short sequences: not every exported graph has complex numbers. They are
        # float64 whatever the parameters are, so that a model in float64 is exact.
        hidden = _angles(channel, channel, width)
        waves = torch.cat([hidden.cos(), -hidden.sin()], 1) / math.sqrt(width)
        self.register_buffer("hidden_waves", waves, persistent=False)
        time = _angles(position, channel % span, span)
        self.register_buffer("time_waves", torch.stack([time.cos(), time.sin()]), persistent=False)
        self.output = nn.Linear(width, width)

    def remember(self, x: Tensor) -> Tensor:
        """See `SlidingWindow.remember`; an entry is the transform over channels, real part, then imaginary part."""
        return x @ self.hidden_waves.to(x.dtype)

    def mix(self, x: Tensor, past: Tensor, seen: Tensor) -> Tensor:
        """See `SlidingWindow.mix`."""
        position = torch.arange(past.shape[1], device=past.device) % self.span
        cos, sin = self.time_waves.to(past.dtype)[:, position]
        real, imaginary = past.chunk(2, -1)
        # Each entry is rotated by its position, and the sum back by the token's: together, by the age.
        rotated = torch.cat([real * cos - imaginary * sin, real * sin + imaginary * cos], -1)
        real, imaginary = (seen.to(rotated.dtype) @ rotated).chunk(2, -1)
        cos, sin = cos[self.span - 1 :], sin[self.span - 1 :]
        return self.output((real * cos + imaginary * sin) / math.sqrt(self.span))  # type: ignore[no-any-return]


def _angles(position: Tensor, frequency: Tensor, number: int) -> Tensor:
    """Angles of a discrete Fourier transform of `number` points, (positions, frequencies) in float64."""
    return (position.unsqueeze(1) * frequency % number).double() * (2 * math.pi / number)
