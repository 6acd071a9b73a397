"""What a process has freed and the C library keeps: given back, so that a long run takes no more memory than needed.

The library keeps what is freed for what comes next. A small tensor that stays, such as a score or a weight of a twin,
cuts a piece off a large free one, which the next tensor of that size no longer fits into: of every draw a hole is left.
"""

import ctypes
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

GROWTH, SECONDS = 1.1, 1.0
"""By how much a process grows, and how long it waits, before it gives back: what is free has to be asked for again,
which would take a fifth of the time if it were done after each pass."""


@dataclass
class Heap:
    """The memory of this process.

    Attributes:
        trim: gives the pages in which nothing is left back to the system.
        resident: pages that the process has.
        least: how many these were after the last time, or at first.
        now: the time in seconds.
        last: when that was.
    """

    trim: Callable[[int], int] | None = None
    resident: Callable[[], int] = lambda: int(Path("/proc/self/statm").read_text().split()[1])
    least: int = 0
    now: Callable[[], float] = time.monotonic
    last: float = 0.0

    def settle(self) -> None:
        """Give back what is free, if the process has grown by a tenth and did not do so just before."""
        if self.trim is None or self.now() < self.last + SECONDS or self.resident() <= GROWTH * self.least:
            return
        self.trim(0)
        self.least, self.last = self.resident(), self.now()


def of_this_process() -> Heap:
    """The heap of this process; one that does nothing where there is no glibc."""
    with suppress(OSError, TypeError, AttributeError):
        Path("/proc/self/statm").read_text()
        return Heap(ctypes.CDLL(None).malloc_trim)
    return Heap()


HEAP = of_this_process()
