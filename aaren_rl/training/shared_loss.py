"""A loss whose gradient several processes average."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from aaren_rl.data.segment import Segment
from aaren_rl.model.trunk import TrunkState
from aaren_rl.training.objectives import Loss
from aaren_rl.training.processes import reaching


class SharedLoss(nn.Module):
    """An objective in DistributedDataParallel: the gradient of its loss is the mean over all processes.

    Args:
        objective: the same in all processes.
    """

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self._alone = _LossAlone(objective)
        self._together: DistributedDataParallel | None = None

    def forward(self, segment: Segment, state: TrunkState | None = None) -> Loss:
        """See `Objective.forward`; only the loss may be differentiated."""
        if self._together is None:
            self._together = _together(self._alone, self._leaves_out(segment, state))
        loss = self._together(segment, state)
        return self._alone.result._replace(loss=loss)

    @contextmanager
    def exchanging(self, last: bool) -> Iterator[None]:
        """Encloses a loss and its gradient.

        Args:
            last: exchanges the gradient that was summed up since the last exchange; False only adds to it.

        Raises:
            LostProcess: another process ended.
        """
        with reaching(), ExitStack() as stack:
            if self._together is not None and not last:
                stack.enter_context(self._together.no_sync())
            yield

    def _leaves_out(self, segment: Segment, state: TrunkState | None) -> bool:
        """True if a parameter has no part in the loss, which DistributedDataParallel would wait for."""
        device = segment.timesteps.device
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            gradients = torch.autograd.grad(self._alone(segment, state), parameters, allow_unused=True)
        return any(gradient is None for gradient in gradients)


class _LossAlone(nn.Module):
    """Returns the loss and keeps the rest: DistributedDataParallel waits for the gradient of all that is returned."""

    result: Loss

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, segment: Segment, state: TrunkState | None) -> Tensor:
        self.result = cast(Loss, self.objective(segment, state))
        return self.result.loss


def _together(loss: nn.Module, find_unused: bool) -> DistributedDataParallel:
    with warnings.catch_warnings():
        # torch 2.13 has another name for it, which earlier ones lack.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        return DistributedDataParallel(loss, broadcast_buffers=False, find_unused_parameters=find_unused)
