"""The ``pyllama`` command."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
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

    from adapter import LlamaCppAdapter, LlamaCppConfig, ModelPool
    from adapter.errors import LlamaCppError
    from adapter.models import embedded_model

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
def devices(
    build: Annotated[
        bool, typer.Option("--build", help="Say which backends this build has, and why.")
    ] = False,
) -> None:
    """List the devices that there are, which of them models run on, and why."""
    from rich.table import Table

    import pyllama
    from adapter.errors import LlamaCppError
    from adapter.models.hardware import HardwareManager, cpu_threads

    if build:
        table = Table("backend", "built", "note")
        for entry in pyllama.build_info():
            table.add_row(entry.name, "yes" if entry.built else "no", escape(entry.note))
        output.print(table)
        return
    try:
        choices = HardwareManager().choices()
    except LlamaCppError as error:
        _fail(str(error))
    table = Table("name", "backend", "type", "memory free / total", "description")
    for choice in choices:
        device = choice.device
        free, total = device.memory
        memory = f"{free / 2**30:.1f} / {total / 2**30:.1f} GiB" if total else "system's"
        row = device.name, device.backend, device.type, memory, device.description
        table.add_row(*map(escape, row))
    output.print(table)
    for choice in choices:
        used = "used" if choice.used else "not used"
        output.print(
            f"{choice.device.name} is {used}: {choice.reason}", markup=False, highlight=False
        )
    output.print(f"threads: {cpu_threads()}", highlight=False)
    output.print(f"llama.cpp {pyllama.llama_cpp_version()}", highlight=False)


@app.command()
def rpc_server(
    host: Annotated[str, typer.Option(help="IPv4 address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for a free one.")] = 50052,
    expose: Annotated[
        bool, typer.Option("--expose", help="Allow an address that is not this machine's alone.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of a CPU that is offered.")
    ] = None,
) -> None:
    """Offer this machine's devices to ModelPool(rpc=[…]) on others, until Ctrl-C."""
    import pyllama

    if not host.startswith("127."):
        risk = "the protocol has no password and no encryption: whoever reaches the port owns it"
        if not expose:
            _fail(f"{host} can be reached from elsewhere, and {risk}. If that is safe: --expose")
        messages.print(f"warning: {risk}", style="yellow", highlight=False)
    try:
        with pyllama.RpcServer(host, port, n_threads=threads) as server:
            output.print(f"serving on {server.endpoint}", highlight=False)
            server.wait()
            _fail("the server ended by itself; its output is above")
    except KeyboardInterrupt:
        return
    except (pyllama.LlamaError, OSError, ValueError) as error:
        _fail(str(error))


@app.command()
def models(
    folder: Annotated[
        Path | None, typer.Argument(help="Where the models are; by default, where the demo's is.")
    ] = None,
) -> None:
    """List the models of a folder, by what their files say, without loading them."""
    from rich.table import Column, Table

    from adapter import ModelPool
    from adapter.models import embedded_model

    folder = folder or embedded_model.model_dir()
    try:
        with ModelPool(folder) as pool:
            found = pool.models()
    except OSError as error:
        _fail(str(error))
    name = Column("name", no_wrap=True)
    table = Table(name, "size", "ftype", "params", "arch", "context", "files")
    for model in found:
        facts = model.quantization, _count(model.n_params), model.architecture
        length = str(model.context_length or "")
        row = model.name, f"{model.size / 1e6:,.1f} MB", *facts, length, str(len(model.paths))
        table.add_row(*(escape(cell or "") for cell in row))
    output.print(table)
    for model in found:
        if model.problem is not None:
            messages.print(f"{model.name}: {model.problem}", markup=False, highlight=False)


def _count(number: int | None) -> str:
    """A count of parameters as model names give it, such as 135M."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number and number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number or "")


def _fail(message: str) -> NoReturn:
    messages.print(f"error: {message}", style="red", markup=False, highlight=False)
    raise typer.Exit(1)


def main() -> None:
    app()
