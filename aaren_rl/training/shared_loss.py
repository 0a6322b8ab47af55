"""A loss whose gradient several processes average."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from aaren_rl.data.segment import Segment
from aaren_rl.errors import InvalidInput
from aaren_rl.model.trunk import TrunkState
from aaren_rl.training.objectives import Loss, Objective, check_gradients, check_result
from aaren_rl.training.processes import Processes, Word, naming_lost_processes


class SharedLoss(nn.Module):
    """An objective in DistributedDataParallel: the gradient of its loss is the mean over all processes.

    Args:
        objective: the same in all processes.
        compiled: what computes it, the objective itself or its compiled form.
        carries: True if its state is carried on.
        processes: more than one.
    """

    def __init__(self, objective: Objective, compiled: nn.Module, carries: bool, processes: Processes) -> None:
        super().__init__()
        self._alone, self._processes = _LossAlone(objective, compiled, carries), processes
        self._together: DistributedDataParallel | None = None

    def forward(self, segment: Segment, state: TrunkState | None = None) -> Loss:
        """See `Objective.forward`; only the loss may be differentiated."""
        if self._together is None:
            # By any process: all of them have to exchange the same.
            _, leaves_out = self._processes.agree(Word.UPDATE, self._leaves_out(segment, state))
            self._together = _together(self._alone, leaves_out)
        loss = self._together(segment, state)
        return self._alone.result._replace(loss=loss)

    @contextmanager
    def exchanging(self, last: bool) -> Iterator[None]:
        """Encloses a loss and its gradient.

        Args:
            last: exchanges the gradient that was summed up since the last exchange; False only adds to it.

        Raises:
            InvalidInput: a network had no part in the loss, other than in the first update.
            LostProcess: another process ended.
        """
        with naming_lost_processes(), ExitStack() as stack:
            if self._together is not None and not last:
                stack.enter_context(self._together.no_sync())
            try:
                yield
            except RuntimeError as error:
                if "finished reduction in the prior iteration" not in str(error):
                    raise
                raise InvalidInput(
                    "a parameter had no part in the loss of an update, though it had in the first; with several "
                    "processes an objective must use the same networks in every update (add 0 times what it left out)"
                ) from error

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

    def __init__(self, objective: Objective, compiled: nn.Module, carries: bool) -> None:
        super().__init__()
        self.compiled = compiled
        # In a tuple, so that its parameters are not found twice.
        self._checked = (objective, carries)

    def forward(self, segment: Segment, state: TrunkState | None) -> Tensor:
        objective, carries = self._checked
        result: Loss = self.compiled(segment, state)
        check_result(result, objective, carries)
        check_gradients(result.loss, objective)
        self.result = result
        return result.loss


def _together(loss: nn.Module, find_unused: bool) -> DistributedDataParallel:
    with warnings.catch_warnings():
        # torch 2.13 has another name for it, which earlier ones lack.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        return DistributedDataParallel(loss, broadcast_buffers=False, find_unused_parameters=find_unused)
