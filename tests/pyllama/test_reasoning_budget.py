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


# Tags that other tokens spell, as under a grammar


def test_a_part_of_the_end_is_completed(tiny):
    told = [*START, OTHER, END[0]]
    assert written(tiny, budget_of(tiny, 2), told, 3) == [END[1], OTHER, OTHER]


@pytest.fixture
def joined(write_tiny_model):
    """A vocabulary with tokens of several characters, which can be spelled by their letters."""
    path = write_tiny_model(user_defined_tokens=("<t>", "</t>", "</", "t>!"))
    with pyllama.Model(path) as model:
        yield model


def tagged(model, budget, **changes):
    [start], [end] = (spelled(model, text) for text in ("<t>", "</t>"))
    arguments = {"start": [start], "ends": [[end]], "forced": [end], "budget": budget, **changes}
    return ReasoningBudgetSampler(model.vocab, **arguments)


def spelled(model, text):
    return model.vocab.tokenize(text, add_special=False, parse_special=True)


def letters(model, text):
    return [token for letter in text for token in spelled(model, letter)]


def goes_on(model, sampler, told, count):
    """The text that follows, where the model would write b for ever."""
    chain = SamplerChain([sampler, Sampler.greedy()])
    for token in told:
        chain.accept(token)
    text = b""
    for _ in range(count):
        logits = np.zeros(model.vocab.n_tokens, dtype=np.float32)
        logits[spelled(model, "b")] = 9
        token = chain.apply(Candidates(logits)).token
        chain.accept(token)
        text += model.vocab.token_to_piece(token)
    return text.decode()


def left(model, sampler, ruled_out):
    """The texts that a sampler leaves, where some tokens are ruled out already."""
    logits = np.zeros(model.vocab.n_tokens, dtype=np.float32)
    logits[ruled_out] = -np.inf
    found = sampler.apply(Candidates(logits))
    possible = found.id[found.logit > -np.inf]
    return {model.vocab.token_to_piece(int(token)) for token in possible}


def test_tags_are_known_however_they_are_spelled(joined):
    told = letters(joined, "<t>aa")
    assert goes_on(joined, tagged(joined, 3), told, 3) == "b</t>b"
    told = letters(joined, "<t>a</t>")
    assert goes_on(joined, tagged(joined, 9), told, 9) == "b" * 9


def test_an_end_that_was_begun_with_other_tokens_is_completed(joined):
    [half] = spelled(joined, "</")
    told = [*spelled(joined, "<t>"), half]
    assert goes_on(joined, tagged(joined, 1), told, 3).startswith(("t>b", "t>!"))


def test_another_spelling_is_forced_where_the_end_is_ruled_out(joined):
    sampler = tagged(joined, 0, counting=True)
    end = spelled(joined, "</t>")
    assert left(joined, sampler, []) == {b"</t>"}
    assert left(joined, sampler, end) == {b"<", b"</"}
    sampler.accept(spelled(joined, "</")[0])
    assert left(joined, sampler, end) == {b"t", b"t>!"}
    sampler.accept(spelled(joined, "t>!")[0])
    assert len(left(joined, sampler, end)) > 200


def test_where_the_end_cannot_come_nothing_is_forced(joined):
    sampler = tagged(joined, 0, counting=True)
    ruled_out = [spelled(joined, text)[0] for text in ("</t>", "</", "<")]
    assert len(left(joined, sampler, ruled_out)) > 200
    sampler.accept(spelled(joined, "b")[0])
    assert len(left(joined, sampler, [])) > 200


@pytest.mark.parametrize(
    ("told", "follows"),
    [("<t>", "b</t>b"), (" \n<t>", "b</t>b"), ("a<t>", "bbb"), ("<t>a</t><t>", "bbb")],
)
def test_only_what_begins_the_text_is_reasoning_if_there_is_none_later(joined, told, follows):
    sampler = tagged(joined, 1, once=True)
    assert goes_on(joined, sampler.clone(), spelled(joined, told), 3) == follows
    sampler.reset()
    assert goes_on(joined, sampler, spelled(joined, "<t>"), 3) == "b</t>b"
