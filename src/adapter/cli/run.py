"""One request to a model: an answer, or vectors."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from adapter.cli.console import fail, note, say, say_json
from adapter.cli.conversation import Answer, Conversation, show_answer
from adapter.cli.session import (
    ContextLength,
    GpuLayers,
    Model,
    errors_told,
    loaded_model,
    require_generator,
)

MaxTokens = Annotated[
    int | None,
    typer.Option(
        "--max-tokens", "-n", min=1, help="Longest answer, in tokens; by default, as many as fit."
    ),
]
Temperature = Annotated[
    float,
    typer.Option("--temperature", "-t", min=0.0, max=2.0, help="0 takes the likeliest token."),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", min=0, max=2**32 - 2, help="The same seed gives the same answer."),
]
System = Annotated[str | None, typer.Option("--system", "-s", help="The system prompt.")]


def run(
    model: Model,
    prompt: Annotated[
        str | None, typer.Argument(help="What to ask; standard input follows it, if there is any.")
    ] = None,
    system: System = None,
    schema: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A JSON schema that the answer must fit.")
    ] = None,
    grammar: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A grammar in GBNF that it must follow.")
    ] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = 0.8,
    seed: Seed = None,
    context: ContextLength = None,
    gpu_layers: GpuLayers = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write JSON: the text, its thoughts and its tokens.")
    ] = False,
) -> None:
    """Ask a model one question. Only the answer goes to standard output."""
    text = _prompt(prompt)
    form = _form(schema, grammar)
    from dspy.lm15 import LM15Error

    from adapter.errors import InvalidParameterError

    settings = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    answer = Answer()
    with errors_told():
        model_loaded = loaded_model(model, context_length=context, n_gpu_layers=gpu_layers)
        with model_loaded as loaded:
            with loaded.lease() as weights:
                require_generator(loaded.name, weights)
            conversation = Conversation(loaded, settings, system=system, form=form)
            try:
                if as_json:
                    for _ in conversation.ask(text, answer):
                        pass
                else:
                    show_answer(conversation, text, answer)
            except LM15Error as error:
                refused = error.__cause__
                if form and isinstance(refused, InvalidParameterError):
                    if refused.name == "max_tokens":
                        needed, _, _ = refused.allowed.partition(";")
                        fail(f"--max-tokens {max_tokens} is too few: it must be {needed}")
                    fail(f"{schema or grammar} must be {refused.allowed}")
                fail(str(error))
    if as_json:
        say_json(
            {
                "text": answer.text,
                "thinking": answer.thinking or None,
                "finish_reason": answer.finish_reason,
                "prompt_tokens": answer.prompt_tokens,
                "completion_tokens": answer.completion_tokens,
                "seconds": round(answer.seconds, 3),
            }
        )
    elif answer.finish_reason == "length":
        note(f"cut off after {answer.completion_tokens} tokens")


def embed(
    model: Model,
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts; without them, the lines of standard input.")
    ] = None,
    pooling: Annotated[
        str | None, typer.Option(help="mean, cls or last; by default, what the model says.")
    ] = None,
    normalize: Annotated[bool, typer.Option(help="Make each vector one of length 1.")] = True,
    context: ContextLength = None,
    gpu_layers: GpuLayers = None,
) -> None:
    """Turn texts into vectors: one JSON array per line, in the order of the texts."""
    lines = texts or [line.rstrip("\n") for line in _standard_input().splitlines()]
    lines = [line for line in lines if line.strip()] if not texts else lines
    if not lines:
        fail("there are no texts; give them as arguments, or one a line on standard input")
    with errors_told():
        model_loaded = loaded_model(model, context_length=context, n_gpu_layers=gpu_layers)
        with model_loaded as loaded:
            from adapter.embedder import LlamaCppEmbedder

            embedder = LlamaCppEmbedder(loaded, pooling=pooling, normalize=normalize)  # type: ignore[arg-type]  # it checks
            for vector in embedder(lines):
                say(json.dumps(vector.tolist()))


def _prompt(prompt: str | None) -> str:
    given = "" if prompt is not None and sys.stdin.isatty() else _standard_input()
    text = "\n\n".join(part for part in (prompt or "", given) if part.strip())
    if not text:
        fail("there is no prompt; give one, or write it to standard input")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # bytes that Python could not read as text
        fail(f"the prompt is no UTF-8: it holds a byte at character {error.start} that is no text")
    return text


def _standard_input() -> str:
    if sys.stdin.isatty():
        note("reading standard input; Ctrl-D ends it")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        fail(f"standard input is no UTF-8: {error}")


def _form(schema: Path | None, grammar: Path | None) -> dict[str, Any]:
    """The fields of a request that say what the answer must look like."""
    if schema is not None and grammar is not None:
        fail("--schema and --grammar exclude each other")
    try:
        if schema is not None:
            value = json.loads(schema.read_text(encoding="utf-8"))
            named = {"type": "json_schema", "name": "answer", "schema": value}
            return {"response_format": named}
        if grammar is not None:
            text = grammar.read_text(encoding="utf-8")
            return {"extensions": {"metadata": {"llamacpp": {"grammar": text}}}}
    except OSError as error:
        fail(f"{schema or grammar} cannot be read: {error.strerror}")
    except (ValueError, RecursionError) as error:
        fail(f"{schema or grammar} cannot be read: {error}")
    return {}
