"""Run like the process of a chat template: gives up what that does, and then tries a thing.

Prints what came of it as the last line.
"""

import _socket as socket  # `socket` wants more of site than there is
import importlib.util
import mmap
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

WORKER, BINDING, CFFI, ACTION, SECCOMP, TARGET = sys.argv[1:]


def write():
    Path(TARGET).write_bytes(b"x")


def write_open():
    os.write(OPEN, b"x")


def fork():
    if os.fork() == 0:
        os._exit(0)


def allocate():
    return len(bytearray(3 << 30))


def thread():
    made = threading.Thread(target=int)
    made.start()
    made.join()


ACTIONS = {
    "nothing": lambda: sum(range(1000)),
    "read": lambda: Path(__file__).read_bytes(),
    "read proc": lambda: Path("/proc/self/environ").read_bytes(),
    "list": lambda: os.listdir("/"),
    "write": write,
    "write open": write_open,
    "remove": lambda: os.remove(TARGET),
    "rename": lambda: os.rename(TARGET, TARGET + "2"),
    "make folder": lambda: os.mkdir(TARGET + "3"),
    "status": lambda: os.stat(__file__),
    "inet socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    "unix socket": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
    "socketpair": lambda: socket.socketpair(),
    "pipe": os.pipe,
    "fork": fork,
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "spawn": lambda: subprocess.run(["/bin/true"]),
    "thread": thread,
    "allocate": allocate,
    "executable memory": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
    "signal the parent": lambda: os.kill(os.getppid(), 0),
    "more files": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (9, 9)),
    "others' limits": lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CPU),
    "nice": lambda: os.nice(1),
    "user": lambda: os.setuid(os.getuid()),
    "loop": lambda: [None for _ in iter(int, 1)],
    "abort": os.abort,
}

spec = importlib.util.spec_from_file_location("worker", WORKER)
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)
sys.path.append(CFFI)
binding = worker.load(BINDING)
if SECCOMP == "without":
    binding = SimpleNamespace(lib=SimpleNamespace(guarded_confine=int))
OPEN = os.open(TARGET, os.O_RDWR)
repr(OSError(1, "x"))
worker.confine(binding)
worker._limit_time(0)
try:
    ACTIONS[ACTION]()
except BaseException as error:
    outcome = type(error).__name__
else:
    outcome = "done"
sys.stdout.write(outcome + "\n")
sys.stdout.flush()
