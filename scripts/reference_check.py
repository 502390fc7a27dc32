"""Checks that the built documentation describes every public name.

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


def main(site: str) -> int:
    with (Path(site) / "objects.inv").open("rb") as file:
        described = Inventory.parse_sphinx(file)
    missing = sorted((public_names("pyllama") | public_names("adapter")) - set(described))
    if missing:
        print(f"docs/reference lacks {', '.join(missing)}", file=sys.stderr)
    return bool(missing)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
