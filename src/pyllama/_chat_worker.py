"""The process that chat_process.py starts: one chat template, called over stdin and stdout.

It is run by its path, without the package and without site: it needs the extension module and
the folder of cffi's runtime, which are its arguments.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import struct
import sys
from typing import Any, BinaryIO

MAX_MEMORY = 1 << 30  # bytes that a template may take


def main(binding_file: str, cffi_folder: str) -> None:
    sys.path.append(cffi_folder)
    binding = _load(binding_file)
    _limit_memory()
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
    data = json.dumps(message).encode()
    stream.write(struct.pack("<I", len(data)) + data)
    stream.flush()


def _load(path: str) -> Any:
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


def _limit_memory() -> None:
    if sys.platform == "linux":
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            mapped = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MAX_MEMORY, mapped + MAX_MEMORY))


def _limit_time(seconds: int) -> None:
    """End this process when the call takes longer, even if nobody is left who waits for it."""
    if sys.platform != "win32":
        import resource

        usage = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(usage.ru_utime + usage.ru_stime) + seconds + 1
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        if hard == resource.RLIM_INFINITY or limit < hard:
            resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))


if __name__ == "__main__":
    main(*sys.argv[1:])
