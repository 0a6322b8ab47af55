"""The processes that train one model together, as torchrun starts them."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum

import torch
import torch.distributed as dist
from torch import Tensor

from aaren_rl.errors import AarenError, InvalidInput

TIMEOUT = timedelta(days=2)
"""Longest wait for another process. Long, since the first one evaluates while the others wait; torchrun ends the wait
where a process dies."""


class LostProcess(AarenError):
    """Another process of the training ended, or cannot be reached."""


class Word(IntEnum):
    """What the first process has all of them do next."""

    UPDATE = 0
    SAVE = 1
    END = 2


@dataclass(frozen=True)
class Processes:
    """The processes of a training, seen from one of them.

    All methods but `share` are collective: every process calls them, in the same order. For a single process they do
    nothing.

    Args:
        rank: number of this process; the first, 0, leads.
        count: of all processes.
        local_rank: number of this process on its machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """True for the process that logs, evaluates and saves."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """Rows of a batch that this process trains on; they differ by at most one between processes.

        Raises:
            InvalidInput: there are fewer rows than processes.
        """
        if rows < self.count:
            raise InvalidInput(f"batches of {rows} rows for {self.count} processes; expected at least one row for each")
        return slice(rows * self.rank // self.count, rows * (self.rank + 1) // self.count)

    def agree(self, word: Word, stop: bool = False) -> tuple[Word, bool]:
        """Agrees on the next step.

        Args:
            word: of the first process; others pass UPDATE.
            stop: this process was asked to stop.

        Returns:
            The word of the first process, and whether any process was asked to stop.

        Raises:
            LostProcess: another process ended.
        """
        if self.count == 1:
            return word, stop
        wishes = torch.tensor([int(word), int(stop)])
        with reaching():
            dist.all_reduce(wishes, dist.ReduceOp.MAX)
        return Word(int(wishes[0])), bool(wishes[1])

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Mean of scalars over the processes.

        Args:
            values: by name, the same names in every process.

        Raises:
            LostProcess: another process ended.
        """
        if self.count == 1:
            return dict(values)
        stacked = torch.stack([value.detach().float() for value in values.values()]) / self.count
        with reaching():
            dist.all_reduce(stacked)
        return dict(zip(values, stacked.unbind(), strict=True))

    def gathered(self, part: Tensor, rows: int) -> Tensor:
        """The rows of all processes.

        Args:
            part: rows of this process, (its share of rows, ...).
            rows: of all processes.

        Raises:
            LostProcess: another process ended.
        """
        if self.count == 1:
            return part
        # Zeros are neutral in a sum, so shares of different sizes need no padding. There are no sums of bools.
        number = part.to(torch.uint8) if part.dtype == torch.bool else part
        whole = number.new_zeros(rows, *part.shape[1:])
        whole[self.share(rows)] = number
        with reaching():
            dist.all_reduce(whole)
        return whole.to(part.dtype)

    def told(self, text: str) -> str:
        """The text of the first process.

        Raises:
            LostProcess: another process ended.
        """
        if self.count == 1:
            return text
        content = torch.tensor(list(text.encode()), dtype=torch.uint8)
        size = torch.tensor([len(content)])
        with reaching():
            dist.broadcast(size, 0)
            content = content if self.leads else torch.zeros(int(size), dtype=torch.uint8)
            dist.broadcast(content, 0)
        return bytes(content.tolist()).decode()

    def check_same(self, text: str, what: str) -> None:
        """Checks that a text is the same in all processes.

        Raises:
            InvalidInput: it is not; the message names `what` differs.
            LostProcess: another process ended.
        """
        expected = self.told(text)
        _, differs = self.agree(Word.UPDATE, text != expected)
        if differs:
            raise InvalidInput(
                f"the processes differ in {what} ({expected} in the first one, {text} in number {self.rank}); they "
                "must see the same data and the same run folder, so put these on storage that all machines share"
            )

    def wait(self) -> None:
        """Waits for all processes.

        Raises:
            LostProcess: another process ended.
        """
        self.agree(Word.UPDATE)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Lets the first process of each machine do something before the others, which find it done."""
        if self.local_rank:
            self.wait()
        yield
        if not self.local_rank:
            self.wait()


ALONE = Processes()
"""A training in one process."""


@contextmanager
def reaching() -> Iterator[None]:
    """Turns the errors of collective calls into LostProcess."""
    try:
        yield
    except RuntimeError as error:
        # gloo raises a bare RuntimeError when a connection ends.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        raise LostProcess(f"another process of this training ended, or cannot be reached{_reason(error)}") from error


def launched() -> int:
    """Number of processes that torchrun started for this command; 1 without torchrun.

    Raises:
        InvalidInput: the variables of the environment that torchrun sets are incomplete.
    """
    count = os.environ.get("WORLD_SIZE", "1")
    if count == "1":
        return 1
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing or not count.isdecimal():
        raise InvalidInput(
            f"WORLD_SIZE is {count!r} and {', '.join(missing) or 'no other variable'} is missing; start several "
            "processes with torchrun, or unset WORLD_SIZE"
        )
    return int(count)


def may_restart() -> bool:
    """True if torchrun starts the processes again should one of them fail."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def was_restarted() -> bool:
    """True if torchrun started these processes again after one of those before failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Joins the processes that torchrun started; yields them.

    Args:
        device: CPUs talk by gloo, GPUs by NCCL.

    Raises:
        InvalidInput: the caller has set up torch.distributed otherwise, or the build of torch lacks it.
        LostProcess: the others cannot be reached.
    """
    count = launched()
    if count == 1:
        yield ALONE
        return
    if not dist.is_available():
        raise InvalidInput("this build of torch has no torch.distributed, which several processes need")
    if dist.is_initialized():
        raise InvalidInput(
            "torch.distributed is in use already; a training joins the processes that torchrun started by itself, so "
            "leave init_process_group out"
        )
    processes = Processes(int(os.environ["RANK"]), count, int(os.environ["LOCAL_RANK"]))
    with reaching():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield processes
    finally:
        # gloo's threads end with the last reference to the group, which a model may keep in a cycle. Threads that live
        # on crash at the end of the interpreter.
        gc.collect()
        dist.destroy_process_group()


def _reason(error: Exception) -> str:
    """What torch says, without places in its sources."""
    said = re.sub(r"\[[^]]*/[^]]*]", "", str(error)).split(". ")[0].strip()
    return f" ({said[:100]})" if said else ""
