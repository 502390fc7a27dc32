"""What is installed here and whether it works, as text for a fault report."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from adapter.cli.console import fail, note, say, say_json, say_prose
from adapter.cli.missing_drivers import missing_drivers
from adapter.cli.options import AsJson
from adapter.wording import file_size

_PACKAGES = ("dspy", "litellm", "huggingface_hub", "numpy", "cffi", "pydantic", "rich", "typer")
_SETTINGS = (
    "PYLLAMA_BACKEND",
    "PYLLAMA_CPU_VARIANT",
    "GGML_VK_VISIBLE_DEVICES",
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "OLLAMA_MODELS",
    "OMP_NUM_THREADS",
)
_NVIDIA = Path("/proc/driver/nvidia/version")
_N_TOKENS = 16
_N_ANSWERS = 3
"""The first makes contexts, and the second may measure how to compute. The fastest one counts."""


def doctor(
    test: Annotated[
        bool, typer.Option(help="Load the demo's model, if it is here, and have it answer.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Check the build, the machine, and whether a model answers.

    The output is what to put into a report of a fault. It names folders of yours and nothing
    secret. The exit code is 1 where the test fails.
    """
    facts: dict[str, Any] = {}
    problems = []
    sections = {**_SECTIONS, "test": _self_test} if test else _SECTIONS

    def report(name: str) -> None:
        try:
            facts[name] = sections[name]()
        except Exception as error:  # this command exists to find broken things
            facts[name] = problem = f"failed: {type(error).__name__}: {error}"
            problems.append(f"{name} {problem}")

    for name in sections:
        if name == "test":
            note("testing …")
        report(name)
    if as_json:
        say_json(facts)
    else:
        for name, value in facts.items():
            _write(name, value)
    if problems:
        fail("; ".join(problems))


def _write(name: str, value: Any) -> None:
    if isinstance(value, dict):
        value = [f"{key}: {each}" for key, each in value.items()]
    if isinstance(value, list):
        say(f"{name}:")
        for each in value:
            say_prose(f"  {each}", indent="    ")
    else:
        say_prose(f"{name}: {value}", indent="    ")


def _versions() -> dict[str, str]:
    import pyllama

    found = {
        pyllama.distribution_name(): pyllama.__version__,
        "llama.cpp": pyllama.llama_cpp_version(),
        "python": f"{platform.python_implementation()} {sys.version.split()[0]}",
    }
    installed = {each.name: each.version for each in importlib.metadata.distributions()}
    return found | {package: installed.get(package, "missing") for package in _PACKAGES}


def _system() -> dict[str, str]:
    libc = " ".join(platform.libc_ver()).strip()
    found = {"platform": platform.platform(), "machine": platform.machine()}
    if libc:
        found["libc"] = libc
    if _NVIDIA.is_file():
        found["NVIDIA driver"] = _driver(_NVIDIA.read_text(errors="replace"))
    return found


def _driver(text: str) -> str:
    """The version in what NVIDIA's kernel module says of itself, or else its first line."""
    first = " ".join(text.partition("\n")[0].split())
    version = re.search(r"\b[0-9]+(?:\.[0-9]+)+\b", first)
    if version is None:
        return first
    return version[0] + (" (open kernel module)" if "Open Kernel Module" in first else "")


def _backends() -> list[str]:
    import pyllama

    built = [entry for entry in pyllama.build_info() if entry.built]
    loaded = {backend.name for backend in pyllama.backends()}
    lines = [f"built: {', '.join(entry.name for entry in built)}"]
    lines.append(f"loaded: {', '.join(sorted(loaded))}")
    variant = pyllama.cpu_variant()
    if variant:
        lines.append(f"CPU variant: {variant}")
    lines += missing_drivers()
    for package in pyllama.backend_packages():
        state = "used" if package.problem is None else f"not used: {package.problem}"
        lines.append(f"{package.name} {package.version}: {state}")
    # "CUDA : ARCHS = 900 | USE_GRAPHS = 1 | CPU : SSE3 = 1 | AVX = 1 | "
    features = re.split(r"\| (?=\w+ : )", pyllama.system_info())
    return lines + [
        each.rstrip(" |").replace(" : ", ": ", 1).replace(" | ", ", ").replace(" = ", "=")
        for each in features
    ]


def _devices() -> list[str]:
    from adapter.models.hardware import HardwareManager

    lines = []
    for choice in HardwareManager().choices():
        device = choice.device
        free, total = device.memory
        memory = f"{file_size(free)} of {file_size(total)} free" if total else "system's memory"
        used = "used" if choice.used else "not used"
        lines.append(
            f"{device.name} ({device.backend}, {device.description}): {memory}; {used}: "
            f"{choice.reason}"
        )
    return lines


def _cpu() -> dict[str, object]:
    from adapter.generation.processor_load import n_processors
    from adapter.models.hardware import cpu_threads

    return {"threads": cpu_threads(), "processors": os.cpu_count(), "usable": n_processors()}


def _folders() -> dict[str, str]:
    from adapter.models.embedded_model import model_dir
    from adapter.models.hub.cache import cache_folder

    return {
        "models": _folder(model_dir()),
        "Hugging Face cache": _folder(cache_folder()),
    }


def _folder(path: Path) -> str:
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    state = "there" if path.is_dir() else "not there yet"
    if not os.access(there, os.W_OK):
        state += ", cannot be written"
    return f"{path} ({state}, {file_size(shutil.disk_usage(there).free)} free)"


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _SETTINGS if name in os.environ}


_SECTIONS: dict[str, Callable[[], Any]] = {
    "versions": _versions,
    "system": _system,
    "backends": _backends,
    "devices": _devices,
    "cpu": _cpu,
    "folders": _folders,
    "environment": _environment,
}


def _self_test() -> dict[str, object]:
    """Let the demo's model answer three times with one seed. It is not downloaded for that."""
    from adapter.generation.request import GenerationRequest
    from adapter.generation.sampling import Sampling
    from adapter.models.embedded_model import MODEL_NAME, model_dir
    from adapter.models.pool import ModelPool

    if not (model_dir() / f"{MODEL_NAME}.gguf").is_file():
        return {"result": "left out: pyllama demo 'Hello?' fetches the model for it"}
    start = time.perf_counter()
    with ModelPool(model_dir(), context_length=256) as pool:
        loaded = pool.load_model(MODEL_NAME)
        seconds_to_load = time.perf_counter() - start
        rendered = loaded.render([{"role": "user", "content": "Tell me a long story about a cat."}])
        request = GenerationRequest(
            tuple(loaded.tokenize(rendered)), max_tokens=_N_TOKENS, sampling=Sampling(), seed=1
        )
        answers, seconds = [], []
        for _ in range(_N_ANSWERS):
            start = time.perf_counter()
            answers.append(loaded.generators["batched"].generate(request))
            seconds.append(time.perf_counter() - start)
        first, *others = (answer.text for answer in answers)
        if not first.strip():
            raise RuntimeError("the model answered nothing")
        other = next((text for text in others if text != first), None)
        if not loaded.placement.devices and other is not None:
            raise RuntimeError(f"one seed gave two answers: {first!r} and {other!r}")
        alike = "alike " if other is None else ""  # on a GPU it need not be
        return {
            "result": f"a model was loaded and answered {alike}{_N_ANSWERS} times",
            "device": loaded.device,
            "loaded in": f"{seconds_to_load:.1f} s",
            "tokens/s": round(answers[0].completion_tokens / min(seconds), 1),
        }
