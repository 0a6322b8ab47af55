"""A perceptron over time, one channel at a time."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.registry import register
from aaren_rl.mixers.base.sliding_window import SlidingWindow


@register("mlp-mixer")
class MLPMixer(SlidingWindow):
    """Token mixing (Tolstikhin et al. 2021, "MLP-Mixer", arXiv 2105.01601, section 2), causal.

    ``o_{t,c} = w_2 . gelu(W_1 (x_{t-span+1,c}, ..., x_{t,c}))`` (biases left out) for each channel c, with the same
    weights for all channels. This is the source's perceptron on a window that ends with the token. It keeps only the
    last output, so W_2 has one row, and weights belong to distances into the past. Missing tokens are zeros. The
    agent's blocks supply the norm, the residual connection and the channel mixing. As in the source, the second layer
    writes to the residual stream without a projection, so this mixer is far smaller than attention.

    Memory: window, `span - 1` tokens. Training keeps 40 numbers for each number of a token: batches of whole episodes
    take far more memory than with other mixers.

    Args:
        width: size of a token.
        heads: checked, otherwise without effect: every channel is mixed alone.
        span: tokens of the window, the current one included.
    """

    capability = Capability(
        source="Tolstikhin et al. 2021, section 2",
        differs="a window that ends with each token; only its last output",
        parallel="40 T n d",
        step="40 n d",
        sees="the last {n}",
    )
    hidden_size: ClassVar[int] = 40
    """Hidden units: twice the usual window, as in the source's Base/16 (384 for 196 tokens)."""

    def __init__(self, width: int, heads: int, span: int = 20) -> None:
        super().__init__(width, heads, span, width)
        # The newest token last.
        self.hidden = nn.Linear(span, self.hidden_size)
        self.output = nn.Linear(self.hidden_size, 1)

    def remember(self, x: Tensor) -> Tensor:
        """See `SlidingWindow.remember`; an entry is the token."""
        return x

    def mix(self, x: Tensor, past: Tensor, seen: Tensor) -> Tensor:
        """See `SlidingWindow.mix`."""
        windows, _ = self.windows(past, seen)
        return self.output(F.gelu(self.hidden(windows.transpose(2, 3)))).squeeze(-1)  # type: ignore[no-any-return]
