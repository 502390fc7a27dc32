"""Prompts in blocks, the unit in which they are compared and kept; see docs/scheduling.md."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

BLOCK = 8
"""Tokens in a block. Smaller ones share more of a prompt, and take longer to compare."""

CHUNK = 64
"""Tokens computed at once, a number of blocks: calls end at its multiples, counted from 0. The last
call of a prompt has half a chunk more at the most, for a short one takes longer for each token."""

DEVICE_CHUNK = 512
"""The same on a GPU, which computes many tokens in the time of a few."""

LEAST_LEFT = 8
"""Tokens of a prompt that are computed at the least. The last one must be, for its logits, and
kernels compute fewer than these in another way than many, with other bits."""

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


def n_reusable(n_tokens: int) -> int:
    """How many blocks of a prompt need not be computed."""
    return max(0, n_tokens - LEAST_LEFT) // BLOCK


def longest_call(chunk: int) -> int:
    """How many tokens the last call of a prompt has at the most."""
    return chunk + chunk // 2


def call_end(n_tokens: int, begin: int, chunk: int) -> int:
    """Where the call of a prompt ends that begins somewhere."""
    if n_tokens - begin <= longest_call(chunk):
        return n_tokens
    return begin - begin % chunk + chunk


def last_border(n_tokens: int) -> int:
    """Where the last call begins of a prompt that is computed from its first token on."""
    return max(0, n_tokens - longest_call(CHUNK) + CHUNK - 1) // CHUNK * CHUNK
