"""True conversions, which need torch and transformers: ``nox -s conversions``."""

from __future__ import annotations

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["test_*.py"]
