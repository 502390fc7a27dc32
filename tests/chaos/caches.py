"""Every type of keys and values with everything that a memory does, in every architecture."""

from __future__ import annotations

import forked
import synthetic
from caches_child import ARCHITECTURES, HEADS, path_of
from instruments import Asked, Told, checking_allocator


def run(asked: Asked) -> Told:
    for architecture in ARCHITECTURES:
        for n_embd in HEADS:
            path = path_of(asked.folder, architecture, n_embd)
            synthetic.write_model(path, architecture=architecture, n_embd=n_embd)
    return forked.run(asked, "caches_child.py", checking_allocator())
