"""Hugging Face's Trainer: a decision model and windows of episodes in the form that it takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aaren_rl.data.context import Context
from aaren_rl.data.sampler import Sampler
from aaren_rl.data.segment import Segment
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.errors import InvalidInput
from aaren_rl.model import DecisionModel


class TrainerModel(nn.Module):
    """A decision model whose forward is its loss, as `transformers.Trainer` takes it.

    The model that it trains is `model`, and an agent acts with that. Trainer keeps no average of the weights.

    Args:
        model: to train.
    """

    # Otherwise Trainer would leave the division by the accumulated batches to the model.
    accepts_loss_kwargs = False

    def __init__(self, model: DecisionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, return_loss: bool = True, **fields: Any) -> dict[str, Tensor]:
        """The loss of imitation, of the segment that the fields make (see `aaren_rl.data.segment.Segment`).

        Args:
            return_loss: True. Trainer looks for the name, to know that evaluations have a loss.
            **fields: of the segment.
        """
        if not return_loss:
            raise InvalidInput("return_loss is False; a decision model under Trainer gives its loss alone")
        return {"loss": self.model.loss(Segment(**fields))[0]}


class Windows:
    """Cuts windows out of episodes: the data collator of `transformers.Trainer`.

    What it collates are numbers of steps, at which windows start; `starts` gives them, as a dataset.

        windows = Windows(trajectories, context=20)
        trainer = Trainer(TrainerModel(model), arguments, windows, windows.starts())

    Args:
        trajectories: the data.
        context: steps of a window, or "10+20" for 20 steps after a burn-in of 10 (`aaren_rl.data.context.Context`).

    Raises:
        InvalidInput: the context is none of windows.
    """

    def __init__(self, trajectories: Trajectories, context: int | str = 20) -> None:
        if Context.parse(context).mode != "window":
            raise InvalidInput(f"context is {context}; expected steps of a window, as 20 or 10+20")
        self._offsets = trajectories.offsets
        self._sampler = Sampler(trajectories, np.arange(trajectories.episodes), 1, context)

    def starts(self, episodes: Iterable[int] | None = None) -> list[int]:
        """Numbers of all steps of episodes, by their places in the trajectories.

        Args:
            episodes: their numbers, as those that `aaren_rl.data.sampler.hold_out` gives; None for all.
        """
        chosen = range(len(self._offsets) - 1) if episodes is None else episodes
        return [step for one in chosen for step in range(self._offsets[one], self._offsets[one + 1])]

    def __call__(self, starts: Sequence[int]) -> dict[str, Any]:
        """A batch: the fields of the segment whose rows are the windows that start at these steps."""
        segment = self._sampler.starting_at(torch.as_tensor(starts))
        return {name: part for name, part in segment._asdict().items() if part is not None}
