"""Converts models in Hugging Face's format to GGUF, with llama.cpp's converter."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pyllama
from adapter.errors import ConversionError
from adapter.models.disk_space import too_little_room
from adapter.models.tool_process import run_tool
from adapter.wording import file_size, reason_of
from pyllama.scratch_folder import scratch_folder

_NEEDED = ("torch", "transformers", "sentencepiece", "safetensors", "google.protobuf")
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
_PERCENT = re.compile(r"Writing: +(\d+)%")


def convert(
    folder: Path,
    target: Path,
    *,
    outtype: str = "auto",
    lora_base: Path | None = None,
    trust_remote_code: bool = False,
    report: Callable[[float], object] | None = None,
) -> Path:
    """Convert a model or an adapter, and return the file that was written.

    The file appears when it is complete and llama.cpp reads its header. The converter does not use
    the network.

    Args:
        folder: with config.json, the tokenizer's files and the weights; for an adapter, with
            adapter_config.json.
        target: the file to write. "{type}" in its name is replaced by the type of most of its
            weights.
        outtype: "f32", "f16", "bf16", "q8_0", or "auto" for 16 bits as in the original.
        lora_base: the folder of the model that an adapter is for; None for a model.
        trust_remote_code: let the converter run Python code that the folder contains.
        report: called with the fraction that was written, 0.0 to 1.0.

    Raises:
        ConversionError: the model cannot be converted. The message says what to do.
    """
    require_converter()
    kind = "model" if lora_base is None else "adapter"
    folders = [folder] if lora_base is None else [folder, lora_base]
    for each in folders:
        _require_convertible(each, trust_remote_code=trust_remote_code)
    config = folder / ("config.json" if lora_base is None else "adapter_config.json")
    if not config.is_file():
        raise ConversionError(f"{folder} holds no {config.name}: it is no {kind} that can be read")
    try:
        size = sum(path.stat().st_size for path in _weights(folder))
        if not size:
            raise ConversionError(f"{folder} holds no weights: no {' or '.join(_WEIGHTS)}")
        needed = size * (2 if outtype == "f32" else 1)
        free = too_little_room(target.parent, needed)
        if free is not None:
            raise ConversionError(
                f"up to {file_size(needed)} would be written, but {target.parent} has {free}"
            )
        with scratch_folder(target.parent, ".converting-") as scratch:
            made = scratch / "model.gguf"
            script = pyllama.converter_script("model" if lora_base is None else "lora")
            command = [sys.executable, str(script), str(folder.resolve())]
            command += ["--outfile", str(made), "--outtype", outtype]
            if lora_base is not None:
                command += ["--base", str(lora_base.resolve())]
            _run(command, report)
            final = target.with_name(target.name.replace("{type}", _type_of(made, kind)))
            os.replace(made, final)
            return final
    except OSError as error:
        raise ConversionError(f"{target} cannot be made: {reason_of(error)}") from error


def require_converter() -> None:
    """Raise ConversionError if packages that the converter needs are missing."""
    missing = [name for name in _NEEDED if not _is_installed(name)]
    if missing:
        raise ConversionError(
            f"converting needs {', '.join(missing)}: {pyllama.extra_command('convert')}; where no "
            "GPU is used, install a CPU build of torch first, which is much smaller"
        )


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:  # the gguf package beside it
        return False


def _require_convertible(folder: Path, *, trust_remote_code: bool) -> None:
    if not folder.is_dir():
        raise ConversionError(f"{folder} is no folder")
    code = sorted(path.name for path in folder.rglob("*.py"))
    if code and not trust_remote_code:
        raise ConversionError(
            f"{folder} holds Python code ({', '.join(code[:3])}), which the converter would run: "
            "remove it, or allow it with --trust-remote-code where you trust its author"
        )


def _weights(folder: Path) -> Iterable[Path]:
    return {path for pattern in _WEIGHTS for path in folder.glob(pattern)}


def _run(command: list[str], report: Callable[[float], object] | None) -> None:
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
    }
    environment.pop("NO_LOCAL_GGUF", None)

    def follow(line: str) -> bool:
        found = _PERCENT.match(line)
        if found and report is not None:
            report(int(found[1]) / 100)
        return found is not None

    code, output = run_tool(command, follow, environment=environment)
    if code:
        raise ConversionError(f"llama.cpp's converter failed ({code}); its output:\n{output}")


def _type_of(path: Path, kind: str) -> str:
    """The type of a file's weights. Refuses a file that llama.cpp does not read."""
    ftype: str | None = None
    try:
        if kind == "model":
            with pyllama.Model(path, vocab_only=True) as model:
                ftype = model.ftype
        tensors = pyllama.tensor_infos(path)
    except pyllama.LlamaError as error:
        raise ConversionError(f"what the converter wrote cannot be read: {error}") from error
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.size
    return ftype or max(sizes, key=sizes.__getitem__, default="f32").upper()
