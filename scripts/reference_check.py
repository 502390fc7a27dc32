"""Checks that the built documentation describes every public name, and every public attribute.

Usage: python scripts/reference_check.py SITE
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from mkdocstrings import Inventory

SOURCES = Path(__file__).parents[1] / "src"


def public_names(package: str) -> set[str]:
    """The dotted names in a package's ``__all__``, read without importing it."""
    tree = ast.parse((SOURCES / package / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return {f"{package}.{name}" for name in ast.literal_eval(node.value)}
    raise LookupError(f"{package} has no __all__")


def public_attributes(package: str) -> set[str]:
    """The dotted names of what a package's public classes set on their objects.

    The fields of dataclasses stand in the text of their class.
    """
    tree = ast.parse((SOURCES / package / "__init__.py").read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            path = SOURCES.joinpath(*node.module.split(".")).with_suffix(".py")
            classes = _classes(path) if path.is_file() else {}
            for alias in node.names:
                if (cls := classes.get(alias.name)) and not cls.decorator_list:
                    found |= {f"{package}.{cls.name}.{name}" for name in _set_by(cls)}
    return found


def _classes(path: Path) -> dict[str, ast.ClassDef]:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return {node.name: node for node in body if isinstance(node, ast.ClassDef)}


def _set_by(cls: ast.ClassDef) -> set[str]:
    """What a class declares, and what its methods set on self."""
    names = set()
    for node in ast.walk(cls):
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                names.add(name)
            case ast.AnnAssign(target=ast.Name(id=name)) if node in cls.body:
                names.add(name)
    return {name for name in names if not name.startswith("_")}


def main(site: str) -> int:
    with (Path(site) / "objects.inv").open("rb") as file:
        described = Inventory.parse_sphinx(file)
    wanted = set()
    for package in ("pyllama", "adapter"):
        wanted |= public_names(package)
    wanted |= public_attributes("pyllama")
    missing = sorted(wanted - set(described))
    if missing:
        print(f"the reference does not describe {', '.join(missing)}", file=sys.stderr)
    return bool(missing)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
