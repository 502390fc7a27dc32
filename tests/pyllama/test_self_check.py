"""A CPU module that would end the process is found out in a child, and another one is used."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys

import cffi
import pytest
from decoding import run_python
from test_device import cpu_backend, in_another_process

import pyllama
from pyllama._native._binding import ffi, lib

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it has no fork()")

_libc = cffi.FFI()
_libc.cdef("int raise(int); void abort(void); void free(void *); unsigned int sleep(unsigned int);")


def survives(name, argument=0):
    """Whether a child survives a function of the C library."""
    address = _libc.cast("uintptr_t", _libc.addressof(_libc.dlopen(None), name))
    work = ffi.cast("void (*)(void *)", int(address))
    return lib.pyllama_survives(work, ffi.cast("void *", argument))


@pytest.fixture
def n_descriptors():
    def count():
        return len(os.listdir("/dev/fd"))

    before = count()
    yield
    assert count() == before


DEADLY = ["SIGILL", "SIGSEGV", "SIGBUS", "SIGFPE", "SIGKILL"]


@pytest.mark.parametrize("name", DEADLY)
def test_a_child_that_dies_is_noticed(name, n_descriptors):
    assert not survives("raise", getattr(signal, name))


def test_a_child_that_aborts_is_noticed(n_descriptors):
    assert not survives("abort")


def test_a_child_that_comes_to_its_end(n_descriptors):
    assert survives("free")
    assert survives("raise", 0)


def test_the_signals_that_the_program_handles_kill_a_child_all_the_same(capfd):
    before = signal.signal(signal.SIGILL, signal.SIG_IGN)
    was_enabled = faulthandler.is_enabled()
    faulthandler.enable()
    try:
        assert not survives("raise", signal.SIGILL)
        assert not survives("raise", signal.SIGSEGV)
    finally:
        if not was_enabled:
            faulthandler.disable()
        signal.signal(signal.SIGILL, before)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("what", ["signal.SIG_IGN", "lambda *_: reap()"])
def test_a_program_that_reaps_all_its_children(what):
    """The verdict comes through a pipe, not from the child's status."""
    code = f"""
        import contextlib, os, signal, sys
        sys.path[:0] = {sys.path!r}
        from test_self_check import survives

        def reap():
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass

        signal.signal(signal.SIGCHLD, {what})
        print([survives("free"), survives("raise", signal.SIGILL)] * 20)
    """
    assert run_python(code).split() == str([True, False] * 20).split()


def test_the_cpu_of_this_machine_computes():
    reg = cpu_backend()._pointer
    assert lib.pyllama_survives(ffi.addressof(lib, "pyllama_multiply_on"), reg)


PLAYED = """
from pyllama import device
device._computes = lambda reg: device._backend(reg).path.endswith({ends!r})
"""


def scores():
    folder = os.path.dirname(cpu_backend().path)
    modules = pyllama.device._cpu_modules(folder)
    if len(modules) < 2:
        pytest.skip("this build has no variants of the CPU backend")
    return sorted(modules, key=lambda name: -pyllama.device._score(modules[name]))


def test_the_best_module_has_the_best_score():
    assert scores()[0] == pyllama.cpu_variant()


@pytest.mark.parametrize("rank", [1, 2])
def test_the_next_best_module_is_used(tiny_model_path, rank):
    variant = scores()[rank]
    before = PLAYED.format(
        ends=os.path.basename(
            pyllama.device._cpu_modules(os.path.dirname(cpu_backend().path))[variant]
        )
    )
    said = in_another_process(before, tiny_model_path)
    assert said[0] == variant
    assert len(said[1]) == len(pyllama.backends())
    assert said[2:] == [len(pyllama.devices()), True]


def test_where_all_die_the_plainest_is_left(tiny_model_path):
    plain = [name for name in scores() if name in ("x64", "armv8.0_1")]
    said = in_another_process(PLAYED.format(ends="none"), tiny_model_path)
    assert said[0] in plain
    assert said[3] is True


def test_a_module_that_was_chosen_is_not_tried(tiny_model_path):
    variant = pyllama.cpu_variant()
    assert variant in scores()
    before = PLAYED.format(ends="none")
    assert in_another_process(before, tiny_model_path, PYLLAMA_CPU_VARIANT=variant)[0] == variant
