"""Schedulers and prompts, for tests of what requests do to each other."""

from __future__ import annotations

import random

import pyllama
from adapter.generation.scheduler import Scheduler

CONTEXT_LENGTH = 2048


def scheduler_of(model, **changes):
    options = {
        "context_length": CONTEXT_LENGTH,
        "n_threads": 1,
        "n_cells": 16 * 1024,
        "max_sequences": 8,
        "max_queued": 1000,
        "cache_bytes": 2**26,
        "reproducible": True,
    }
    return Scheduler(model, **{**options, **changes})


def tokens(seed, count):
    chosen = random.Random(seed)
    return tuple(chosen.randrange(5, 260) for _ in range(count))


def sizes_of_calls(monkeypatch):
    """A list that grows by the number of tokens of each call from now on."""
    sizes = []
    decode = pyllama.Context.decode
    monkeypatch.setattr(
        pyllama.Context,
        "decode",
        lambda context, batch: decode(context, batch) or sizes.append(len(batch)),
    )
    return sizes
