"""llama.cpp's converters from Hugging Face's formats, as the pinned commit has them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pyllama._arguments import choice
from pyllama._native import _binding

_FOLDER = Path(os.path.dirname(_binding.__file__)) / "converter"
_SCRIPTS = {"model": "convert_hf_to_gguf.py", "lora": "convert_lora_to_gguf.py"}


def converter_script(kind: Literal["model", "lora"] = "model") -> Path:
    """The path of llama.cpp's own program that writes GGUF from a folder in Hugging Face's format.

    Run it with this Python, in a process of its own: it needs torch, transformers, sentencepiece
    and safetensors. It takes a folder, ``--outfile`` and ``--outtype``. It runs code that the
    folder holds: look for ``*.py`` in folders that are not yours.

    Args:
        kind: ``"model"``, or ``"lora"`` for an adapter.
    """
    name: str = choice("kind", kind, _SCRIPTS)
    return _FOLDER / name
