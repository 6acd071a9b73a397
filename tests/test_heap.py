"""What is freed goes back to the system, once a process has grown by a tenth."""

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
HEAP.least, HEAP.last = 1, -100.0
HEAP.settle()
print(full, HEAP.resident(), HEAP.least)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc, so nothing is given back")
def test_holes_are_given_back():
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    full, left, least = map(int, done.stdout.split())
    # Half of 200 MB less the pages at the edges of what is left.
    assert (full - left) * 4096 > 70e6
    assert least == pytest.approx(left, rel=0.01)


def test_it_is_given_back_where_the_process_has_grown_by_a_tenth():
    pages, trimmed = iter([100, 90, 99, 100, 91]), []
    heap = Heap(trimmed.append, lambda: next(pages), now=iter(range(10, 1000, 10)).__next__)
    heap.settle()
    assert (trimmed, heap.least) == ([0], 90)
    heap.settle()
    assert (trimmed, heap.least) == ([0], 90)
    heap.settle()
    assert (trimmed, heap.least) == ([0, 0], 91)


def test_it_waits_between():
    trimmed, times = [], iter([10.0, 10.0, 10.9, 11.1, 11.1])
    heap = Heap(trimmed.append, lambda: 100, least=1, now=lambda: next(times))
    heap.settle()
    heap.least = 1
    heap.settle()
    assert trimmed == [0]
    heap.settle()
    assert trimmed == [0, 0]


def test_without_glibc_nothing_happens():
    heap = Heap(resident=lambda: 100)
    heap.settle()
    assert heap.least == 0
