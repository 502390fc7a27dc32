"""The files of a split model."""

from __future__ import annotations

import re
from pathlib import Path

# How llama.cpp names the parts of a model (llama_split_path).
PART = re.compile(r"(?P<name>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})")


def parts(path: Path) -> tuple[Path, ...]:
    """All files of a model, from its file or its first part, whether or not they exist."""
    part = PART.fullmatch(path.stem)
    if part is None or int(part["index"]) != 1:
        return (path,)
    count = part["count"]
    return tuple(
        path.with_name(f"{part['name']}-{index:05}-of-{count}.gguf")
        for index in range(1, max(1, int(count)) + 1)
    )


def plain_name(path: Path) -> str:
    """The name in its folder of the model in a file or a first part."""
    part = PART.fullmatch(path.stem)
    return path.stem if part is None else part["name"]
