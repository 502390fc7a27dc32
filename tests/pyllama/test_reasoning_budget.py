"""Reasoning that ends when its budget is spent."""

from __future__ import annotations

import numpy as np
import pytest

import pyllama
from pyllama import Candidates, ReasoningBudgetSampler, Sampler, SamplerChain

START, OTHER, END, ANSWER = (30, 31), 40, (50, 51), 60


def budget_of(tiny, budget, **changes):
    arguments = {"start": START, "ends": [END], "forced": END, "budget": budget, **changes}
    return ReasoningBudgetSampler(tiny.vocab, **arguments)


def choice(chain, tiny):
    """What a chain chooses where OTHER is likeliest."""
    logits = np.zeros(tiny.vocab.n_tokens, dtype=np.float32)
    logits[OTHER] = 9
    return chain.apply(Candidates(logits)).token


def written(tiny, sampler, told, count):
    """The tokens that follow on what was told, where the model would write OTHER for ever."""
    chain = SamplerChain([sampler, Sampler.greedy()])
    for token in told:
        chain.accept(token)
    tokens = []
    for _ in range(count):
        tokens.append(choice(chain, tiny))
        chain.accept(tokens[-1])
    return tokens


@pytest.mark.parametrize("budget", [0, 1, 3])
def test_it_counts_from_the_start_and_forces_the_end(tiny, budget):
    tokens = written(tiny, budget_of(tiny, budget), START, budget + 4)
    assert tokens == [OTHER] * budget + [*END, OTHER, OTHER]


def test_reasoning_that_has_begun_is_counted_at_once(tiny):
    assert written(tiny, budget_of(tiny, 2, counting=True), [], 5) == [OTHER] * 2 + [*END, OTHER]


def test_without_a_start_nothing_is_forced(tiny):
    assert written(tiny, budget_of(tiny, 1), [START[0], OTHER], 5) == [OTHER] * 5


def test_an_end_of_its_own_stops_the_counting(tiny):
    assert written(tiny, budget_of(tiny, 4), [*START, OTHER, *END], 6) == [OTHER] * 6
    sampler = budget_of(tiny, 4, ends=[END, (ANSWER,)])
    assert written(tiny, sampler, [*START, OTHER, ANSWER], 6) == [OTHER] * 6


def test_later_reasoning_has_a_budget_of_its_own(tiny):
    told = [*START, OTHER, *END, ANSWER, *START]
    assert written(tiny, budget_of(tiny, 2), told, 5) == [OTHER] * 2 + [*END, OTHER]


def test_it_waits_for_the_end_of_a_character(tiny):
    first, second = tiny.vocab.tokenize("\u00e9", add_special=False)  # two bytes, a token each
    assert written(tiny, budget_of(tiny, 1), [*START, first], 1) == [OTHER]
    # llama.cpp looks at each token by itself: only one that is whole characters ends the wait.
    assert written(tiny, budget_of(tiny, 1), [*START, first, second], 4) == [OTHER, *END, OTHER]


def test_a_reset_waits_for_a_start(tiny):
    sampler = budget_of(tiny, 0, counting=True)
    assert written(tiny, sampler.clone(), [], 1) == [END[0]]
    sampler.reset()
    assert written(tiny, sampler, [], 2) == [OTHER] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": []}, "start must hold at least one token"),
        ({"forced": []}, "forced must hold at least one token"),
        ({"ends": []}, "at least one sequence"),
        ({"ends": [[]]}, "ends must hold at least one token"),
        ({"budget": -1}, "budget"),
        ({"start": [10**6]}, "start"),
    ],
)
def test_what_it_refuses(tiny, changes, message):
    with pytest.raises(ValueError, match=message):
        budget_of(tiny, **{"budget": 1, **changes})


def test_a_model_without_tokenizer_is_refused(write_tiny_model):
    with (
        pyllama.Model(write_tiny_model(tokenizer="none")) as model,
        pytest.raises(pyllama.TokenizationError),
    ):
        ReasoningBudgetSampler(model.vocab, start=[1], ends=[[2]], forced=[2], budget=1)
