"""Every class of a package that tells of itself, to be shown before it is made."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import is_dataclass


def described_classes(package):
    """The classes of a package whose __repr__ it wrote itself."""
    found = {}
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if module.name.endswith(("_chat_worker", "__main__")):
            continue
        for kind in vars(importlib.import_module(module.name)).values():
            if not inspect.isclass(kind) or not kind.__module__.startswith(package.__name__):
                continue
            if is_dataclass(kind):  # whose fields are all set at once
                continue
            describe = inspect.unwrap(kind.__repr__)
            if getattr(describe, "__module__", "").startswith(package.__name__):
                found[kind] = None
    return sorted(found, key=lambda kind: kind.__qualname__)
