"""llama.cpp's own tools, each in a process of its own that ends with whatever ends this."""

from __future__ import annotations

import os
import re
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

LINE_ENDS = re.compile(rb"[\r\n]")
_KEPT_LINES = 30
_LONGEST_LINE = 2**20


def run_tool(
    command: Sequence[str],
    follow: Callable[[str], bool],
    *,
    environment: Mapping[str, str],
    cwd: Path | None = None,
    ends: re.Pattern[bytes] = LINE_ENDS,
) -> tuple[int, str]:
    """Run a tool to its end, and return its exit code and the last lines that it said.

    Whatever leaves this function early kills the tool.

    Args:
        command: the program and its arguments.
        follow: is given each line of standard output and standard error, and returns whether it
            was about progress. Such a line is not kept.
        environment: all of its environment variables.
        cwd: the folder that it runs in.
        ends: what ends a line.

    Raises:
        OSError: the program does not start.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        cwd=cwd,
    )
    try:
        assert process.stdout is not None
        output = _follow(process.stdout, follow, ends)
        return process.wait(), output
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        if process.stdout is not None:
            process.stdout.close()


def _follow(output: IO[bytes], follow: Callable[[str], bool], ends: re.Pattern[bytes]) -> str:
    lines: deque[str] = deque(maxlen=_KEPT_LINES)
    pending = b""
    while chunk := os.read(output.fileno(), 2**16):
        *whole, pending = ends.split((pending + chunk)[-_LONGEST_LINE:])
        for line in whole:
            text = line.decode("utf-8", "replace").rstrip()
            if text and not follow(text):
                lines.append(text)
    last = pending.decode("utf-8", "replace").rstrip()
    return "\n".join([*lines, last] if last else lines)
