"""The package that this one was installed from."""

from __future__ import annotations

import functools

#: The command that the package installs: it tells the package from others of a similar name.
_COMMAND = "pyllama"


@functools.cache
def distribution_name() -> str:
    """The name by which pip knows this package, such as ``"pyllama-dspy"``.

    It is the package's own metadata that says it. Where there is none, because the source files
    are imported without being installed, it is the name of the import package.
    """
    from importlib import metadata  # it brings email and socket, and few programs need it

    found = metadata.entry_points(group="console_scripts", name=_COMMAND)
    names = sorted(each.dist.name for each in found if each.dist is not None)
    return names[-1] if names else __name__.partition(".")[0]


def extra_command(extra: str) -> str:
    """The command that installs one of the package's extras.

    ::

        >>> pyllama.extra_command("convert")
        "pip install 'pyllama-dspy[convert]'"
    """
    if not isinstance(extra, str):
        raise TypeError(f"extra must be a str, got {extra!r}")
    return f"pip install '{distribution_name()}[{extra}]'"
