"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path


def local_path(path: str | os.PathLike[str]) -> Path:
    """The path that a user wrote. "~" is kept where there is no such home, as shells do."""
    return Path(os.path.expanduser(path))
