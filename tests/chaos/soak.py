"""A soak: 10,000 requests on one pool, and 200 pools made and dropped, in one process.

What must hold: after the first 1,000 requests, and the first 100 pools, resident memory stays
within 2 %, and a pool that nobody refers to frees its model.
"""

from __future__ import annotations

import json

import synthetic
from instruments import Asked, Failure, Told, command, run_child

REQUESTS, DROPS = 10_000, 200


def run(asked: Asked) -> Told:
    synthetic.write_model(asked.folder / "small.gguf", n_ctx_train=512)
    # Its weights are most of what a process of this kind takes, so that one kept is seen.
    sizes = {"n_embd": 256, "n_layer": 4, "n_ff": 1024, "n_head": 4}
    synthetic.write_model(asked.folder / "large.gguf", **sizes)
    n_requests = REQUESTS if asked.count is None else asked.count
    n_drops = max(1, n_requests * DROPS // REQUESTS)
    arguments = [asked.folder, asked.seed, asked.seconds, n_requests, n_drops]
    ended = run_child(command("soak_child.py", *arguments), 2 * asked.seconds + 180)
    if ended.status != 0:
        return Told(0, [Failure(0, ended.words, ended.err[-6000:])])
    said = json.loads(ended.out.splitlines()[-1])
    told = Told(said["done"])
    told.notes.update(said["notes"])
    for wrong in said["wrong"]:
        told.failures.append(Failure(0, wrong, ended.err[-3000:]))
    return told
