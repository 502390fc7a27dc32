"""What a grammar forces is written without sampling, as the tokenizer has it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from schedules import isolated_of

import pyllama
from adapter.generation.answer_writer import LONGEST_RUN, AnswerWriter
from adapter.generation.request import Delta, GenerationRequest, GenerationResult
from adapter.generation.sampling import Constraint, Sampling
from adapter.generation.scheduler import Scheduler

pytestmark = pytest.mark.model

MARKED = """root ::= "[[ ## thing ## ]]\\n" [a-z ]{3,12} "\\n\\n[[ ## urgency ## ]]\\n" """ + (
    """("low" | "high") "\\n\\n[[ ## completed ## ]]" """
)


@pytest.fixture(scope="module")
def generator(smollm2) -> Iterator[Scheduler]:
    made = isolated_of(smollm2, context_length=256)
    yield made
    made.close()


@pytest.fixture
def sampled(monkeypatch) -> list[int]:
    """The tokens that were sampled."""
    found = []
    sample_each = pyllama.sample_each

    def noting(context, chains, *, n_threads):
        sampled = sample_each(context, chains, n_threads=n_threads)
        found.extend(sampled.values())
        return sampled

    monkeypatch.setattr(pyllama, "sample_each", noting)
    return found


def marked(smollm2, **changes) -> GenerationRequest:
    prompt = tuple(smollm2.vocab.tokenize("The lift is broken. What is it, and is it urgent?\n"))
    request = GenerationRequest(
        prompt, 64, Sampling(temperature=0), 1, constraint=Constraint(MARKED)
    )
    return replace(request, **changes)


def test_forced_text_is_written_without_sampling(generator, smollm2, sampled):
    result = generator.generate(marked(smollm2))
    beginning, thing, rest = re.split(r"(?<=ing ## ]]\n)([a-z ]+)", result.text)
    assert beginning == "[[ ## thing ## ]]\n"
    assert 3 <= len(thing) <= 12
    assert rest.startswith("\n\n[[ ## urgency ## ]]\n")
    assert rest.endswith("\n\n[[ ## completed ## ]]")
    assert result.finish_reason == "stop"
    n_beginning = len(smollm2.vocab.tokenize(beginning)) - 1
    assert result.token_ids[:n_beginning] == tuple(smollm2.vocab.tokenize(beginning))[:-1]
    assert len(sampled) < result.completion_tokens * 2 / 3


def test_the_stream_adds_up(generator, smollm2):
    *deltas, result = generator.stream(marked(smollm2))
    assert isinstance(result, GenerationResult)
    assert all(isinstance(delta, Delta) for delta in deltas)
    assert "".join(delta.text for delta in deltas) == result.text
    assert sum((delta.token_ids for delta in deltas), ()) == result.token_ids


@pytest.mark.parametrize("max_tokens", range(1, 20))
def test_max_tokens_is_kept_to(generator, smollm2, max_tokens):
    whole = generator.generate(marked(smollm2)).token_ids
    result = generator.generate(marked(smollm2, max_tokens=max_tokens))
    assert result.token_ids == whole[:max_tokens]
    assert result.finish_reason == "length"


@pytest.mark.parametrize(("stop", "text"), [("thing", "[[ ## "), ("\n[[", None), ("ency #", None)])
def test_a_stop_text_within_what_is_forced_ends_it(generator, smollm2, stop, text):
    whole = generator.generate(marked(smollm2)).text
    *deltas, result = generator.stream(marked(smollm2, stop=(stop,)))
    assert result.text == (text or whole[: whole.index(stop)])
    assert "".join(delta.text for delta in deltas) == result.text
    assert result.finish_reason == "stop"


def test_log_probabilities_are_of_sampled_tokens(generator, smollm2, sampled):
    result = generator.generate(marked(smollm2, logprobs=1))
    assert len(result.logprobs) == result.completion_tokens == len(sampled) - 1


def test_a_token_that_is_ruled_out_is_not_forced(generator, smollm2):
    (thing,) = smollm2.vocab.tokenize(" thing")
    assert thing in generator.generate(marked(smollm2)).token_ids
    banned = Sampling(temperature=0, logit_bias={thing: -100.0})
    result = generator.generate(marked(smollm2, sampling=banned))
    assert result.text.startswith("[[ ## thing ## ]]")
    assert thing not in result.token_ids


def test_the_text_of_a_control_token_is_left_to_the_model(generator, smollm2):
    end = smollm2.vocab.token_to_piece(smollm2.vocab.eos, special=True).decode()
    bound = Constraint(f'root ::= "the mark {end} ends it" [.!]')
    writer = AnswerWriter(smollm2.vocab, marked(smollm2, constraint=bound), 64)
    assert writer.tokens == []
    writer.close()


def test_a_long_forced_text_comes_in_several_runs(generator, smollm2, sampled):
    text = " ".join(f"item {number}" for number in range(40))
    bound = Constraint(f'root ::= "{text}"')
    result = generator.generate(marked(smollm2, max_tokens=200, constraint=bound))
    assert result.text == text
    assert len(sampled) <= 2 + result.completion_tokens / LONGEST_RUN


def test_a_turns_stop_ends_an_answer_only_where_the_grammar_does(generator, smollm2):
    name = '"\\nUser: "'
    constraint = Constraint(f'root ::= "a: x" {name} [a-z] "\\nb: " [0-9] ({name} [a-z]{{9}})?')
    asked = marked(smollm2, constraint=constraint)
    whole, turn, stop = (
        generator.generate(request).text
        for request in (
            asked,
            replace(asked, turn_stops=("\nUser: ",)),
            replace(asked, stop=("\nUser: ",)),
        )
    )
    assert re.fullmatch(r"a: x\nUser: [a-z]\nb: [0-9]\nUser: [a-z]{9}", whole)
    assert turn == whole[: whole.rindex("\nUser: ")]
    assert stop == "a: x"
