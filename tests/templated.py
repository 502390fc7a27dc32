"""A model's weights with another family's chat template."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

VENDOR = Path(__file__).parents[1] / "vendor"


def templates() -> dict[str, str]:
    """llama.cpp's own chat templates, by name."""
    script = VENDOR / "fetch_llama_cpp.py"
    subprocess.run([sys.executable, str(script), "--test-data"], check=True)
    paths = (VENDOR / "test-data" / "models" / "templates").glob("*.jinja")
    return {path.stem: path.read_text(encoding="utf-8") for path in paths}


def with_template(model: Path, source: str, into: Path) -> Path:
    """Write a copy of a model file whose chat template is another one."""
    written = into.with_suffix(".jinja")
    written.write_text(source, encoding="utf-8")
    script = "gguf.scripts.gguf_new_metadata"
    options = ["--chat-template-file", str(written), "--force", str(model), str(into)]
    subprocess.run(
        [sys.executable, "-m", script, *options], check=True, capture_output=True, text=True
    )
    return into
