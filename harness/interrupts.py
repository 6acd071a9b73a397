"""Ends that come from outside: somebody presses Ctrl-C, or a time limit is reached."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from harness.types import InputError

AGAIN = 1.0
"""Seconds after which a limit strikes again: the first strike may fall where Python swallows what is raised."""


class OutOfTimeError(BaseException):
    """A cell's time is over. No `Exception`, so that a method which catches those does not swallow it."""


@contextmanager
def finishing(tell: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C only be noted, and a second one stop at once.

    Outside the main thread, and where somebody else handles interrupts, everything stays as it is.

    Args:
        tell: called at the first.

    Yields:
        Whether somebody has pressed it.
    """
    asked = False

    def first(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        tell()

    if not _in_main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    signal.signal(signal.SIGINT, first)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def within(seconds: float | None) -> Iterator[None]:
    """Raise `OutOfTimeError` inside the block when its time is over. None: it may take what it needs."""

    def over(_number: int, _frame: FrameType | None) -> None:
        raise OutOfTimeError

    if seconds is None:
        yield
        return
    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check_limit(seconds: float | None) -> None:
    """Check that a time limit can be kept.

    Raises:
        InputError: it is not positive, or there is nothing here that could interrupt a cell.
    """
    if seconds is None:
        return
    if seconds <= 0:
        raise InputError(f"cell_seconds must be more than 0, got {seconds}")
    if not can_limit():
        raise InputError("cell_seconds needs a system with alarms, and the main thread of the process")


def can_limit() -> bool:
    """Whether `within` can interrupt anything here."""
    return hasattr(signal, "setitimer") and _in_main_thread()


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
