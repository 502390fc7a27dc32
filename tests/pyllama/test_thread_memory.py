"""A thread's first call while memory is short: an error, where glibc would end the process."""

from __future__ import annotations

import os
import platform

import pytest
from decoding import run_python

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or platform.machine() not in ("x86_64", "aarch64"),
    reason="of glibc, which takes the memory of a thread's variables at their first use",
)

BEGINNING = """
import ctypes, resource, sys, threading
from pathlib import Path
import pyllama
from pyllama._guard import CAUGHT, raise_caught
from pyllama._native._binding import ffi, lib

N = 8
model = pyllama.Model(sys.argv[1], devices=[])
context = pyllama.Context(model, n_ctx=256, n_threads=1)
pointer = context._open().pointer
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

ready, go, after = threading.Barrier(N + 1), threading.Event(), threading.Event()
kinds, raised, again = [None] * N, [None] * N, [None] * N

def work(i):
    lib.pyllama_upstream_commit()  # cffi's own variable of the thread: 4 bytes
    ready.wait()
    go.wait()
    if lib.guarded_synchronize(pointer) == CAUGHT:
        kinds[i] = lib.pyllama_caught()
    after.wait()
    try:
        if kinds[i] is not None:
            raise_caught("synchronize")
    except pyllama.NativeMemoryError as error:
        raised[i] = (error.nothing_changed, str(error))
    again[i] = lib.guarded_synchronize(pointer), model.vocab.tokenize("a b")

threads = [threading.Thread(target=work, args=(i,)) for i in range(N)]
for thread in threads:
    thread.start()
ready.wait()
"""

SHORTAGE = """
limit = resource.getrlimit(resource.RLIMIT_AS)
sizes = [1 << n for n in range(20, 4, -1)]
blocks = (ctypes.c_void_p * 1_000_000)()
taken = 0
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize(), limit[1]))
for size in sizes:
    while block := libc.malloc(size):
        blocks[taken] = block
        taken += 1
go.set()
while any(kind is None for kind in kinds):
    pass
for i in range(taken):
    libc.free(blocks[i])
resource.setrlimit(resource.RLIMIT_AS, limit)
"""

END = """
after.set()
for thread in threads:
    thread.join()
print(kinds == [lib.PYLLAMA_CAUGHT_REFUSED] * N, {one[0] for one in raised})
print(raised[0][1])
print(again == [(0, model.vocab.tokenize("a b"))] * N)
"""


def test_a_first_call_without_memory_is_an_error(tiny_model_path):
    one_heap = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    written = run_python(BEGINNING + SHORTAGE + END, tiny_model_path, env=one_heap).splitlines()
    assert written[0] == "True {True}"
    assert "synchronize: out of memory: a thread that uses pyllama for the first time" in written[1]
    assert written[2] == "True"
