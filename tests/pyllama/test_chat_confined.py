"""What the process of a chat template can do, whatever ran in it: compute and answer."""

from __future__ import annotations

import importlib.util
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pyllama import ChatTemplate, _chat_worker
from pyllama._native import _binding
from pyllama.chat_process import ChatProcess

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limits")

SCRIPT = Path(__file__).with_name("confined.py")
HAS_SECCOMP = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")


@pytest.fixture
def run(tmp_path):
    """Does a thing in a child that is confined, and tells what came of it."""

    def run(action: str, seccomp: str = "with") -> str | int:
        target = tmp_path / "target"
        target.write_bytes(b"before")
        cffi = importlib.util.find_spec("_cffi_backend")
        child = subprocess.run(
            [
                *(sys.executable, "-IS", str(SCRIPT), _chat_worker.__file__, _binding.__file__),
                *(os.path.dirname(cffi.origin), action, seccomp, str(target)),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={},
            timeout=60,
        )
        assert target.read_bytes() == b"before"
        return child.returncode or child.stdout.decode().split("\n")[-2]

    return run


def test_it_computes_and_answers(run):
    assert run("nothing") == "done"


LIMITED = ("read", "read proc", "list", "write", "inet socket", "unix socket", "socketpair", "pipe")


@pytest.mark.parametrize("action", LIMITED)
def test_no_file_and_no_socket_by_limits_alone(run, action):
    assert run(action, "without") == "OSError"  # too many open files


def test_no_writing_to_an_open_file_by_limits_alone(run):
    assert run("write open", "without") in ("OSError", -signal.SIGXFSZ)


@pytest.mark.skipif(not HAS_SECCOMP, reason="the filter is for Linux on x86-64 and ARM64")
@pytest.mark.parametrize(
    "action",
    [
        *("read", "read proc", "list", "write", "remove", "rename", "make folder", "status"),
        *("inet socket", "unix socket", "socketpair", "pipe", "fork", "exec", "spawn"),
        *("executable memory", "signal the parent", "others' limits", "nice", "user"),
    ],
)
def test_system_calls_are_refused(run, action):
    assert run(action) == "PermissionError"


@pytest.mark.skipif(not HAS_SECCOMP, reason="the filter is for Linux on x86-64 and ARM64")
def test_no_threads_and_no_more_files(run):
    assert run("thread") == "RuntimeError"
    assert run("more files") in ("PermissionError", "ValueError")
    assert run("write open") in ("OSError", -signal.SIGXFSZ)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not hold to the limit")
def test_no_more_memory(run):
    assert run("allocate") == "MemoryError"


def test_a_loop_ends(run):
    assert run("loop") in (-signal.SIGXCPU, -signal.SIGKILL)


def test_it_can_abort(run):
    assert run("abort") == -signal.SIGABRT


def test_it_has_no_environment(monkeypatch):
    monkeypatch.setenv("PYLLAMA_SECRET", "hidden")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere")
    given = {}
    real = subprocess.Popen.__init__

    def recorded(self, *args, **kwargs):
        given.update(kwargs)
        real(self, *args, **kwargs)

    monkeypatch.setattr(subprocess.Popen, "__init__", recorded)
    template = ChatTemplate(source="{{ messages[0].content }}", isolated=True)
    assert template.apply([{"role": "user", "content": "Hello"}]).prompt == "Hello"
    assert given["env"] == {"LD_LIBRARY_PATH": "/nowhere"}


@pytest.mark.skipif(not HAS_SECCOMP, reason="the filter is for Linux on x86-64 and ARM64")
def test_the_real_process_is_confined():
    process = ChatProcess("{{ messages[0].content }}", "", "")
    status = Path(f"/proc/{process._process.pid}/status").read_text()
    lines = dict(line.split(":\t", 1) for line in status.splitlines())
    assert lines["NoNewPrivs"] == "1"
    assert lines["Seccomp"] == "2"
    assert lines["Threads"] == "1"
    files = sorted(os.listdir(f"/proc/{process._process.pid}/fd"))
    assert files == ["0", "1", "2"]
    limits = Path(f"/proc/{process._process.pid}/limits").read_text()
    for name in ("Max open files", "Max core file size", "Max processes", "Max file size"):
        (line,) = [line for line in limits.splitlines() if line.startswith(name)]
        assert line[len(name) :].split()[:2] == ["0", "0"]
