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

`LlamaCppConfig` holds the settings of a model. A call may set those that the third column names: as
keyword of `dspy.Predict`, `adapter.lm` or `adapter.lm.copy`, by the same name. A plain `dspy.LM`
passes those of llama.cpp on in `metadata={"llamacpp": {"min_p": 0.1}}`.

The last column says whether what a config has is part of the lm's name, by which DSPy's cache tells
answers apart: always, where it is not the default, or never, since it decides no answer. The cache
knows what a call sets by the request itself."""

IN_NAME = {"always": "always", "changed": "where changed", "never": "never"}
SET_BY = {"openai": "DSPy's name", "llamacpp": "llama.cpp's name", None: "the config alone"}


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
