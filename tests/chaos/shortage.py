"""Everything that takes memory, with little of it left: RLIMIT_AS in a child of its own."""

from __future__ import annotations

import forked
import numpy as np
import synthetic
from instruments import Asked, Told, checking_allocator
from shortage_child import ARCHITECTURES, LORA, path_of
from synthetic_files import write_lora


def run(asked: Asked) -> Told:
    for architecture in ARCHITECTURES:
        synthetic.write_model(path_of(asked.folder, architecture), architecture=architecture)
    factors = np.ones((4, 64), np.float32), np.ones((64, 4), np.float32)
    write_lora(asked.folder / LORA, {"blk.0.attn_q.weight": factors}, alpha=1.0)
    # Half of the cases under the allocator that looks for a damaged heap.
    checked = asked.seed % 2 == 0
    return forked.run(asked, "shortage_child.py", checking_allocator() if checked else {})
