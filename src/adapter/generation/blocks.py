"""Prompts in blocks: the unit in which they are computed, compared and kept.

Computing a prompt in blocks of one size, counted from position 0, gives the same keys and values
to the byte, wherever the computation was begun; see docs/scheduling.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

BLOCK = 64
"""Tokens in a block. Smaller ones are shared more often, larger ones are computed faster."""

BlockHashes = tuple[bytes, ...]
"""A hash for each whole block of a prompt, of it and of all that comes before it."""


def block_hashes(prompt: Sequence[int]) -> BlockHashes:
    """The hashes of a prompt's whole blocks. Equal ones stand for equal beginnings."""
    tokens = np.asarray(prompt, dtype=np.int32)
    digest = b""
    hashes = []
    for begin in range(0, len(prompt) - BLOCK + 1, BLOCK):
        block = tokens[begin : begin + BLOCK].tobytes()
        digest = hashlib.blake2b(digest + block, digest_size=16).digest()
        hashes.append(digest)
    return tuple(hashes)


def n_shared(one: BlockHashes, other: BlockHashes) -> int:
    """How many blocks two prompts have in common, from the first on."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[middle - 1] == other[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low


def n_reusable(prompt: Sequence[int]) -> int:
    """How many of its blocks need not be computed: one token at least must be, for its logits."""
    return (len(prompt) - 1) // BLOCK
