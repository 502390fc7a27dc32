"""Answers that continue without the interpreter: the same as token by token."""

from __future__ import annotations

from random import Random

import pytest
from schedules import request_of, same, scheduler_of, tokens

import pyllama
from adapter.generation import scheduler
from adapter.generation.request import GenerationRequest
from adapter.generation.sampling import Constraint, Sampling

LETTERS = "ab\u00e9"


@pytest.fixture
def both(tiny, monkeypatch):
    """Schedulers that sample one token in a step, and whose answers go on by themselves."""
    made = []
    for seconds in (0.0, 60.0):
        monkeypatch.setattr(scheduler, "RUN_SECONDS", seconds)
        options = {"context_length": 256, "n_cells": 2048, "chunk": 512}
        made.append(scheduler_of(tiny, shared_memory=True, reproducible=False, **options))
    yield made
    for one in made:
        one.close()


def test_stop_texts_end_an_answer_wherever_a_call_ends(tiny, both):
    """What was sampled after one changes nothing, such as which texts were shortened."""
    (end,) = tiny.vocab.tokenize("]", add_special=False)
    never_ends = Sampling(temperature=1.0, logit_bias={end: -100.0})
    for seed in range(100):
        chosen = Random(seed)
        request = GenerationRequest(
            tokens(seed, 5),
            chosen.choice([6, 7]),
            never_ends,
            seed,
            stop=("".join(chosen.choices(LETTERS, k=2)),),
            constraint=Constraint(f'root ::= "[" [{LETTERS}]* "]"'),
            completes=True,
        )
        one_by_one, continuing = (each.generate(request) for each in both)
        assert same(one_by_one, continuing)


@pytest.mark.parametrize("stop", ["\0", "a\0", "\ud800"])
def test_odd_stop_texts(both, stop):
    request = request_of(tokens(1, 9), max_tokens=60, stop=(stop,))
    one_by_one, continuing = (each.generate(request) for each in both)
    assert same(one_by_one, continuing)


@pytest.mark.parametrize("flash_attn", ["disabled", "enabled"])
def test_answers_go_on_by_themselves_with_flash_attention_alone(tiny, flash_attn, monkeypatch):
    """On CUDA a prompt's call that is repeated may fail without it."""
    made, make = [], pyllama.Generation.__init__

    def making(generation, context, **options):
        made.append(context)
        make(generation, context, **options)

    monkeypatch.setattr(pyllama.Generation, "__init__", making)
    params = pyllama.ContextParams(flash_attn=flash_attn)
    options = {"context_length": 256, "n_cells": 2048, "chunk": 512, "context": params}
    made_here = scheduler_of(tiny, shared_memory=True, reproducible=False, **options)
    assert made_here.generate(request_of(tokens(1, 40), max_tokens=9)).completion_tokens > 0
    made_here.close()
    assert bool(made) is (flash_attn == "enabled")
    assert all(context.flash_attn for context in made)
