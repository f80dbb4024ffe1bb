"""Ctrl-C, SIGTERM and time limits as requests to stop where everything can be saved."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

#: Seconds in which one wish to stop may arrive twice: a key pressed again, a terminal and a script
#: that both pass it on.
GRACE = 1.0


class StopRequest:
    """Whether a run has to stop: on request, or because its time is over."""

    def __init__(self, until: float | None = None) -> None:
        """``until``: ``time.monotonic()`` at which the time is over; never if None."""
        self.asked = False
        self.until = until

    @property
    def received(self) -> bool:
        """Whether to stop now."""
        return self.asked or (self.until is not None and time.monotonic() >= self.until)


@contextmanager
def stop_on_signals(until: float | None = None) -> Iterator[StopRequest]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop; a later one acts at once.

    Outside the main thread, where signals cannot be caught, the time alone makes a request.

    Args:
        until: ``time.monotonic()`` at which to stop unasked; never if None.
    """
    request = StopRequest(until)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    first = 0.0

    def receive(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if not request.asked:
            request.asked, first = True, time.monotonic()
        elif time.monotonic() - first >= GRACE:
            restore()
            signal.raise_signal(number)

    restore = _handle_with(receive)
    try:
        yield request
    finally:
        restore()


@contextmanager
def signals_wait(
    signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM),
) -> Iterator[list[int]]:
    """Delay Ctrl-C and SIGTERM until the context ends, for code that takes them for failures.

    Args:
        signals: others, or one of them alone.

    Yields:
        the signals that came so far.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    restore = _handle_with(lambda number, _: came.append(number), signals)
    try:
        yield came
    finally:
        restore()
        if came:
            signal.raise_signal(came[0])


def _handle_with(
    handler: Callable[[int, FrameType | None], None],
    signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM),
) -> Callable[[], None]:
    """Handle Ctrl-C and SIGTERM; the function returned restores the former handlers."""
    former = {number: signal.signal(number, handler) for number in signals}

    def restore() -> None:
        for number, before in former.items():
            signal.signal(number, before)

    return restore
