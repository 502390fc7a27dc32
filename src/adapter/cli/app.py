"""All commands, each with its examples."""

from __future__ import annotations

import inspect
import os
import signal
import sys
from collections.abc import Callable
from io import TextIOWrapper
from typing import Annotated

import typer

from adapter.cli.bench import bench
from adapter.cli.chat import chat
from adapter.cli.completion import rejoin_words
from adapter.cli.console import examples, paragraphs, say, warn, write_failed
from adapter.cli.convert import convert
from adapter.cli.demo import demo
from adapter.cli.devices import devices, rpc_server
from adapter.cli.doctor import doctor
from adapter.cli.imatrix import imatrix
from adapter.cli.models import models, rm
from adapter.cli.pull import pull
from adapter.cli.quantize import perplexity, quantize
from adapter.cli.run import embed, run
from adapter.cli.show import fit, show_model
from adapter.wording import reason_of

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        import pyllama

        say(f"pyllama {pyllama.__version__}, llama.cpp {pyllama.llama_cpp_version()}")
        raise typer.Exit


@app.callback()
def pyllama(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Run GGUF models inside Python through llama.cpp."""


def _add(panel: str, command: Callable[..., None], *lines: str, name: str | None = None) -> None:
    text = paragraphs(inspect.getdoc(command) or "")
    app.command(name, help=text, epilog=examples(*lines), rich_help_panel=panel)(command)


_USE = "Use a model"
_add(_USE, demo, 'pyllama demo "What is the capital of France?"')
_add(_USE, chat, "pyllama chat", 'pyllama chat owner/repo:Q4_K_M --system "Be brief."')
_add(
    _USE,
    run,
    'pyllama run my-model "What is DSPy?"',
    'cat report.txt | pyllama run my-model "Summarize this:" -n 200',
    'pyllama run my-model "Invent a person." --schema person.json --json',
)
_add(
    _USE,
    embed,
    'pyllama embed my-model "one text" "another"',
    "pyllama embed my-model < lines.txt > vectors.jsonl",
)

_GET = "Get and keep models"
_add(
    _GET,
    pull,
    "pyllama pull owner/repo",
    "pyllama pull owner/repo:Q4_K_M",
    "pyllama pull owner/repo:folder/model-f16.gguf",
    "pyllama pull ~/Downloads/model.gguf",
)
_add(_GET, models, "pyllama models", "pyllama models ~/models --json")
_add(
    _GET,
    show_model,
    "pyllama show SmolLM2-135M-Instruct.Q4_1",
    "pyllama show ./model.gguf --template",
    "pyllama show ollama:llama3.2:3b --json",
    name="show",
)
_add(_GET, fit, "pyllama fit ./model.gguf", "pyllama fit hf:owner/repo:Q4_K_M -c 32768")
_add(_GET, rm, "pyllama rm my-model", "pyllama rm hf:owner/repo:Q4_K_M --yes")

_MAKE = "Make models"
_add(
    _MAKE,
    convert,
    "pyllama convert owner/repo",
    "pyllama convert ./my-model model-f16.gguf --outtype f16",
    "pyllama convert ./my-adapter --lora --base owner/repo",
)
_add(
    _MAKE,
    quantize,
    "pyllama quantize ./model-f16.gguf Q4_K_M",
    "pyllama quantize ./model-f16.gguf IQ2_M --imatrix model-f16-imatrix.gguf",
    "pyllama quantize owner/repo:BF16 Q8_0 --dry-run",
)
_add(
    _MAKE,
    imatrix,
    "pyllama imatrix ./model-f16.gguf text.txt",
    "pyllama imatrix owner/repo:F16 text.txt -o my-imatrix.gguf --chunks 100",
)
_add(_MAKE, perplexity, "pyllama perplexity ./model-Q4_K_M.gguf text.txt --chunks 50")

_MACHINE = "This machine"
_add(
    _MACHINE,
    bench,
    "pyllama bench",
    "pyllama bench owner/repo:Q4_K_M -p 512 -n 128 -r 3 --json",
)
_add(_MACHINE, doctor, "pyllama doctor", "pyllama doctor --no-test > report.txt")
_add(_MACHINE, devices, "pyllama devices", "pyllama devices --build")
_add(
    _MACHINE,
    rpc_server,
    "pyllama rpc-server",
    "pyllama rpc-server --host 192.168.0.5 --expose",
)


def main() -> None:
    """Run the command. A signal ends it with 128 and its number, and nothing half made is left."""
    _open_closed_streams()
    rejoin_words()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names of files need not be text
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, TextIOWrapper):  # a locale without an encoding lets any byte pass
        sys.stdin.reconfigure(errors="strict")
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", None)):
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _end)
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.filename is None:  # it is standard output's
            write_failed(error)
        else:
            warn(reason_of(error))
        sys.exit(1)


def _end(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def _open_closed_streams() -> None:
    """Occupy the file descriptors 0 to 2. Otherwise a model's file might get one of them."""
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(opened, True)
    os.close(opened)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
