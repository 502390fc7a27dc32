"""One request to a model: an answer, or vectors."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from adapter.cli.console import (
    fail,
    file_text,
    note,
    refuse,
    require_text,
    say,
    say_json,
    standard_input,
)
from adapter.cli.conversation import Answer, Conversation, show_answer
from adapter.cli.error_words import errors_told, in_words
from adapter.cli.options import ContextLength, GpuLayers, Model
from adapter.cli.session import loaded_model, require_generator
from adapter.wording import counted

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

_POOLINGS = ("mean", "cls", "last")


def run(
    model: Model,
    prompt: Annotated[
        str | None, typer.Argument(help="What to ask; standard input follows it, if there is any.")
    ] = None,
    system: System = None,
    schema: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", readable=False, help="A JSON schema that the answer must fit."
        ),
    ] = None,
    grammar: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", readable=False, help="A GBNF grammar that the answer must follow."
        ),
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
    if schema is not None and grammar is not None:
        refuse("--schema and --grammar exclude each other")
    require_text("--system", system)
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
                        refuse(f"--max-tokens {max_tokens} is too few: it must be {needed}")
                    allowed = refused.allowed.removesuffix(", or None")
                    fail(f"{schema or grammar} must be {allowed}")
                fail(in_words(error))
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
        note(f"cut off after {counted(answer.completion_tokens, 'token')}")


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
    if pooling is not None and pooling not in _POOLINGS:
        refuse(f"--pooling {pooling} is no way to pool; there are {', '.join(_POOLINGS)}")
    lines = texts or [line for line in standard_input().split("\n") if line.strip()]
    if not lines:
        refuse("there are no texts; give them as arguments, or one a line on standard input")
    for number, line in enumerate(lines, 1):
        require_text(f"text {number}", line)
        if not line.strip():
            refuse(f"text {number} is empty")
    with errors_told():
        model_loaded = loaded_model(model, context_length=context, n_gpu_layers=gpu_layers)
        with model_loaded as loaded:
            from adapter.embedder import LlamaCppEmbedder
            from adapter.errors import ConfigurationError

            try:
                embedder = LlamaCppEmbedder(loaded, pooling=pooling, normalize=normalize)  # type: ignore[arg-type]  # checked above
            except ConfigurationError:
                fail(
                    f"{loaded.name} does not say how the vectors of a text's tokens become one; "
                    "give --pooling mean or --pooling last, or an embedding model"
                )
            if embedder.pooling == "rank":
                fail(f"{loaded.name} is a reranker: it scores pairs of texts, and has no vectors")
            for vector in embedder(lines):
                say(json.dumps(vector.tolist()))


def _prompt(prompt: str | None) -> str:
    require_text("the prompt", prompt)
    given = "" if prompt is not None and sys.stdin.isatty() else standard_input()
    require_text("standard input", given)  # in a locale without an encoding bytes pass as they are
    text = "\n\n".join(part for part in (prompt or "", given) if part.strip())
    if not text:
        refuse("there is no prompt; give one, or write it to standard input")
    return text


def _form(schema: Path | None, grammar: Path | None) -> dict[str, Any]:
    """The fields of a request that say what the answer must look like."""
    if schema is not None:
        try:
            value = json.loads(file_text(schema))
        except (ValueError, RecursionError) as error:
            fail(f"{schema} is no JSON: {error}")
        return {"response_format": {"type": "json_schema", "name": "answer", "schema": value}}
    if grammar is not None:
        return {"extensions": {"metadata": {"llamacpp": {"grammar": file_text(grammar)}}}}
    return {}
