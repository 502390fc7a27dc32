"""Schedulers and prompts, for tests of what requests do to each other."""

from __future__ import annotations

import random
from dataclasses import replace

import synthetic

import pyllama
from adapter.generation import exactness
from adapter.generation.request import GenerationRequest
from adapter.generation.sampling import Constraint, Sampling
from adapter.generation.scheduler import Scheduler

CONTEXT_LENGTH = 2048

AS_ON_GPUS = {"shared_memory": True, "reproducible": False, "chunk": 512}
"""Options of a scheduler on a CPU that computes as one on a GPU does."""


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


def isolated_of(model, *, context_length=CONTEXT_LENGTH, **changes):
    """One that computes each request by itself, from nothing."""
    options = {"n_cells": context_length, "max_sequences": 1, "cache_bytes": 0, "isolated": True}
    return scheduler_of(model, context_length=context_length, **{**options, **changes})


def tokens(seed, count):
    chosen = random.Random(seed)
    return tuple(chosen.randrange(5, 260) for _ in range(count))


def sizes_of_calls(monkeypatch):
    """A list that grows by the number of tokens of each call from now on, or of what joins it."""
    sizes = []
    decode, add = pyllama.Context.decode, pyllama.Generation.add

    def joining(generation, seq_id, tokens, *args, **options):
        add(generation, seq_id, tokens, *args, **options)
        sizes.append(len(tokens))

    monkeypatch.setattr(
        pyllama.Context,
        "decode",
        lambda context, batch: decode(context, batch) or sizes.append(len(batch)),
    )
    monkeypatch.setattr(pyllama.Generation, "add", joining)
    return sizes


def any_batch_is_fast(monkeypatch, *, exact=True):
    """Have each batch take as long as any other, so that the largest are best.

    :param exact: whether they must keep the bytes.
    """
    monkeypatch.setattr(exactness.Trial, "seconds", lambda *_: 1.0)
    if not exact:
        tried = exactness.tried_sizes
        monkeypatch.setattr(
            exactness, "tried_sizes", lambda context, **_: tried(context, exact=exact)
        )


def on_gpu():
    """Whether the tests compute on a GPU, where a batch may change the bytes."""
    chosen = pyllama.backend_devices()
    found = pyllama.devices() if chosen is None else chosen
    return any(device.type in ("gpu", "igpu") for device in found)


def request_of(prompt, *, max_tokens=12, seed=1, **changes):
    return GenerationRequest(tuple(prompt), max_tokens, Sampling(temperature=1.0), seed, **changes)


FORCING = Constraint('root ::= "so: " [a-z]+ (", and so on: " [a-z]+)+')
"""A grammar with texts that it forces."""


def mixed_requests(seed, count, prompt_of, *, longest):
    """Requests of unequal lengths; some have text that a grammar forces.

    The others have log-probabilities, in which every bit of the logits shows.

    Args:
        prompt_of: makes the prompt of a request, from what chooses at random and its number.
        longest: the most tokens of an answer, and one more.
    """
    chosen = random.Random(seed)
    made = []
    for index in range(count):
        constraint = chosen.choice([FORCING, None, None])
        made.append(
            request_of(
                prompt_of(chosen, index),
                max_tokens=chosen.randrange(1, longest),
                seed=index,
                constraint=constraint,
                logprobs=1 if constraint is None else None,
            )
        )
    return made


def endless(seed):
    """A request that ends where the context does, unless somebody stops it."""
    never_ends = Sampling(logit_bias=dict.fromkeys((synthetic.EOS, synthetic.IM_END), -100.0))
    return GenerationRequest(tokens(seed, 10), 10**6, never_ends, seed)


def raising(error):
    def fail(*_args, **_options):
        raise error

    return fail


def alone(model, request):
    """What a request gives with nothing before it and nothing beside it."""
    scheduler = scheduler_of(model)
    try:
        return scheduler.generate(request)
    finally:
        scheduler.close()


def same(result, other):
    return replace(result, cache_read_tokens=0) == replace(other, cache_read_tokens=0)
