"""Have SmolLM2 answer random signatures at a high temperature, and count what parses.

    python tests/structured_outputs.py --cases 2000

Each case is a signature of random types (tests/answer_types.py) in one of the forms of answer:
LlamaCppAdapter's, or that of a constrained() ChatAdapter, JSONAdapter or XMLAdapter. An answer
that was completed must parse, and be of its types; one that max_tokens cut off must be told as
such. It ends with status 1 when one was not, and shows it.
"""

from __future__ import annotations

import argparse
import collections
import logging
import sys
import time
import warnings
from typing import Any

import dspy
import pydantic
from answer_types import signatures
from dspy.utils.exceptions import AdapterParseError
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from adapter import (
    CutAnswerError,
    LlamaCppAdapter,
    LlamaCppConfig,
    LoadedModel,
    ModelPool,
    constrained,
    embedded_model,
)
from adapter.grammar.annotation_schema import annotated

TEMPERATURE = 1.5


class Trial:
    """A model, and what came of the cases so far."""

    def __init__(self, loaded: LoadedModel, max_tokens: int) -> None:
        config = LlamaCppConfig(
            loaded.name, temperature=TEMPERATURE, max_tokens=max_tokens, enable_cache=False
        )
        ours = LlamaCppAdapter.from_loaded_model(loaded, config, use_json_adapter_fallback=False)
        self.lm = ours.lm
        self.adapters: dict[str, Any] = {
            "LlamaCppAdapter": ours,
            "ChatAdapter": constrained(dspy.ChatAdapter()),
            "JSONAdapter": constrained(dspy.JSONAdapter()),
            "XMLAdapter": constrained(dspy.XMLAdapter()),
        }
        for adapter in self.adapters.values():
            # The adapters' own prompts are long: a short one leaves time for more cases.
            adapter.format = brief_prompt
        self.counts: collections.Counter[str] = collections.Counter()
        self.done = 0

    def run(self, signature: Any, number: int) -> None:
        """Try one case, in the next form. Raises AssertionError where a promise was broken."""
        form = list(self.adapters)[self.done % len(self.adapters)]
        self.done += 1
        lm = self.lm.copy(seed=number)
        outcome = "completed"
        try:
            [answer] = self.adapters[form](lm, {}, signature, [], {"question": f"No. {number}?"})
        except CutAnswerError:
            outcome = "cut, and told"
        except AdapterParseError as error:
            raise AssertionError(f"{form} did not parse: {signature}\n{error}") from error
        [entry] = lm.history
        assert "grammar" in entry["kwargs"]["metadata"]["llamacpp"], f"not bound: {signature}"
        if outcome == "completed":
            if entry["response"].finish_reason == "length":
                outcome = "cut in its last text"
                last = list(signature.output_fields.values())[-1]
                assert last.annotation is str, f"half an answer: {signature} {entry['outputs']}"
            for name, field in signature.output_fields.items():
                kind = annotated(field.annotation, tuple(field.metadata))
                pydantic.TypeAdapter(kind).validate_python(answer[name])
        self.counts[f"{form}: {outcome}"] += 1


def brief_prompt(signature: Any, demos: Any, inputs: Any) -> list[dict[str, str]]:
    """A question, and the names of what is asked for."""
    names = ", ".join(signature.output_fields)
    return [{"role": "user", "content": f"{inputs['question']} Give: {names}."}]


def cases(count: int) -> Any:
    """Run a test on so many random signatures, the same ones each time, or until it fails."""
    made = settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    return lambda test: made(given(signatures(), st.integers(0, 2**31))(test))


def main() -> int:
    """Run the cases, and tell what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--max-tokens", type=int, default=160)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    path = embedded_model.fetch()
    started = time.monotonic()
    with ModelPool(path.parent, context_length=1024) as pool:
        trial = Trial(pool.load_model(path.stem), arguments.max_tokens)

        @cases(arguments.cases)
        def run(signature: Any, number: int) -> None:
            trial.run(signature, number)
            if trial.done % 50 == 0:
                print(trial.done, dict(sorted(trial.counts.items())), flush=True)

        try:
            run()
        except AssertionError as error:
            print(error)
            return 1
        finally:
            seconds = time.monotonic() - started
            print(trial.done, dict(sorted(trial.counts.items())), f"{seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
