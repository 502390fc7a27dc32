"""What constrained decoding costs: SmolLM2 with and without a grammar, for ten output types.

    python benchmarks/constrained.py [--tokens 64] [--rounds 3]

Each of ten signatures is answered in LlamaCppAdapter's form, in alternating rounds: bound by its
grammar, and by a grammar's absence, greedily, a stream alone, the same number of tokens at most.
The rate is tokens sampled after the first by the seconds from it to the last. Then it times the
making of the grammars, and looking them up again.
"""

from __future__ import annotations

import argparse
import datetime
import enum
import statistics
import time
from typing import Any, Literal, Optional

import dspy
import pydantic

from adapter import LlamaCppAdapter, LlamaCppConfig, ModelPool
from adapter.generation.request import GenerationRequest, GenerationResult
from adapter.generation.sampling import Constraint, Sampling, grammar_sampler
from adapter.models import embedded_model
from adapter.signatures import answer_grammar as grammars
from adapter.signatures.answer_grammar import FIELD_LINES, answer_grammar


class Item(pydantic.BaseModel):
    name: str
    price: float = pydantic.Field(ge=0)
    tags: list[str] = pydantic.Field(max_length=3)


class Node(pydantic.BaseModel):
    name: str
    children: list[Node] = pydantic.Field(max_length=3)


class Contact(pydantic.BaseModel):
    name: str
    phone: str = pydantic.Field(pattern=r"^\+\d{2} \d{4,9}$")
    mail: Optional[str]


COUNTRIES = enum.Enum("COUNTRIES", {f"C{n}": f"country number {n}" for n in range(200)})

OUTPUTS: dict[str, dict[str, Any]] = {
    "text": {"answer": str},
    "reasoning, int": {"reasoning": str, "answer": int},
    "reasoning, Literal": {"reasoning": str, "label": Literal["good", "bad", "neither"]},
    "numbers and a date": {"low": int, "high": float, "day": datetime.date},
    "list[str]": {"reasoning": str, "words": list[str]},
    "dict[str, float]": {"reasoning": str, "shares": dict[str, float]},
    "list of models": {"reasoning": str, "items": list[Item]},
    "recursive model": {"reasoning": str, "tree": Node},
    "pattern, Optional": {"reasoning": str, "contact": Contact},
    "Enum of 200": {"reasoning": str, "country": COUNTRIES},
}
QUESTION = "Two apples at 1.50 and a hammer at 20 were sold in Oslo on 3 May 2021. What was sold?"


def signature_of(outputs: dict[str, Any]) -> Any:
    """A signature with these output fields."""
    fields: dict[str, Any] = {"question": (str, dspy.InputField())}
    for name, kind in outputs.items():
        fields[name] = (kind, dspy.OutputField())
    return dspy.Signature(fields, "Read the text, and answer at length.")


def rate(generator: Any, request: GenerationRequest) -> tuple[int, float]:
    """Tokens after the first, and the seconds that they took."""
    first = last = 0.0
    count = 0
    for piece in generator.stream(request):
        if isinstance(piece, GenerationResult):
            break  # where the model ended it, one more step than there are tokens was computed
        last = time.perf_counter()
        first = first or last
        count += len(piece.token_ids)
    return count - 1, last - first


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    path = embedded_model.fetch()
    with ModelPool(path.parent, context_length=2048) as pool:
        loaded = pool.load_model(path.stem)
        adapter = LlamaCppAdapter.from_loaded_model(loaded, LlamaCppConfig(loaded.name))
        generator = loaded.generators["batched"]
        ratios = []
        print("| output fields | free t/s | bound t/s | ratio |\n| --- | --- | --- | --- |")
        for name, outputs in OUTPUTS.items():
            signature = signature_of(outputs)
            messages = adapter.format(signature, [], {"question": QUESTION})
            prompt = tuple(loaded.tokenize(loaded.render(messages).prompt))
            gbnf = answer_grammar(signature, FIELD_LINES).gbnf
            totals = {"free": [0, 0.0], "bound": [0, 0.0]}
            for round_number in range(arguments.rounds + 1):
                for kind, total in totals.items():
                    request = GenerationRequest(
                        prompt,
                        arguments.tokens,
                        Sampling(temperature=0.8),
                        seed=round_number,
                        constraint=Constraint(gbnf) if kind == "bound" else None,
                    )
                    count, seconds = rate(generator, request)
                    if round_number:  # the first warms up
                        total[0] += count
                        total[1] += seconds
            free, bound = (count / max(seconds, 1e-9) for count, seconds in totals.values())
            ratios.append(bound / free)
            print(f"| {name} | {free:.1f} | {bound:.1f} | {bound / free:.3f} |", flush=True)
        print(
            f"\nmedian {statistics.median(ratios):.3f}, mean {statistics.mean(ratios):.3f}, "
            f"least {min(ratios):.3f}"
        )
        misses, hits, ready = [], [], []
        with loaded.lease() as model:
            for outputs in OUTPUTS.values():
                signature = signature_of(outputs)
                grammars._kept.cache_clear()
                for times in (misses, hits):
                    start = time.perf_counter()
                    made = answer_grammar(signature, FIELD_LINES)
                    times.append(time.perf_counter() - start)
                start = time.perf_counter()
                grammar_sampler(model.vocab, Constraint(made.gbnf))
                ready.append(time.perf_counter() - start)
        for what, times in (("made", misses), ("looked up", hits), ("ready to sample", ready)):
            print(
                f"{what}: median {1000 * statistics.median(times):.3f} ms, "
                f"most {1000 * max(times):.3f} ms"
            )


if __name__ == "__main__":
    main()
