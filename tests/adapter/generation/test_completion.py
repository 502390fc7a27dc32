"""From tokens to text: stop texts, special tokens, and the log-probabilities of what is shown."""

from __future__ import annotations

import numpy as np
import pytest

from adapter.generation.completion import Completion, token_logprob
from adapter.generation.request import GenerationRequest, TokenLogprob
from adapter.generation.sampling import Sampling


def grown(model, tokens, *, max_tokens=100, logprobs=None, **changes):
    """The deltas and the result of a completion of these tokens."""
    request = GenerationRequest((1,), max_tokens, Sampling(), seed=0, logprobs=logprobs, **changes)
    completion = Completion(model.vocab, request, max_tokens)
    deltas = []
    for token in tokens:
        logprob = None if logprobs is None else TokenLogprob(token, -1.0)
        deltas.append(completion.push([token], logprob=logprob))
        if completion.finish_reason is not None:
            break
    last, result = completion.finish()
    return [delta for delta in [*deltas, last] if delta is not None], result


def letters(model, text):
    return [token for one in text for token in model.vocab.tokenize(one, add_special=False)]


def test_it_ends_with_the_models_end_of_turn(tiny):
    tokens = letters(tiny, "abc")
    deltas, result = grown(tiny, [*tokens, tiny.vocab.eos, *tokens])
    assert (result.text, result.finish_reason) == ("abc", "stop")
    assert result.token_ids == tuple(tokens)
    assert "".join(delta.text for delta in deltas) == "abc"


def test_it_ends_at_max_tokens(tiny):
    _, result = grown(tiny, letters(tiny, "abcdef"), max_tokens=3)
    assert (result.text, result.finish_reason, result.completion_tokens) == ("abc", "length", 3)


def test_a_stop_text_that_spans_tokens_is_never_shown(tiny):
    deltas, result = grown(tiny, letters(tiny, "abENDcd"), stop=("END",))
    assert [delta.text for delta in deltas if delta.text] == ["a", "b"]
    assert (result.text, result.finish_reason) == ("ab", "stop")
    assert result.completion_tokens == 5  # what it took to find it


def test_what_only_began_like_a_stop_text_is_shown(tiny):
    deltas, result = grown(tiny, [*letters(tiny, "abENx"), tiny.vocab.eos], stop=("END",))
    assert [delta.text for delta in deltas] == ["a", "b", "ENx"]
    assert result.text == "abENx"


def test_a_character_in_two_tokens_comes_whole(tiny):
    tokens = letters(tiny, "é")
    assert len(tokens) == 2
    deltas, result = grown(tiny, [*tokens, tiny.vocab.eos])
    assert [(delta.text, delta.token_ids) for delta in deltas] == [("é", tuple(tokens))]
    assert result.text == "é"


def test_half_a_character_at_the_end_is_replaced(tiny):
    _, result = grown(tiny, letters(tiny, "é")[:1], max_tokens=1)
    assert result.text == "\ufffd"


def test_special_tokens_are_shown_where_they_are_asked_for(tiny):
    [special] = tiny.vocab.tokenize("<|im_start|>", add_special=False, parse_special=True)
    tokens = [*letters(tiny, "a"), special, *letters(tiny, "b"), tiny.vocab.eos]
    assert grown(tiny, tokens)[1].text == "ab"
    shown = grown(tiny, tokens, preserved_tokens=frozenset({special}))[1]
    assert shown.text == "a<|im_start|>b"


# Log-probabilities


def test_each_token_of_the_text_has_one(tiny):
    tokens = [*letters(tiny, "abcé"), tiny.vocab.eos]
    deltas, result = grown(tiny, tokens, logprobs=0)
    assert [one.token for one in result.logprobs] == tokens[:-1]
    assert result.logprobs_complete
    assert [one for delta in deltas for one in delta.logprobs] == list(result.logprobs)


def test_a_stop_texts_tokens_have_none(tiny):
    tokens = letters(tiny, "abENDcd")
    deltas, result = grown(tiny, tokens, stop=("END",), logprobs=0)
    assert [one.token for one in result.logprobs] == tokens[:2]
    assert result.logprobs_complete
    assert [one for delta in deltas for one in delta.logprobs] == list(result.logprobs)


def test_a_token_in_which_a_stop_text_begins_has_none(tiny):
    tokens = tiny.vocab.tokenize("a hello", add_special=False)
    tokens += tiny.vocab.tokenize(" world", add_special=False)
    assert b" world" in [tiny.vocab.token_to_piece(token) for token in tokens]
    deltas, result = grown(tiny, tokens, stop=("orl",), logprobs=0)
    assert result.text == "a hello w"
    assert b" world" not in [tiny.vocab.token_to_piece(one.token) for one in result.logprobs]
    assert not result.logprobs_complete
    assert not deltas[-1].logprobs_complete
    assert [one for delta in deltas for one in delta.logprobs] == list(result.logprobs)


def test_a_token_is_told_of_once_its_text_is_shown_whole(tiny):
    """The end of " world" is held back: it could begin the stop text."""
    tokens = tiny.vocab.tokenize(" world", add_special=False)
    [token] = tokens
    deltas, result = grown(
        tiny, [token, *letters(tiny, "d!")], stop=("ddd",), logprobs=0, max_tokens=3
    )
    assert deltas[0].text == " worl"
    assert deltas[0].logprobs == ()
    assert result.logprobs[0].token == token
    assert [one for delta in deltas for one in delta.logprobs] == list(result.logprobs)


@pytest.mark.parametrize("n_top", [0, 1, 5, 300])
def test_log_probabilities_are_the_log_softmax_of_the_logits(n_top):
    random = np.random.default_rng(n_top)
    logits = random.normal(0, 8, 300).astype(np.float32)
    logits[random.integers(0, 300, 30)] = -np.inf
    logits[random.integers(0, 300, 8)] = logits.max()  # ties, more than are told of
    probabilities = np.exp(logits.astype(np.float64) - logits.max())
    probabilities /= probabilities.sum()
    token = int(logits.argmax())
    told = token_logprob(logits, token, n_top)
    assert np.isclose(np.exp(told.logprob), probabilities[token])
    assert [token for token, _ in told.top] == sorted(
        range(300), key=lambda token: (-probabilities[token], token)
    )[:n_top]
    assert np.allclose(
        [np.exp(logprob) for _, logprob in told.top], np.sort(probabilities)[::-1][:n_top]
    )
