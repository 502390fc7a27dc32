"""Whether a file that was fetched is a whole GGUF file: it may have been cut before."""

from __future__ import annotations

from pathlib import Path

import pyllama


def problem_of(path: Path, shown: str) -> str | None:
    """What is wrong with a file by its header, or None.

    Args:
        shown: what to call the file.

    Raises:
        OSError: it cannot be read.
    """
    try:
        pyllama.tensor_infos(path)
    except pyllama.ModelLoadError as error:
        what, _, _remedy = str(error).partition(";")
        return what.replace(str(path), shown)
    return None
