"""Whether an add-on's metadata asks for the wheel beside which it is installed.

    python packaging/addon_fits.py packaging/backends/cuda13 WHEEL

Needs ``build``. Nothing is compiled.
"""

from __future__ import annotations

import sys
from pathlib import Path

import build.util


def main(folder: str, wheel: str) -> None:
    """Ends with an error if it does not."""
    name, version = Path(wheel).name.split("-")[:2]
    needed = build.util.project_wheel_metadata(folder).get_all("Requires-Dist") or []
    if f"{name.replace('_', '-')}=={version}" not in needed:
        sys.exit(f"{folder} is for another wheel than {wheel}: it depends on {', '.join(needed)}")


main(*sys.argv[1:])
