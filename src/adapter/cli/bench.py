"""How fast a model is here."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from adapter.cli.console import note, refuse, row, say, say_json, show, table
from adapter.cli.error_words import errors_told
from adapter.cli.options import AsJson, GpuLayers, ModelOrDemo, Threads
from adapter.cli.session import found
from adapter.wording import counted, file_size, short_count


def bench(
    model: ModelOrDemo = None,
    n_prompt: Annotated[
        int, typer.Option("--n-prompt", "-p", min=0, max=2**17, help="Tokens of the prompt.")
    ] = 512,
    n_gen: Annotated[
        int, typer.Option("--n-gen", "-n", min=0, max=2**17, help="Tokens to decode.")
    ] = 128,
    n_parallel: Annotated[
        int, typer.Option("--parallel", min=1, max=256, help="Sequences to decode at once.")
    ] = 8,
    repetitions: Annotated[int, typer.Option("-r", min=1, max=1000, help="Repetitions.")] = 5,
    threads: Threads = None,
    gpu_layers: GpuLayers = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model's speed as llama-bench does, with random tokens.

    pp512 is a prompt of 512 tokens, tg128 are 128 tokens decoded one after the other, and
    tg128 x8 those of 8 sequences at once, all their tokens together.
    """
    if not n_prompt and not n_gen:
        refuse("there is nothing to measure: --n-prompt and --n-gen are both 0")
    import pyllama
    from adapter.cli.throughput import measure
    from adapter.generation.processor_load import free_threads
    from adapter.models.hardware import HardwareManager
    from adapter.models.parts import parts

    rates = []
    with errors_told():
        reference = found(model)
        path = reference.path()
        size = sum(part.stat().st_size for part in parts(path))
        placement = HardwareManager().plan(
            path, context_length=max(n_prompt, n_gen), n_gpu_layers=gpu_layers, n_contexts=1
        )
        n_threads = threads or free_threads(placement.n_threads)
        if not threads and n_threads < placement.n_threads:
            note(
                f"computing with {counted(n_threads, 'thread')}, as other programs use processors; "
                f"-t {placement.n_threads} uses all"
            )
        with placement.load(path) as loaded:
            facts: dict[str, Any] = {
                "model": reference.name,
                "description": loaded.desc,
                "size": size,
                "n_params": loaded.n_params,
                "devices": [device.name for device in placement.devices] or ["CPU"],
                "n_gpu_layers": placement.n_gpu_layers,
                "n_threads": n_threads,
                "llama_cpp": pyllama.llama_cpp_version(),
            }
            for rate in measure(
                loaded,
                n_prompt=n_prompt,
                n_gen=n_gen,
                n_parallel=n_parallel,
                repetitions=repetitions,
                n_threads=n_threads,
            ):
                note(f"{rate.test}: {rate.mean:.2f} tokens/s")
                rates.append(rate)
    if as_json:
        results = [{"test": r.test, "mean": r.mean, "stdev": r.stdev} for r in rates]
        say_json({**facts, "repetitions": repetitions, "tokens_per_second": results})
        return
    say(f"{facts['description']}, {file_size(size)}, {short_count(facts['n_params'])} parameters")
    say(f"on {', '.join(facts['devices'])}, {counted(facts['n_threads'], 'thread')}")
    made = table("test", "tokens/s")
    for rate in rates:
        row(made, rate.test, f"{rate.mean:.2f} ± {rate.stdev:.2f}")
    show(made)
    say(f"llama.cpp {facts['llama_cpp']}")
