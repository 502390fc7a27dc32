"""Write docs/reference/settings.md: every setting, as its declaration says.

python scripts/settings_table.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from adapter.engine.config import SETTINGS, LlamaCppConfig
from adapter.generation.sampling import Sampling
from adapter.generation.settings import MISSING, Setting, settings_of

TABLE = Path(__file__).parents[1] / "docs" / "reference" / "settings.md"

INTRODUCTION = """# Settings

Written by `scripts/settings_table.py` from the declarations in `adapter/generation/sampling.py` and
`adapter/engine/config.py`. Do not edit it by hand.

`LlamaCppConfig` holds the settings of a model. The third column says which of them a call may set,
as a keyword argument of `dspy.Predict`, `adapter.lm` or `adapter.lm.copy` with the same name. With
a plain `dspy.LM`, pass those of llama.cpp in `metadata={"llamacpp": {"min_p": 0.1}}`.

DSPy's cache distinguishes answers by the lm's name and by the request. The last column says whether
a setting of the config is part of that name: always, if it was changed, or never, because it does
not decide the answer. What a call sets is part of the request."""

IN_NAME = {"always": "always", "changed": "if changed", "never": "never"}
SET_BY = {"openai": "DSPy's name", "llamacpp": "llama.cpp's name", None: "only the config"}


def render() -> str:
    """The page, as Markdown."""
    samplers, in_config = settings_of(Sampling), settings_of(LlamaCppConfig)
    sections = {
        "Samplers": [it for name, it in SETTINGS.items() if name in samplers],
        "Answers": [
            it
            for name, it in SETTINGS.items()
            if name in in_config.keys() - samplers.keys() and it.call is not None
        ],
        "A call alone": [it for name, it in SETTINGS.items() if name not in in_config],
        "The config alone": [it for it in SETTINGS.values() if it.call is None],
    }
    parts = [INTRODUCTION]
    for title, settings in sections.items():
        parts += [f"## {title}", "\n".join(_rows(settings))]
    return "\n\n".join(parts) + "\n"


def _rows(settings: list[Setting]) -> Iterator[str]:
    yield "| setting | default | set by | values | what it does | in the lm's name |"
    yield "|---|---|---|---|---|---|"
    for each in settings:
        default = "" if each.default is MISSING else f"`{each.default!r}`"
        in_name = IN_NAME[each.in_name] if each.name in settings_of(LlamaCppConfig) else ""
        cells = (f"`{each.name}`", default, SET_BY[each.call], each.allowed, each.doc, in_name)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    TABLE.write_text(render(), encoding="utf-8")
