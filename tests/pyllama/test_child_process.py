"""Child processes that are started, whatever ends the call that starts them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from pyllama._child_process import ChildProcess, start


def test_it_is_what_subprocess_starts():
    process = start([sys.executable, "-c", "print(7)"], stdout=subprocess.PIPE, text=True)
    assert process.communicate()[0] == "7\n"
    assert process.returncode == 0


def test_what_it_raises_is_raised_here():
    with pytest.raises(FileNotFoundError):
        start(["/no such program"])


def test_one_that_is_dropped_ends():
    process = start([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    pid = process.pid
    del process
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_thread_that_ends_before_it_began_is_an_error(monkeypatch):
    monkeypatch.setattr("_thread.start_new_thread", lambda *_: 0)
    with pytest.raises(RuntimeError, match="before it could start"):
        start([sys.executable, "-c", ""])


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="this system cannot tell without waiting")
def test_ctrl_c_while_it_starts_loses_no_process():
    """The handler runs where the system has made the process, and its number is not kept yet."""
    program = """
        import gc, os, signal, sys, threading, time
        import subprocess
        from pyllama._child_process import start

        def interrupt(*_):
            raise KeyboardInterrupt

        signal.signal(signal.SIGUSR1, interrupt)
        # Until Python 3.10 it was the module's.
        old = not hasattr(subprocess, "_fork_exec")
        owner = subprocess._posixsubprocess if old else subprocess
        name = "fork_exec" if old else "_fork_exec"
        made = getattr(owner, name)

        def fork_exec(*arguments):
            pid = made(*arguments)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
            time.sleep(0.01)
            return pid

        setattr(owner, name, fork_exec)
        try:
            start([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        except KeyboardInterrupt:
            pass
        end = time.monotonic() + 60
        while time.monotonic() < end:
            gc.collect()
            try:
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                sys.exit(0)
            time.sleep(0.01)
        sys.exit("a process is left")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_another_thread_starts_it_itself():
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as threads:
        process = threads.submit(start, [sys.executable, "-c", ""]).result()
    assert isinstance(process, ChildProcess)
    assert process.wait() == 0
