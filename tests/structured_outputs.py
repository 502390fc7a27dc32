"""Have SmolLM2 answer random signatures and schemas hot, and count what parses.

    python tests/structured_outputs.py --cases 2000
    python tests/structured_outputs.py --cases 2000 --tiny

Each case is a signature of random types (tests/answer_types.py) in one of the forms of answer,
LlamaCppAdapter's or that of a constrained() ChatAdapter, JSONAdapter, BAMLAdapter or XMLAdapter; or
a random JSON schema (tests/answer_schemas.py) as a response_format, and as the argument of a
function in the forms of calls of other families' templates (--templates). An answer that was
completed must parse, and be of its types; one that max_tokens cut off must be told as such, and so
must a value that breaks what no grammar says. It ends with status 1 when one was not, and shows it.
Another --seed has other cases. --tiny has a model of random weights answer, which is faster, and
likes no answer better than another.
"""

from __future__ import annotations

import argparse
import collections
import json
import logging
import shutil
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dspy
import jsonschema
import pydantic
from answer_schemas import schemas
from answer_types import is_checked_after, signatures
from dspy.adapters.baml_adapter import BAMLAdapter
from dspy.lm15 import Config, FunctionTool, Message, Request, ToolCallPart, ToolChoice
from dspy.utils.exceptions import (
    AdapterParseError,
    ContextWindowExceededError,
    LMInvalidRequestError,
)
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from synthetic import write_model
from templated import templates, with_template

from adapter import (
    CutAnswerError,
    InvalidValueError,
    LlamaCppAdapter,
    LlamaCppConfig,
    LoadedModel,
    ModelPool,
    constrained,
)
from adapter.engine.language_model import language_model
from adapter.grammar.schema.annotations import annotated
from adapter.models import embedded_model

TEMPERATURE = 1.5


