"""Threads of the CPU backend that a context computes with (ggml_threadpool_*)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from pyllama import _callbacks  # noqa: F401  (installs the guard before any guarded call)
from pyllama._arguments import choice, integer
from pyllama._guard import raise_caught
from pyllama._half_made import or_half_made
from pyllama._native._binding import ffi, lib
from pyllama._object import NativeObject
from pyllama.device import load_backends

if TYPE_CHECKING:
    from pyllama._native._binding import Pointer, ggml_threadpool  # noqa: F401  (for the class)

Priority = Literal["low", "normal", "medium", "high", "realtime"]

_PRIORITIES: dict[str, int] = {
    "low": lib.GGML_SCHED_PRIO_LOW,
    "normal": lib.GGML_SCHED_PRIO_NORMAL,
    "medium": lib.GGML_SCHED_PRIO_MEDIUM,
    "high": lib.GGML_SCHED_PRIO_HIGH,
    "realtime": lib.GGML_SCHED_PRIO_REALTIME,
}

MAX_THREADS: int = lib.GGML_MAX_N_THREADS


class Threadpool(NativeObject["Pointer[ggml_threadpool]"]):
    """Threads with their own placement and priority, for ``Context.attach_threadpool``.

    Without one, llama.cpp starts what each computation needs. Contexts may share a pool: their
    computations then take turns. Where ggml is built with OpenMP, as by default on Linux, OpenMP
    owns the threads, and the pool gives them placement and priority alone; the thread that calls
    decode() is one of them and keeps both.

    Args:
        n_threads: threads that compute, the calling one among them.
        cpus: processors that they may run on; None for all.
        strict_cpu: bind each thread to one of the processors, in turn.
        prio: scheduling priority; above ``"normal"`` the system may refuse it.
        poll: how eagerly idle threads look for work, from 0 (they sleep) to 100 (they spin).

    Raises:
        NativeError: the threads could not be made (``ggml_threadpool_new``).
    """

    _instead_of_copying = "Contexts may share it; or make another Threadpool"

    def __init__(
        self,
        n_threads: int,
        *,
        cpus: Iterable[int] | None = None,
        strict_cpu: bool = False,
        prio: Priority = "normal",
        poll: int = 50,
    ) -> None:
        super().__init__()
        #: Threads that compute with it.
        self.n_threads = integer("n_threads", n_threads, 1, MAX_THREADS)
        params = ffi.new("struct ggml_threadpool_params *")
        params[0] = lib.ggml_threadpool_params_default(self.n_threads)
        params.prio = choice("prio", prio, _PRIORITIES)
        params.poll = integer("poll", poll, 0, 100)
        params.strict_cpu = bool(strict_cpu)
        if cpus is not None:
            if not isinstance(cpus, Iterable):
                raise TypeError(f"cpus must hold numbers of processors, got {cpus!r}")
            numbers = [integer("cpus", cpu, 0, MAX_THREADS - 1) for cpu in cpus]
            if not numbers:
                raise ValueError("cpus must hold at least one processor; None means all")
            for cpu in numbers:
                params.cpumask[cpu] = True

        load_backends()
        pointer = lib.guarded_threadpool_new(params)
        if pointer == ffi.NULL:
            raise_caught("making a threadpool")
        self._own(pointer, lib.guarded_threadpool_free)

    def close(self) -> None:
        """Give up the threads; contexts that compute with them keep them until they close.

        Closing again does nothing.
        """
        with self._lock:
            # Not freed here: a context's CPU backend remembers the pool that it last used.
            self._handle = None

    @or_half_made
    def __repr__(self) -> str:
        return f"<pyllama.Threadpool: {'closed' if self.closed else f'{self.n_threads} threads'}>"
