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
"""By how much a process grows, and how long it waits, before it gives back. What is given back has to be asked for
again by whatever comes next, page by page: a gradient of ResNet-20 takes twice as long right after it."""


@dataclass
class Heap:
    """The memory of this process.

    Attributes:
        trim: gives the pages in which nothing is left back to the system.
        resident: pages that the process has.
        level: how many it had a while after the last time, with all that its work needs again; 0 if that is not known.
        now: the time in seconds.
        last: when that was.
    """

    trim: Callable[[int], int] | None = None
    resident: Callable[[], int] = lambda: int(Path("/proc/self/statm").read_text().split()[1])
    level: int = 0
    now: Callable[[], float] = time.monotonic
    last: float = 0.0

    def settle(self) -> None:
        """Give back what is free, if the process has grown by a tenth beyond what its work needs."""
        if self.trim is None or self.now() < self.last + SECONDS:
            return
        if not self.level:
            self.level = self.resident()
        elif self.resident() > GROWTH * self.level:
            self.trim(0)
            self.level, self.last = 0, self.now()


def of_this_process() -> Heap:
    """The heap of this process; one that does nothing where there is no glibc."""
    with suppress(OSError, TypeError, AttributeError):
        Path("/proc/self/statm").read_text()
        return Heap(ctypes.CDLL(None).malloc_trim)
    return Heap()


HEAP = of_this_process()