class Trial:
    """A model, and what came of the cases so far."""

    def __init__(
        self, loaded: LoadedModel, max_tokens: int, calling: Iterable[LoadedModel] = ()
    ) -> None:
        config = LlamaCppConfig(
            loaded.name, temperature=TEMPERATURE, max_tokens=max_tokens, enable_cache=False
        )
        ours = LlamaCppAdapter.from_loaded_model(loaded, config, use_json_adapter_fallback=False)
        self.lm = ours.lm
        self.adapters: dict[str, Any] = {
            "LlamaCppAdapter": ours,
            "ChatAdapter": constrained(dspy.ChatAdapter()),
            "JSONAdapter": constrained(dspy.JSONAdapter()),
            "BAMLAdapter": constrained(BAMLAdapter()),
            "XMLAdapter": constrained(dspy.XMLAdapter()),
        }
        for adapter in self.adapters.values():
            # The adapters' own prompts are long: a short one leaves time for more cases.
            adapter.format = brief_prompt
        self.calling = {
            f"calls of {one.name}": language_model(one, LlamaCppConfig(one.name)) for one in calling
        }
        self.forms = [*self.adapters, "response_format", *self.calling]
        self.max_tokens = max_tokens
        self.counts: collections.Counter[str] = collections.Counter()
        self.done = 0

    def run(self, signature: Any, schema: dict[str, Any], number: int) -> None:
        """Try one case, in the next form. Raises AssertionError where a promise was broken."""
        form = self.forms[self.done % len(self.forms)]
        self.done += 1
        try:
            if form == "response_format":
                outcome = self._fill(schema, number)
            elif form in self.calling:
                outcome = self._call(self.calling[form], schema, number)
            else:
                outcome = self._answer(form, signature, number)
        except LMInvalidRequestError as error:
            if f"max_tokens={self.max_tokens} is not allowed" not in str(error):
                raise
            outcome = "too few tokens for any answer, and told"
        self.counts[f"{form}: {outcome}"] += 1

    def _answer(self, form: str, signature: Any, number: int) -> str:
        lm = self.lm.copy(seed=number)
        outcome = "completed"
        try:
            [answer] = self.adapters[form](lm, {}, signature, [], {"question": f"No. {number}?"})
        except CutAnswerError:
            outcome = "cut, and told"
        except InvalidValueError as error:
            outcome = "invalid, asked for again, and told"
            if not any(map(is_checked_after, signature.output_fields.values())):
                raise AssertionError(f"{form}: {signature}\n{error}") from error
        except AdapterParseError as error:
            raise AssertionError(f"{form} did not parse: {signature}\n{error}") from error
        entry = lm.history[-1]
        assert "grammar" in entry["kwargs"]["metadata"]["llamacpp"], f"not bound: {signature}"
        if outcome == "completed":
            if entry["response"].finish_reason == "length":
                outcome = "cut in its last text"
                last = list(signature.output_fields.values())[-1]
                assert last.annotation is str, f"half an answer: {signature} {entry['outputs']}"
            for name, field in signature.output_fields.items():
                kind = annotated(field.annotation, tuple(field.metadata))
                pydantic.TypeAdapter(kind).validate_python(answer[name])
        return outcome

    def _fill(self, schema: dict[str, Any], number: int) -> str:
        config = Config(
            response_format={"type": "json_schema", "schema": schema},
            temperature=TEMPERATURE,
            max_tokens=self.max_tokens,
            seed=number,
        )
        response = self.lm(Request(self.lm.model, (Message.user(f"No. {number}?"),), config=config))
        told = [one for one in response.adaptations if one.field != "config.max_tokens"]
        assert not told, f"not bound: {schema} {told}"
        if response.finish_reason == "length":
            return "cut, and told"
        try:
            jsonschema.validate(json.loads(response.text), schema, jsonschema.Draft202012Validator)
        except (ValueError, jsonschema.ValidationError) as error:
            raise AssertionError(f"{response.text} does not fit {schema}: {error}") from error
        return "completed"

    def _call(self, lm: Any, schema: dict[str, Any], number: int) -> str:
        described = {**schema}
        arguments = {
            "type": "object",
            "properties": {"value": described, "word": {"type": "string", "enum": ["a b", "c"]}},
            "required": ["value"],
        }
        if "$defs" in schema:
            arguments["$defs"] = described.pop("$defs")
        tool = FunctionTool("note_it", "Notes.", arguments)
        config = Config(
            temperature=TEMPERATURE,
            max_tokens=self.max_tokens,
            seed=number,
            tool_choice=ToolChoice("required"),
        )
        question = (Message.user(f"No. {number}?"),)
        try:
            response = lm(Request(lm.model, question, tools=(tool,), config=config))
        except ContextWindowExceededError:
            return "too long a schema for the prompt, and told"
        told = [one for one in response.adaptations if one.field.startswith("tools")]
        if response.finish_reason == "length":
            return "cut, and told"
        calls = response.message.parts_of(ToolCallPart)
        assert calls, f"no call: {response}"
        for call in calls:
            fits = jsonschema.Draft202012Validator(arguments).is_valid(dict(call.input))
            assert fits or told, f"{call.input} does not fit {arguments}"
        return "unbound, and told" if told else "completed"


def brief_prompt(signature: Any, demos: Any, inputs: Any) -> list[dict[str, str]]:
    """A question, and the names of what is asked for."""
    names = ", ".join(signature.output_fields)
    return [{"role": "user", "content": f"{inputs['question']} Give: {names}."}]


def cases(count: int, first: int = 0) -> Any:
    """Run a test on so many random cases, the same ones for a seed, or until it fails."""
    made = settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    drawn = given(signatures(), schemas(), st.integers(0, 2**31))
    return lambda test: seed(first)(made(drawn(test)))


def main() -> int:
    """Run the cases, and tell what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--templates", nargs="*", default=["Qwen-Qwen2.5-7B-Instruct", "Qwen3-Coder"]
    )
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    started = time.monotonic()
    # A token of the tiny model's is a byte.
    context = 4096 if arguments.tiny else 1024
    with TemporaryDirectory() as folder, ModelPool(folder, context_length=context) as pool:
        if arguments.tiny:
            path = write_model(Path(folder) / "tiny.gguf", n_ctx_train=context)
        else:
            path = Path(shutil.copy(embedded_model.fetch(), folder))
        sources = templates()
        for name in arguments.templates:
            with_template(path, sources[name], Path(folder) / f"{name}.gguf")
        calling = [pool.load_model(name) for name in arguments.templates]
        trial = Trial(pool.load_model(path.stem), arguments.max_tokens, calling)

        @cases(arguments.cases, arguments.seed)
        def run(signature: Any, schema: dict[str, Any], number: int) -> None:
            trial.run(signature, schema, number)
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
