"""The processes that train one model together, as torchrun starts them."""

from __future__ import annotations

import gc
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from aaren_rl.errors import AarenError, InvalidInput
from aaren_rl.training.launch import launched

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

EXCHANGE_TIMEOUT = timedelta(minutes=10)
"""Longest wait in an update. A process that dies is noticed at once, a machine without power only by this."""

WAIT_TIMEOUT = timedelta(days=1)
"""Longest wait for the first process while it loads data or evaluates."""


class LostProcess(AarenError):
    """Another process of the training ended, or cannot be reached."""


class Word(IntEnum):
    """What the first process has all of them do next; FAIL ends a run that did not come to its end."""

    UPDATE = 0
    SAVE = 1
    WAIT = 2
    END = 3
    FAIL = 4


@dataclass(frozen=True)
class Processes:
    """The processes of a training, seen from one of them.

    `leads` and `share` are answered at once. All other methods are collective: every process calls them, in the same
    order. For a single process they do nothing.

    Args:
        rank: number of this process; the first, 0, leads.
        count: of all processes.
        local_rank: number of this process on its machine.
        waiting: process group of the waits that may be long; None for a single process.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    waiting: dist.ProcessGroup | None = None

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
        with naming_lost_processes():
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
        with naming_lost_processes():
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
        with naming_lost_processes():
            dist.all_reduce(whole)
        return whole.to(part.dtype)

    def broadcast(self, text: str) -> str:
        """The text of the first process.

        Raises:
            LostProcess: another process ended.
        """
        if self.count == 1:
            return text
        content = torch.tensor(list(text.encode()), dtype=torch.uint8)
        size = torch.tensor([len(content)])
        with naming_lost_processes():
            dist.broadcast(size, 0, self.waiting)
            content = content if self.leads else torch.zeros(int(size), dtype=torch.uint8)
            dist.broadcast(content, 0, self.waiting)
        return bytes(content.tolist()).decode()

    def check_same(self, text: str, what: str, advice: str = "") -> None:
        """Checks that a text is the same in all processes.

        Raises:
            InvalidInput: it is not; the message says `what` differs, and gives the advice.
            LostProcess: another process ended.
        """
        expected = self.broadcast(text)
        _, differs = self.agree(Word.UPDATE, text != expected)
        if differs:
            here = f": {expected} in the first one, {text} in number {self.rank}" if text != expected else ""
            raise InvalidInput(f"the processes differ in {what}{here}{advice and '; '}{advice}")

    def wait(self) -> None:
        """Waits for all processes, for long if need be.

        Raises:
            LostProcess: another process ended.
        """
        if self.count > 1:
            with naming_lost_processes():
                dist.all_reduce(torch.zeros(1), group=self.waiting)

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
def naming_lost_processes() -> Iterator[None]:
    """Turns the errors of collective calls into LostProcess."""
    try:
        yield
    except RuntimeError as error:
        # gloo raises a bare RuntimeError when a connection ends.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        raise LostProcess(f"another process of this training ended, or cannot be reached{_reason(error)}") from error


@contextmanager
def process_group(device: torch.device) -> Iterator[Processes]:
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
    # Not there in a build without torch.distributed.
    from torch.distributed.rendezvous import rendezvous

    rank = int(os.environ["RANK"])
    with naming_lost_processes():
        store, _, _ = next(rendezvous("env://", rank, count, timeout=EXCHANGE_TIMEOUT))
        store = _fresh(store, rank, count)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=EXCHANGE_TIMEOUT)
        waiting = dist.new_group(backend="gloo", timeout=WAIT_TIMEOUT)
    processes = Processes(rank, count, int(os.environ["LOCAL_RANK"]), waiting)
    try:
        yield processes
    finally:
        # gloo's threads end with the last reference to the group, which a model may keep in a cycle. Threads that live
        # on crash at the end of the interpreter.
        gc.collect()
        dist.destroy_process_group()


def _fresh(store: Store, rank: int, count: int) -> Store:
    """The store under a prefix that no processes before have used.

    torchrun keeps its store over restarts, with the addresses of processes that are gone. The first process draws a
    prefix, and tells it to those that answer under it; the others ask again until their own answer was heard.

    Raises:
        LostProcess: the first process does not answer.
    """
    if rank == 0:
        prefix = secrets.token_hex(8)
        store.set("aaren-prefix", prefix)
        answers = [store.get(f"{prefix}/{other}").decode() for other in range(1, count)]
        store.set(f"{prefix}/heard", " ".join(answers))
        return dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
    answer, until = secrets.token_hex(8), time.monotonic() + EXCHANGE_TIMEOUT.total_seconds()
    while time.monotonic() < until:
        prefix = store.get("aaren-prefix").decode()
        store.set(f"{prefix}/{rank}", answer)
        if store.check([f"{prefix}/heard"]) and answer in store.get(f"{prefix}/heard").decode():
            return dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
        time.sleep(0.05)
    raise LostProcess("the first process of this training does not answer")


def _reason(error: Exception) -> str:
    """What torch says, without places in its sources."""
    said = re.sub(r"\[[^]]*/[^]]*]", "", str(error)).split(". ")[0].strip()
    return f" ({said[:100]})" if said else ""
