"""Ctrl-C at a chosen point of this thread."""

from __future__ import annotations

import dis
import sys


class Interrupt:
    """Raises KeyboardInterrupt at one point of this thread where a signal's handler may run.

    The interpreter looks for signals when a function begins, and after it has called something.
    Only code that `is_looked_at` takes is counted.
    """

    def __init__(self, at, is_looked_at):
        self.left = at
        self.is_looked_at = is_looked_at
        self.after_call = {}

    def __enter__(self):
        sys.settrace(self._trace)

    def __exit__(self, *exc_info):
        sys.settrace(None)

    def _trace(self, frame, event, _):
        code = frame.f_code
        if not self.is_looked_at(code):
            return None
        frame.f_trace_opcodes = True
        if event == "call" or (event == "opcode" and self.after_call.get(frame)):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
        if event == "opcode":
            name = dis.opname[code.co_code[frame.f_lasti]]
            self.after_call[frame] = name.startswith(("CALL", "JUMP_BACKWARD"))
        return self._trace
