"""The distribution package that this one was installed from."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import Distribution, EntryPoint

#: The command that the package installs. It distinguishes the package from others of a similar
#: name.
_COMMAND = "pyllama"


@functools.cache
def distribution_name() -> str:
    """The name by which pip knows this package, such as ``"pyllama-dspy"``.

    The package's own metadata says it. Where there is none, because the source files are imported
    without being installed, it is the name of the import package.
    """
    commands = [each for each in entry_points("console_scripts") if each.name == _COMMAND]
    names = sorted(filter(None, (name_and_version(each)[0] for each in commands)))
    return names[-1] if names else __name__.partition(".")[0]


def name_and_version(entry: EntryPoint) -> tuple[str, str]:
    """Those of the package that an entry point belongs to; ``""`` for what it does not say."""
    if entry.dist is None:
        return "", ""
    try:
        # metadata["Name"] warns where it is missing, and raises KeyError in a later Python.
        named, versions = (entry.dist.metadata.get_all(key, [""]) for key in ("Name", "Version"))
    except (AttributeError, OSError):  # there is no metadata at all, in a later Python
        return "", ""
    return named[0], versions[0]


def extra_command(extra: str) -> str:
    """The command that installs one of the package's extras.

    ::

        >>> pyllama.extra_command("convert")
        "pip install 'pyllama-dspy[convert]'"
    """
    if not isinstance(extra, str):
        raise TypeError(f"extra must be a str, got {extra!r}")
    return f"pip install '{distribution_name()}[{extra}]'"


def entry_points(group: str) -> list[EntryPoint]:
    """The entry points of every installed package that can be read.

    ``importlib.metadata.entry_points`` fails as a whole where one package is damaged.
    """
    from importlib import metadata  # it brings email and socket, and few programs need it

    return [entry for package in metadata.distributions() for entry in _of(package, group)]


def _of(package: Distribution, group: str) -> list[EntryPoint]:
    try:
        return [entry for entry in package.entry_points if entry.group == group]
    except (TypeError, ValueError, OSError):  # what its parser happens to raise
        return []
