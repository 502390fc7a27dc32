"""How much memory this process holds."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple


class MallInfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None

MEASURABLE = hasattr(_libc, "mallinfo2")
"""Whether the system says what malloc() has given out: glibc does, from 2.33 on."""

if MEASURABLE:
    _libc.mallinfo2.restype = MallInfo


class MemoryUse(NamedTuple):
    """What this process holds.

    Resident memory goes up and down by megabytes, by how far the heaps have come apart, and more so
    in a process that ran other tests. The other two are exact.

    allocated  bytes that malloc() gave out
    blocks     objects of Python, roughly
    resident   bytes of memory, also what is mapped past malloc()
    """

    allocated: int
    blocks: int
    resident: int

    def since(self, before: MemoryUse) -> MemoryUse:
        return MemoryUse(*(new - old for new, old in zip(self, before, strict=True)))


def memory_in_use() -> MemoryUse:
    """Without garbage, and without what malloc() keeps for later."""
    for _ in range(3):  # finalizers leave garbage of their own
        gc.collect()
    _libc.malloc_trim(0)
    info = _libc.mallinfo2()
    return MemoryUse(info.uordblks + info.hblkhd, sys.getallocatedblocks(), resident_bytes())


@contextmanager
def earlier_objects_apart() -> Iterator[None]:
    """What is there already is not looked at: Python collects the later, the more there is."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def resident_bytes() -> int:
    """Memory in use now; where the system does not tell, the most that was in use so far."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
