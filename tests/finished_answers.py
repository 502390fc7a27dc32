"""Answer random signatures with random budgets, and fail on the first that was not completed.

    python tests/finished_answers.py --cases 10000

Each case is a signature of random types (tests/answer_types.py) in one of the forms of answer, a
temperature from 0 to 1.5 and a max_tokens from the fewest that complete an answer on. A tiny model
with random weights answers: nothing but the grammar ends its texts, or that they repeat themselves.
The answer must have been completed, must be parsed, and every value must be of its type. Requests
are computed together, and the first of each batch once more alone: the bytes must be the same.
Another --seed has other cases.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dspy
import pydantic
import synthetic
from answer_types import is_checked_after, signatures
from dspy.utils.exceptions import AdapterParseError
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import pyllama
from adapter import LlamaCppAdapter
from adapter.generation.request import GenerationRequest, GenerationResult
from adapter.generation.sampling import Constraint, Sampling, fewest_tokens
from adapter.generation.scheduler import Scheduler
from adapter.grammar.schema.annotations import annotated
from adapter.signatures.answer_grammar import CHAT, FIELD_LINES, JSON, XML, Form, answer_grammar
from adapter.signatures.constrained_adapters import constrained
from adapter.signatures.field_values import constrained_values
from adapter.signatures.parsing import parse_completion
from adapter.signatures.typed_values import MISFITS

FORMS: dict[str, tuple[Form, Any]] = {
    "LlamaCppAdapter": (FIELD_LINES, LlamaCppAdapter()),
    "ChatAdapter": (CHAT, constrained(dspy.ChatAdapter())),
    "JSONAdapter": (JSON, constrained(dspy.JSONAdapter())),
    "XMLAdapter": (XML, constrained(dspy.XMLAdapter())),
}
TEMPERATURES = (0.0, 0.4, 0.7, 1.0, 1.5)
LONGEST_ANSWER = 1000


@dataclass(frozen=True)
class Case:
    """A request, and what its answer must be."""

    form: str
    signature: Any
    request: GenerationRequest
    fewest: int
    is_checked: bool
    """Whether values were bound whole, so that none can be invalid."""
    known: dict[str, dict[str, Any]]
    """What the grammar was told of free texts."""


def case_of(vocab: pyllama.Vocab, signature: Any, number: int) -> Case | None:
    """A case; None for a signature whose shortest answer is too long."""
    chosen = random.Random(number)
    name = chosen.choice([*FORMS])
    known = known_of(signature, chosen) if name == "LlamaCppAdapter" else {}
    grammar = answer_grammar(signature, FORMS[name][0], known)
    assert grammar is not None
    constraint = Constraint(grammar.gbnf)
    fewest = fewest_tokens(vocab, constraint)
    assert fewest is not None, grammar.gbnf
    if fewest > LONGEST_ANSWER:
        return None
    more = chosen.choice((0, 0, 1, 2, 3, chosen.randrange(20), chosen.randrange(150)))
    request = GenerationRequest(
        prompt=tuple(chosen.randrange(5, 260) for _ in range(chosen.randrange(1, 40))),
        max_tokens=max(1, fewest + more),
        sampling=Sampling(temperature=chosen.choice(TEMPERATURES), top_k=chosen.choice((0, 40))),
        seed=number % 2**32,
        constraint=constraint,
        completes=True,
        logprobs=chosen.choice((None, None, None, 0)),
    )
    if chosen.random() < 0.5:  # with room for a text to repeat itself
        longer = request.max_tokens + chosen.choice((0, 300))
        same = {vocab.tokenize(chosen.choice("axo"), add_special=False)[-1]: 20.0}
        sampling = replace(request.sampling, logit_bias=same)
        request = replace(request, max_tokens=longer, sampling=sampling, ends_repetitions=True)
    is_checked = not grammar.unchecked and not any(
        map(is_checked_after, signature.output_fields.values())  # by a function of the user's
    )
    return Case(name, signature, request, fewest, is_checked, known)


def known_of(signature: Any, chosen: random.Random) -> dict[str, dict[str, Any]]:
    """What LlamaCppAdapter may know of each free text."""
    return {
        name: {
            "paragraph": chosen.random() < 0.7,
            "required": chosen.random() < 0.7,
            "below": chosen.random() < 0.2,
            "characters": chosen.choice((None, None, None, 1, 30, 600)),
            "unwritten": chosen.choice(((), (f"<{name}>", "[your", "<"))),
        }
        for name, field in signature.output_fields.items()
        if field.annotation is str and not field.metadata
    }


def check(case: Case, result: GenerationResult) -> None:
    """Raise AssertionError for an answer that is not whole, or not what its fields allow."""
    told = f"{case.form}, {case.request.max_tokens} tokens, at least {case.fewest}: {result.text!r}"
    assert result.finish_reason == "stop", f"cut: {told}\n{case.request.constraint}"
    assert result.completion_tokens <= case.request.max_tokens, told
    try:
        if case.form == "LlamaCppAdapter":
            answer = parse_completion(case.signature, result.text, is_bound=True)
        else:
            answer = FORMS[case.form][1].parse(case.signature, result.text)
    except AdapterParseError as error:
        if case.is_checked or not isinstance(error.__cause__ or error.__context__, MISFITS):
            raise AssertionError(f"{told}\n{error}") from error
        return  # the grammar was said to leave something of the value unchecked
    for name, known in case.known.items():
        text = answer[name]
        assert text or not known["required"] or known["characters"], told
        assert not known["paragraph"] or known["characters"] or "\n\n" not in text, told
        assert not text.startswith(known["unwritten"] or "\0") or known["characters"], told
    if not case.is_checked:
        return
    constrained_values(case.signature.output_fields, answer)
    for name, field in case.signature.output_fields.items():
        kind = annotated(field.annotation, tuple(field.metadata))
        pydantic.TypeAdapter(kind).validate_python(answer[name])


def scheduler_of(model: pyllama.Model, context_length: int, sequences: int) -> Scheduler:
    """One that computes so many requests together."""
    return Scheduler(
        model,
        context_length=context_length,
        n_threads=1,
        n_cells=context_length * sequences,
        max_sequences=sequences,
        max_queued=1000,
        cache_bytes=0,
        reproducible=True,
    )


class Trial:
    """A model, and what came of the cases so far."""

    def __init__(self, model: pyllama.Model, *, together: int = 8) -> None:
        self.vocab = model.vocab
        self.together = together
        self._scheduler = scheduler_of(model, 2048, together)
        self._alone = scheduler_of(model, 2048, 1)
        self._callers = ThreadPoolExecutor(together)
        self.counts: collections.Counter[str] = collections.Counter()

    def run(self, cases: list[Case]) -> None:
        """Answer cases together, and the first one alone, too."""
        requests = [case.request for case in cases]
        results = list(self._callers.map(self._scheduler.generate, requests))
        for case, result in zip(cases, results, strict=True):
            check(case, result)
            what = "shortened" if result.shortened else "whole"
            self.counts[f"{case.form}: {'repeated' if result.repeated else what}"] += 1
        if self.counts.total() % 400 == 0:
            print(self.counts.total(), dict(sorted(self.counts.items())), flush=True)
        again = self._alone.generate(requests[0])
        assert again.token_ids == results[0].token_ids, (cases[0], again, results[0])

    def close(self) -> None:
        """End the threads."""
        self._callers.shutdown()
        self._scheduler.close()
        self._alone.close()


def run(trial: Trial, count: int, first: int = 0) -> None:
    """Run so many cases, the same ones for a seed, or until one fails."""
    found: list[Case] = []

    def draw(signature: Any, number: int) -> None:
        case = case_of(trial.vocab, signature, number)
        if case is not None:
            found.append(case)
        if len(found) == trial.together:
            trial.run(found)
            found.clear()

    made = settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    drawn = given(signatures(depth=2), st.integers(0, 2**31))
    seed(first)(made(drawn(draw)))()


def main() -> int:
    """Run the cases, and tell what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = synthetic.write_model(Path(folder) / "tiny.gguf")
        with pyllama.Model(path) as model:
            trial = Trial(model)
            try:
                run(trial, arguments.cases, arguments.seed)
            except AssertionError as error:
                print(error)
                return 1
            finally:
                trial.close()
                seconds = time.monotonic() - started
                print(trial.counts.total(), dict(sorted(trial.counts.items())), f"{seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
