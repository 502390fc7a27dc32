"""The process of an ``RpcServer``."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress

from pyllama import threads
from pyllama._guard import check
from pyllama._native._binding import ffi, lib
from pyllama.device import devices, load_backend, registered

# On Linux with /proc, a server's process finds out on which port it listens and reports it, so no
# other process can have taken the port since it was chosen. Elsewhere it is chosen before the
# process starts.
TELLS_PORT = sys.platform == "linux" and os.path.isdir("/proc/self/fd")
LISTENS = "pyllama: listening on port "


def serve(
    endpoint: str, cache_dir: str | None, n_threads: int, names: list[str], modules: list[str]
) -> None:
    """The server's own process, with the backends of its parent, until the parent ends."""
    threads.start(_end_with_parent, "end-with-parent")
    if TELLS_PORT:
        threads.start(_tell_port, "tell-port")
    built_in = [backend.path for backend in registered()]
    for module in modules:
        if module not in built_in:
            load_backend(module)
    present = {device.name: device for device in devices()}
    pointers = ffi.new("ggml_backend_dev_t[]", [present[name]._pointer for name in names])
    cache = ffi.NULL if cache_dir is None else ffi.new("char[]", os.fsencode(cache_dir))
    check(
        lib.guarded_rpc_start_server(endpoint.encode(), cache, n_threads, len(names), pointers),
        f"serving {', '.join(names)}",
    )
    sys.exit(f"llama.cpp cannot listen on {endpoint}")


def _tell_port() -> None:
    """Report the port that llama.cpp listens on. It may have chosen it, and does not report it."""
    try:
        while (port := _listening_port()) is None:
            time.sleep(0.01)
    except OSError as error:  # nobody would learn of this server
        os.write(1, f"cannot find out which port it listens on: {error}\n".encode())
        os._exit(1)
    else:
        os.write(1, f"{LISTENS}{port}\n".encode())


def _listening_port() -> int | None:
    """The port of a listening socket of this process."""
    import socket

    for descriptor in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):  # not a socket, or closed meanwhile
            found = socket.socket(fileno=descriptor)
            try:
                if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    port: int = found.getsockname()[1]
                    return port
            finally:
                found.detach()
    return None


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)
