"""Write docs/coverage.md: where each function of llama.h is in pyllama, or why it is not.

    python scripts/coverage_table.py

What it says is in coverage.ini, beside this file: under each section of llama.h a line for each
function, ``function = value``, in the header's order. A value is one of

- public names: ``pyllama.Context.decode, pyllama.Context.decode_token``
- ``deprecated:`` and the function to use instead
- ``internal:`` and what pyllama uses it for, or does in its place
- ``left out:`` and why
- ``not yet:`` and the public name that it is going to have
"""

from __future__ import annotations

import ast
import configparser
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
HEADER = ROOT / "vendor" / "llama.cpp" / "include" / "llama.h"
MAPPING = Path(__file__).with_name("coverage.ini")
TABLE = ROOT / "docs" / "coverage.md"

REASONS = ("deprecated", "internal", "left out", "not yet")

# A comment of three lines, after an empty one, whose middle line is the title.
_HEADING = re.compile(r"\n\n +//\n +// (.+)\n +//\n")
_COMMENT = re.compile(r"//[^\n]*")
_FUNCTION = re.compile(r"LLAMA_API\b.*?\b(llama_\w+)\s*\(", re.DOTALL)


class Function(NamedTuple):
    """One function that llama.h exports."""

    name: str
    section: str
    deprecated: bool


class Entry(NamedTuple):
    """What coverage.ini says of a function: public names, or a reason with its explanation."""

    section: str
    names: tuple[str, ...] = ()
    reason: str | None = None
    detail: str = ""


def read_header(path: Path = HEADER) -> dict[str, Function]:
    """Every LLAMA_API function, by name, in the header's order."""
    before, *titled = _HEADING.split(path.read_text(encoding="utf-8"))
    found = {}
    for title, text in [("C interface", before), *zip(titled[::2], titled[1::2], strict=True)]:
        for statement in _statements(text):
            if match := _FUNCTION.search(statement):
                deprecated = "DEPRECATED(" in statement[: match.end()]
                found[match[1]] = Function(match[1], title, deprecated)
    return found


def read_mapping(path: Path = MAPPING) -> dict[str, Entry]:
    """What coverage.ini says, by function, in its order.

    :raises configparser.DuplicateOptionError: a function stands twice in a section.
    """
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None)
    parser.read_string(path.read_text(encoding="utf-8"))
    return {
        function: _entry(section, value)
        for section in parser.sections()
        for function, value in parser.items(section)
    }


def is_public(name: str) -> bool:
    """Whether pyllama has it: a module's name, a class's attribute, or one that objects have."""
    import pyllama  # which the functions above this one can do without, before it is built

    package, _, path = name.partition(".")
    names = path.split(".")
    if package != "pyllama" or names[0] not in pyllama.__all__ or len(names) > 2:
        return False
    if names[-1].startswith("_"):
        return False
    thing = getattr(pyllama, names[0])
    return len(names) == 1 or hasattr(thing, names[1]) or names[1] in _set_on_self(thing)


def render(functions: dict[str, Function], mapping: dict[str, Entry]) -> str:
    """The table, as Markdown."""
    counts = dict.fromkeys((None, *REASONS), 0)
    for name in functions:
        counts[mapping[name].reason] += 1
    parts = [
        "# llama.h in pyllama",
        "Written by `scripts/coverage_table.py` from the pinned `llama.h` and\n"
        "`scripts/coverage.ini`; do not edit it by hand.",
        f"{len(functions)} functions: {counts[None]} public, "
        + ", ".join(f"{counts[reason]} {reason}" for reason in REASONS)
        + ".",
    ]
    missing = [f"- `{name}`: {mapping[name].detail}" for name in _not_yet(functions, mapping)]
    if missing:
        parts += ["## Not yet", "\n".join(missing)]
    for section in dict.fromkeys(function.section for function in functions.values()):
        rows = [
            f"| `{name}` | {_cell(mapping[name])} |"
            for name, function in functions.items()
            if function.section == section
        ]
        title = section[0].upper() + section[1:]
        parts += [f"## {title}", "\n".join(["| llama.h | pyllama |", "|---|---|", *rows])]
    return "\n\n".join(parts) + "\n"


def _statements(text: str) -> Iterator[str]:
    """The C statements, without comments and directives."""
    lines = _COMMENT.sub("", text).replace("\\\n", "").splitlines()
    yield from "\n".join(line for line in lines if not line.startswith("#")).split(";")


def _entry(section: str, value: str) -> Entry:
    reason, colon, detail = value.partition(":")
    if colon and reason in REASONS:
        return Entry(section, reason=reason, detail=detail.strip())
    return Entry(section, names=tuple(name.strip() for name in value.split(",")))


def _not_yet(functions: dict[str, Function], mapping: dict[str, Entry]) -> list[str]:
    return [name for name in functions if mapping[name].reason == "not yet"]


def _cell(entry: Entry) -> str:
    if entry.reason is None:
        return ", ".join(f"`{name}`" for name in entry.names)
    if entry.reason == "deprecated" and entry.detail.startswith("llama_"):
        return f"deprecated: `{entry.detail}`"
    return f"{entry.reason}: {entry.detail}"


def _set_on_self(thing: object) -> set[str]:
    """Names that the methods of a class of pyllama's set on their objects."""
    found: set[str] = set()
    if not isinstance(thing, type):
        return found
    for cls in thing.__mro__:
        found |= set(getattr(cls, "__annotations__", {}))
        if not cls.__module__.startswith("pyllama."):
            continue
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(cls)))):
            match node:
                case ast.Attribute(value=ast.Name(id="self"), attr=attr, ctx=ast.Store()):
                    found.add(attr)
    return found


if __name__ == "__main__":
    TABLE.write_text(render(read_header(), read_mapping()), encoding="utf-8")
