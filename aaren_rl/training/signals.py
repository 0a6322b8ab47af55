"""Ctrl-C and SIGTERM as a wish to stop once what was trained is saved."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

AT_ONCE = 3
"""Signals after which the work in hand is dropped."""


class Stopped(BaseException):
    """A signal cut short what could be interrupted; no error, so that no environment catches it."""


class StopSignal(threading.Event):
    """An event that Ctrl-C and SIGTERM set, so that neither an update nor a save is cut in two.

    The first signal asks to stop, and ends at once what `interrupts` encloses. The second changes nothing, since what
    the first asked for is under way: the save. The third raises KeyboardInterrupt.
    """

    def __init__(self) -> None:
        super().__init__()
        self._signals, self._interrupts = 0, False

    def ask(self, number: int, frame: Any) -> None:
        """Handles a signal."""
        self._signals += 1
        self.set()
        if self._signals >= AT_ONCE:
            raise KeyboardInterrupt
        if self._signals == AT_ONCE - 1:
            # Not by print, which may be what was interrupted.
            os.write(2, b"\nstopping, what was trained is being saved; once more to stop at once without that\n")
        if self._interrupts:
            raise Stopped

    @contextmanager
    def interrupts(self) -> Iterator[None]:
        """Encloses work that the first signal ends.

        Raises:
            Stopped: a signal came.
        """
        if self.is_set():
            raise Stopped
        self._interrupts = True
        try:
            yield
        finally:
            self._interrupts = False


@contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """Yields an event that Ctrl-C and SIGTERM set while the block runs; in other threads than the main one never."""
    event = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.signal(number, event.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
