"""The process that chat_process.py starts: one chat template, called over stdin and stdout.

It is run by its path, without the package and without site. It needs the extension module and the
folder of cffi's runtime, which are its arguments. After loading them it gives up all other rights:
see `confine`.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import struct
import sys
import time
from typing import Any, BinaryIO

MAX_MEMORY = 1 << 30  # the most bytes of a template


def main(binding_file: str, cffi_folder: str) -> None:
    sys.path.append(cffi_folder)
    binding = load(binding_file)
    # Assertions become errors, and the log needs no thread of its own.
    binding.lib.pyllama_install(binding.ffi.NULL, binding.ffi.NULL)
    confine(binding)
    write(sys.stdout.buffer, {})  # ready: from here on a failure may be the template's doing
    template = None
    while (request := read(sys.stdin.buffer)) is not None:
        _limit_time(request["seconds"])
        arguments = [text.encode() for text in request["arguments"]]
        if template is None:
            template = binding.lib.guarded_chat_init(*arguments)
            text = template and binding.lib.guarded_chat_describe(template)
        else:
            text = getattr(binding.lib, request["function"])(template, *arguments)
        write(sys.stdout.buffer, _answer(binding, text))


def read(stream: BinaryIO) -> Any:
    """One message, or None at the end of the stream."""
    size = stream.read(4)
    if len(size) < 4:
        return None
    (length,) = struct.unpack("<I", size)
    data = stream.read(length)
    return json.loads(data) if len(data) == length else None


def write(stream: BinaryIO, message: object) -> None:
    data = to_bytes(message)
    stream.write(struct.pack("<I", len(data)) + data)
    stream.flush()


def to_bytes(message: object) -> bytes:
    return json.dumps(message).encode()


def load(path: str) -> Any:
    name = "pyllama._native._binding"
    loader = importlib.machinery.ExtensionFileLoader(name, path)
    spec = importlib.machinery.ModuleSpec(name, loader, origin=path)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _answer(binding: Any, text: Any) -> dict[str, str]:
    ffi, lib = binding.ffi, binding.lib
    if text == ffi.NULL:
        return {"error": ffi.string(lib.pyllama_caught_message()).decode("utf-8", "replace")}
    try:
        return {"result": ffi.string(text).decode("utf-8", "replace")}
    finally:
        lib.pyllama_free(text)


def confine(binding: Any) -> None:
    """Give up what a template does not need.

    On all systems but Windows: new descriptors, so that no file and no socket can be opened; new
    processes (root is exempt from that limit); writing files; and core dumps. On Linux also more
    than 1 GiB of memory and, if the kernel has seccomp, all system calls except those that read and
    write what is open, and allocate memory.
    """
    if sys.platform == "win32":
        return
    import resource

    time.tzset()  # reads a file when the time is first needed
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as file:
            mapped = int(file.read().split()[0]) * resource.getpagesize()
        _limit(resource.RLIMIT_AS, mapped + MAX_MEMORY)
    for limit in ("RLIMIT_CORE", "RLIMIT_FSIZE", "RLIMIT_NPROC", "RLIMIT_NOFILE"):
        _limit(getattr(resource, limit), 0)
    binding.lib.guarded_confine()  # an old kernel or a container may refuse; the limits still apply


def _limit(kind: int, amount: int) -> None:
    import resource

    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        amount = min(amount, hard)
    resource.setrlimit(kind, (amount, amount))


def _limit_time(seconds: int) -> None:
    """End this process if the call computes longer, even if nobody waits for it any more."""
    if sys.platform != "win32":
        import resource

        usage = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(usage.ru_utime + usage.ru_stime) + seconds + 1
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        if hard == resource.RLIM_INFINITY or limit < hard:
            resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))


if __name__ == "__main__":
    main(*sys.argv[1:])
