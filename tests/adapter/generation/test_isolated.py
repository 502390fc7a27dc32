"""Generation with the real model: what a request asks for is what it gets, every time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from schedules import isolated_of

from adapter.errors import ContextTooLongError, InferenceError
from adapter.generation.request import Delta, GenerationRequest, GenerationResult
from adapter.generation.sampling import Sampling

pytestmark = pytest.mark.model

CONTEXT_LENGTH = 256


@pytest.fixture(scope="module")
def generator(smollm2):
    made = isolated_of(smollm2, context_length=CONTEXT_LENGTH)
    yield made
    made.close()


@pytest.fixture(scope="module")
def request_for(smollm2):
    def make(text: str, **changes) -> GenerationRequest:
        request = GenerationRequest(
            prompt=tuple(smollm2.vocab.tokenize(text)), max_tokens=12, sampling=Sampling(), seed=7
        )
        return replace(request, **changes)

    return make


def test_the_stream_adds_up_to_the_result(generator, request_for, smollm2):
    *deltas, result = generator.stream(request_for("Once upon a time"))

    assert isinstance(result, GenerationResult)
    assert all(isinstance(delta, Delta) for delta in deltas)
    assert "".join(delta.text for delta in deltas) == result.text
    assert sum((delta.token_ids for delta in deltas), ()) == result.token_ids
    assert result.completion_tokens == len(result.token_ids) == 12
    assert result.prompt_tokens == len(smollm2.vocab.tokenize("Once upon a time"))
    assert result.finish_reason == "length"
    assert smollm2.vocab.detokenize(result.token_ids) == result.text


def test_the_same_seed_gives_the_same_bytes_alone_and_among_others(generator, request_for):
    requests = [request_for(f"Count to {n}:", seed=n) for n in range(6)]
    alone = [generator.generate(request) for request in requests]
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(generator.generate, requests * 2))

    assert together == alone * 2
    assert len({result.text for result in alone}) > 1


def test_another_seed_gives_another_text(generator, request_for):
    texts = {generator.generate(request_for("The weather is", seed=n)).text for n in range(4)}
    assert len(texts) > 1


def test_temperature_zero_ignores_the_seed(generator, request_for):
    cold = Sampling(temperature=0.0)
    texts = {
        generator.generate(request_for("The sky is", sampling=cold, seed=n)).text for n in range(3)
    }
    assert len(texts) == 1


def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(generator, request_for):
    cold = Sampling(temperature=0.0)
    whole = generator.generate(request_for("1 2 3 4 5 6", sampling=cold))
    stop = whole.text[3:6]
    result = generator.generate(request_for("1 2 3 4 5 6", sampling=cold, stop=(stop,)))

    assert result.finish_reason == "stop"
    assert result.text == whole.text[: whole.text.index(stop)]
    assert result.completion_tokens < whole.completion_tokens


def test_the_end_of_turn_is_no_part_of_the_answer(generator, smollm2):
    prompt = "<|im_start|>user\nSay yes.<|im_end|>\n<|im_start|>assistant\n"
    tokens = tuple(smollm2.vocab.tokenize(prompt, parse_special=True))
    result = generator.generate(GenerationRequest(tokens, 100, Sampling(temperature=0.0), seed=0))

    assert result.finish_reason == "stop"
    assert "<|im_end|>" not in result.text
    assert not any(smollm2.vocab.is_eog(token) for token in result.token_ids)


def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers(generator, request_for):
    with pytest.raises(ContextTooLongError) as caught:
        generator.generate(request_for("x", prompt=(1,) * CONTEXT_LENGTH))
    assert (caught.value.actual, caught.value.max) == (CONTEXT_LENGTH, CONTEXT_LENGTH)


def test_the_answer_ends_where_the_context_does(generator, request_for):
    request = request_for("x", prompt=(1,) * (CONTEXT_LENGTH - 5), max_tokens=100)
    result = generator.generate(request)
    assert result.completion_tokens <= 5
    if result.completion_tokens == 5:
        assert result.finish_reason == "length"


def test_closing_a_stream_gives_its_context_back(generator, request_for):
    for _ in range(5):
        stream = generator.stream(request_for("Once", max_tokens=100))
        assert isinstance(next(stream), Delta)
        stream.close()
    assert generator.generate(request_for("Once")).completion_tokens == 12


def test_repeat_penalty_changes_the_text(generator, request_for):
    cold = Sampling(temperature=0.0)
    plain = generator.generate(request_for("a a a a a a a a", sampling=cold))
    penalised = generator.generate(
        request_for("a a a a a a a a", sampling=replace(cold, repeat_penalty=2.0))
    )
    assert plain.text != penalised.text


def test_a_failed_request_does_not_harm_the_next(generator, request_for):
    bad = request_for("x", prompt=(10**6,))
    with pytest.raises(InferenceError, match="1000000"):
        generator.generate(bad)
    assert generator.generate(request_for("Once")).completion_tokens == 12
