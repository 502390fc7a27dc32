"""The ``pyllama`` command."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)

# Answers and tables go to standard output, all else to standard error.
output = Console(soft_wrap=True)
messages = Console(stderr=True)


@app.callback()
def pyllama() -> None:
    """Run GGUF models inside Python through llama.cpp."""


@app.command()
def demo(
    question: Annotated[str, typer.Argument(help="What to ask the embedded model.")],
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same answer.")] = 0,
) -> None:
    """Ask a small embedded model a question, through dspy.Predict."""
    # Heavy packages are imported where they are used, so that --help answers at once.
    import dspy

    from adapter import LlamaCppAdapter, LlamaCppConfig, ModelPool, embedded_model
    from adapter.errors import LlamaCppError

    if not question.strip():
        _fail("the question is empty; ask something, such as: pyllama demo 'What is DSPy?'")
    try:
        path = embedded_model.fetch()
        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()
        with Progress(*columns, console=messages) as bar:
            task = bar.add_task(f"Loading {path.stem}", total=1.0)
            pool = ModelPool(
                path.parent, progress=lambda _name, done: bar.update(task, completed=done)
            )
            loaded = pool.load_model(path.stem)
        config = LlamaCppConfig(loaded.name, max_tokens=max_tokens, temperature=0.0, seed=seed)
        adapter = LlamaCppAdapter.from_loaded_model(loaded, config)
        with pool, dspy.context(lm=adapter.lm, adapter=adapter, track_usage=True):
            # DSPy would answer a repeated question from its cache, and nothing would be measured.
            ask = dspy.Predict("question -> answer", cache=False)
            began = time.perf_counter()
            prediction = ask(question=question)
            seconds = time.perf_counter() - began
        usage = prediction.get_lm_usage()[adapter.lm.model]
    except (embedded_model.EmbeddedModelError, LlamaCppError) as error:
        _fail(str(error))
    prompt, completion = usage["prompt_tokens"], usage["completion_tokens"]
    output.print(prediction.answer, markup=False, highlight=False)
    output.print()
    output.print(f"prompt tokens:     {prompt}", highlight=False)
    output.print(f"completion tokens: {completion}", highlight=False)
    output.print(f"tokens/s:          {(prompt + completion) / seconds:.1f}", highlight=False)
    output.print(f"device:            {loaded.device}", markup=False, highlight=False)


@app.command()
def devices() -> None:
    """List the devices that models can run on."""
    from rich.table import Table

    import pyllama

    table = Table("name", "backend", "type", "memory free / total", "description")
    for device in pyllama.devices():
        free, total = device.memory
        memory = f"{free / 2**30:.1f} / {total / 2**30:.1f} GiB" if total else "system's"
        table.add_row(device.name, device.backend, device.type, memory, device.description)
    output.print(table)
    output.print(f"llama.cpp {pyllama.llama_cpp_version()}", highlight=False)


def _fail(message: str) -> None:
    messages.print(f"error: {message}", style="red", markup=False, highlight=False)
    raise typer.Exit(1)


def main() -> None:
    app()
