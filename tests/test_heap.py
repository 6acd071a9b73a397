"""What is freed goes back to the system, once a process has grown by a tenth beyond what its work needs."""

import subprocess
import sys
from pathlib import Path

import pytest

from harness.heap import Heap

# Every second one goes, so that what is left is holes that are too small for the next.
HOLES = """
from harness.heap import HEAP
kept = [bytearray(50_000) for _ in range(4000)]
HEAP.settle()
del kept[::2]
full = HEAP.resident()
HEAP.level, HEAP.last = 1, -100.0
HEAP.settle()
print(full, HEAP.resident(), HEAP.level)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc, so nothing is given back")
def test_holes_are_given_back():
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    full, left, level = map(int, done.stdout.split())
    # Half of 200 MB less the pages at the edges of what is left.
    assert (full - left) * 4096 > 70e6
    assert level == 0


def heap_of(pages, seconds=10.0):
    """A heap that has so many pages each time that it is asked, and the list of what was given back."""
    trimmed, times = [], iter(seconds * step for step in range(1, 1000))
    return Heap(trimmed.append, iter(pages).__next__, now=times.__next__), trimmed


def test_it_is_given_back_where_the_process_has_grown_by_a_tenth_beyond_what_its_work_needs():
    heap, trimmed = heap_of([100, 110, 111, 90, 99, 100])
    heap.settle()
    heap.settle()
    assert trimmed == []
    heap.settle()
    assert trimmed == [0]
    heap.settle()
    heap.settle()
    assert trimmed == [0]
    heap.settle()
    assert trimmed == [0, 0]


def test_work_that_needs_as_much_again_and_again_is_let_alone():
    heap, trimmed = heap_of([100, *[500] * 50])
    for _ in range(50):
        heap.settle()
    # At first it was not known how much it needs.
    assert trimmed == [0]


def test_holes_do_not_pile_up():
    """Work needs 400 pages, and each time one page stays that nothing fits into."""
    held = [500]
    times = iter(range(10, 100_000, 10))
    heap = Heap(lambda _: held.__setitem__(0, 100), lambda: held[0], now=times.__next__)
    most = 0
    for _ in range(3000):
        heap.settle()
        held[0] = max(held[0] + 1, 500)
        most = max(most, held[0])
    assert most <= 1.1 * 501 + 2


def test_it_waits_a_second_after_each_time():
    heap, trimmed = heap_of([100, 200, 150], seconds=0.4)
    levels = []
    for _ in range(7):
        heap.settle()
        levels.append((len(trimmed), heap.level))
    assert levels == [(0, 0), (0, 0), (0, 100), (1, 0), (1, 0), (1, 0), (1, 150)]


def test_without_glibc_nothing_happens():
    heap = Heap(resident=lambda: 100)
    heap.settle()
    assert heap.level == 0
