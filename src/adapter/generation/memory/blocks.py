"""Prompts in blocks, the unit in which they are compared and cached; see docs/scheduling.md."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

BLOCK = 8
"""Tokens in a block. Smaller blocks share more of a prompt, but take longer to compare."""

_BLOCK_BYTES = BLOCK * np.dtype(np.int32).itemsize

CHUNK = 64
"""Tokens that are computed at once, a whole number of blocks. Calls end at multiples of it, counted
from 0. The last call of a prompt may have half a chunk more, since a short call takes longer per
token.
"""

DEVICE_CHUNK = 512
"""The same on a GPU, which computes many tokens in the time of a few."""

LEAST_LEFT = 8
"""The fewest tokens of a prompt that are computed. The last one is needed for its logits, and
kernels compute fewer tokens than this differently, with other bits.
"""

BlockHashes = tuple[bytes, ...]
"""A hash for each whole block of a prompt. It covers the block and all that comes before it."""


def block_hashes(prompt: Sequence[int], known: BlockHashes = ()) -> BlockHashes:
    """The hashes of a prompt's whole blocks. Equal hashes stand for equal beginnings.

    Args:
        known: the hashes of its first blocks.
    """
    done = len(known) * BLOCK
    data = np.asarray(prompt[done:], dtype=np.int32).tobytes()
    digest = known[-1] if known else b""
    hashes = [*known]
    for begin in range(0, len(data) - _BLOCK_BYTES + 1, _BLOCK_BYTES):
        block = data[begin : begin + _BLOCK_BYTES]
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
    """The most tokens that the last call of a prompt has."""
    return chunk + chunk // 2


def call_end(n_tokens: int, begin: int, chunk: int) -> int:
    """Where a call ends that begins at a position of a prompt."""
    if n_tokens - begin <= longest_call(chunk):
        return n_tokens
    return begin - begin % chunk + chunk


def last_border(n_tokens: int) -> int:
    """Where the last call begins if a prompt is computed from its first token on."""
    return max(0, n_tokens - longest_call(CHUNK) + CHUNK - 1) // CHUNK * CHUNK
