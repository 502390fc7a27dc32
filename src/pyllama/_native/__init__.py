"""The C boundary: cffi's binding of llama.h, and the guard shim. For pyllama's modules alone."""

from __future__ import annotations

import os
import sys

SPINCOUNT = "1000"
"""How often a thread that waits for the others of a computation checks for them before it sleeps.

libgomp's own number, 300,000, is some milliseconds. On a machine that does other work the thread
that is waited for often does not run at the time, and the one that waits keeps the processor from
it.
"""

WAIT_POLICY = "active"
"""Has libgomp check as often if it has more threads than there are processors.

It keeps threads for each thread that computed, and by default checks a tenth as often from the
second on, even if the first does nothing more.
"""

if sys.platform == "linux" and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    # libgomp reads them once, as it is loaded. No child process is to inherit them.
    os.environ.update(GOMP_SPINCOUNT=SPINCOUNT, OMP_WAIT_POLICY=WAIT_POLICY)
    try:
        from pyllama._native import _binding  # noqa: F401
    finally:
        del os.environ["GOMP_SPINCOUNT"], os.environ["OMP_WAIT_POLICY"]
