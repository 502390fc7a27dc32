"""All commands, each with its examples."""

from __future__ import annotations

import signal
import sys
from io import TextIOWrapper

import typer

from adapter.cli.bench import bench
from adapter.cli.chat import chat
from adapter.cli.console import examples
from adapter.cli.convert import convert
from adapter.cli.demo import demo
from adapter.cli.devices import devices, rpc_server
from adapter.cli.doctor import doctor
from adapter.cli.models import models, rm
from adapter.cli.pull import pull
from adapter.cli.quantize import perplexity, quantize
from adapter.cli.run import embed, run
from adapter.cli.show import fit, show_model

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def pyllama() -> None:
    """Run GGUF models inside Python through llama.cpp."""


app.command(
    epilog=examples('pyllama demo "What is the capital of France?"'),
)(demo)
app.command(
    epilog=examples(
        "pyllama pull owner/repo",
        "pyllama pull owner/repo:Q4_K_M",
        "pyllama pull owner/repo:folder/model-f16.gguf",
        "pyllama pull ~/Downloads/model.gguf",
    ),
)(pull)
app.command(
    epilog=examples("pyllama chat", 'pyllama chat owner/repo:Q4_K_M --system "Be brief."'),
)(chat)
app.command(
    epilog=examples(
        'pyllama run my-model "What is DSPy?"',
        'cat report.txt | pyllama run my-model "Summarize this:" -n 200',
        'pyllama run my-model "Invent a person." --schema person.json --json',
    ),
)(run)
app.command(
    epilog=examples(
        'pyllama embed my-model "one text" "another"',
        "pyllama embed my-model < lines.txt > vectors.jsonl",
    ),
)(embed)
app.command(
    epilog=examples("pyllama models", "pyllama models ~/models --json"),
)(models)
app.command(
    "show",
    epilog=examples(
        "pyllama show SmolLM2-135M-Instruct.Q4_1",
        "pyllama show ./model.gguf --template",
        "pyllama show ollama:llama3.2:3b --json",
    ),
)(show_model)
app.command(
    epilog=examples("pyllama fit ./model.gguf", "pyllama fit hf:owner/repo:Q4_K_M -c 32768"),
)(fit)
app.command(
    epilog=examples("pyllama rm my-model", "pyllama rm hf:owner/repo:Q4_K_M --yes"),
)(rm)
app.command(
    epilog=examples("pyllama bench", "pyllama bench owner/repo:Q4_K_M -p 512 -n 128 -r 3 --json"),
)(bench)
app.command(
    epilog=examples(
        "pyllama convert owner/repo",
        "pyllama convert ./my-model model-f16.gguf --outtype f16",
        "pyllama convert ./my-adapter --lora --base owner/repo",
    ),
)(convert)
app.command(
    epilog=examples(
        "pyllama quantize ./model-f16.gguf Q4_K_M",
        "pyllama quantize ./model-f16.gguf IQ2_M small.gguf --imatrix imatrix.gguf",
        "pyllama quantize owner/repo:BF16 Q8_0 --dry-run",
    ),
)(quantize)
app.command(
    epilog=examples("pyllama perplexity ./model-Q4_K_M.gguf text.txt --chunks 50"),
)(perplexity)
app.command(
    epilog=examples("pyllama doctor", "pyllama doctor --no-test > report.txt"),
)(doctor)
app.command(
    epilog=examples("pyllama devices", "pyllama devices --build"),
)(devices)
app.command(
    epilog=examples("pyllama rpc-server", "pyllama rpc-server --host 192.168.0.5 --expose"),
)(rpc_server)


def main() -> None:
    """Run the command. Ctrl-C ends it with exit code 130."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names of files need not be text
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except KeyboardInterrupt:  # outside of a command, such as while modules are imported
        sys.exit(128 + signal.SIGINT)
