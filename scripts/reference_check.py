"""Checks that the built documentation describes every public name, and every public attribute.

Usage: python scripts/reference_check.py SITE
"""

from __future__ import annotations

import ast
import re
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

    Left out is what the text of the class describes.
    """
    classes = {
        node.name: node
        for path in (SOURCES / package).rglob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    found = set()
    for dotted in public_names(package):
        name = dotted.partition(".")[2]
        if name in classes:
            found |= {f"{dotted}.{attribute}" for attribute in _undescribed(name, classes)}
    return found


def _undescribed(name: str, classes: dict[str, ast.ClassDef]) -> set[str]:
    """What a class and its bases declare or set on self, but for what their texts describe."""
    names = set()
    for node in ast.walk(classes[name]):
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr=attribute, ctx=ast.Store()):
                names.add(attribute)
            case ast.AnnAssign(target=ast.Name(id=attribute)) if node in classes[name].body:
                names.add(attribute)
    found = {each for each in names if not each.startswith("_")} - {"args"}  # of every exception
    for base in classes[name].bases:
        base_name = ast.unparse(base).partition("[")[0]
        if base_name in classes and base_name != name:
            found |= _undescribed(base_name, classes)
    text = ast.get_docstring(classes[name]) or ""
    return {each for each in found if not re.search(rf"^ *{each}[: ]", text, re.MULTILINE)}


def settings() -> set[str]:
    """The dotted names of the settings, which have a page of their own."""
    page = SOURCES.parent / "docs" / "reference" / "settings.md"
    rows = re.findall(r"^\| `(\w+)` \|", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {f"adapter.LlamaCppConfig.{name}" for name in rows}


def main(site: str) -> int:
    with (Path(site) / "objects.inv").open("rb") as file:
        described = Inventory.parse_sphinx(file)
    wanted = set()
    for package in ("pyllama", "adapter"):
        wanted |= public_names(package) | public_attributes(package)
    missing = sorted(wanted - set(described) - settings())
    if missing:
        print(f"the reference does not describe {', '.join(missing)}", file=sys.stderr)
    return bool(missing)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
