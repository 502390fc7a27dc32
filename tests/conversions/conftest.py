"""True conversions, which need torch and transformers: ``nox -s conversions``."""

from __future__ import annotations

from importlib.util import find_spec

_NEEDED = ("torch", "transformers", "sentencepiece", "safetensors", "peft", "sentence_transformers")

collect_ignore_glob = [] if all(map(find_spec, _NEEDED)) else ["test_*.py"]
