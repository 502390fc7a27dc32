"""Prompts in blocks, the unit in which they are compared and kept; see docs/scheduling.md."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

BLOCK = 8
"""Tokens in a block. Smaller ones share more of a prompt, and take longer to compare."""

CHUNK = 64
"""Tokens computed at once, a number of blocks: calls end at its multiples, counted from 0."""

DEVICE_CHUNK = 512
"""The same where bytes need not stay: a GPU computes many tokens in the time of a few."""


def longest_call(chunk: int) -> int:
    """Tokens in the longest call of a prompt: a chunk and a last piece that is worth no call."""
    return chunk + chunk // 2


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
    """How many of its blocks need not be computed.

    The last token must be, for its logits, and not alone: attention of a single token is computed
    in another way than that of several, and gives other bits.
    """
    return max(0, len(prompt) - 2) // BLOCK
