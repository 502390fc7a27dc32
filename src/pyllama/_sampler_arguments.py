"""Checks arguments of samplers; see ``_arguments``."""

from __future__ import annotations

from collections.abc import Iterable

from pyllama._arguments import INT32_MAX, UINT32_MAX, integer, real
from pyllama.vocab import Vocab

MAX_BREAKER = 40  # bytes; llama.cpp truncates longer names


def vocabulary(vocab: Vocab) -> Vocab:
    if not isinstance(vocab, Vocab):
        raise TypeError(f"vocab must be a pyllama.Vocab, got {vocab!r}")
    return vocab


def tokenizing(vocab: Vocab) -> Vocab:
    vocabulary(vocab)._require_tokenizer()
    return vocab


def seed(seed: int) -> int:
    return integer("seed", seed, 0, UINT32_MAX - 1)


def min_keep(min_keep: int) -> int:
    return integer("min_keep", min_keep, 0, INT32_MAX)


def bias(token: int, bias: float) -> float:
    return bias if bias == -float("inf") else real(f"biases[{token}]", bias, -1e9, 1e9)


def breakers(breakers: Iterable[str]) -> list[bytes]:
    if isinstance(breakers, str) or not isinstance(breakers, Iterable):
        raise TypeError(f"breakers must hold texts, got {breakers!r}")
    texts = []
    for text in breakers:
        if not isinstance(text, str):
            raise TypeError(f"breakers must hold texts, got {text!r}")
        data = text.encode("utf-8", "replace")
        if not 0 < len(data) <= MAX_BREAKER or b"\0" in data:
            raise ValueError(f"breakers must hold texts of 1 to {MAX_BREAKER} bytes, got {text!r}")
        texts.append(data)
    return texts
