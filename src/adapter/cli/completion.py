"""The names of models that a shell completes a word to."""

from __future__ import annotations

import os
from contextlib import suppress

_COLON = ":"
_head = ""  # of the word to complete, what bash takes for words before it


def rejoin_words() -> None:
    """Have typer see a name with colons as one word. Bash divides words at colons."""
    global _head
    words = os.environ.get("COMP_WORDS", "").split("\n")
    index = os.environ.get("COMP_CWORD", "")
    if os.environ.get("_PYLLAMA_COMPLETE") != "complete_bash" or not index.isdecimal():
        return
    joined: list[str] = []
    goes_on = False
    for word in words[: int(index) + 1]:
        is_colon = len(joined) > 1 and bool(word) and not word.strip(_COLON)
        if is_colon or goes_on:
            joined[-1] += word
        else:
            joined.append(word)
        goes_on = is_colon
    if len(joined) == len(words[: int(index) + 1]):
        return
    head, colon, tail = joined[-1].rpartition(_COLON)
    _head = head + colon
    os.environ["COMP_WORDS"] = "\n".join((*joined[:-1], tail))
    os.environ["COMP_CWORD"] = str(len(joined) - 1)


def completed(prefix: str) -> list[str]:
    """The names that begin with a word, without what bash keeps of it. No file is opened."""
    from adapter.cli.references import own_names
    from adapter.models.embedded_model import model_dir
    from adapter.models.stores import stored_models

    found = [model.name for model in stored_models()]
    with suppress(OSError):
        found += own_names(model_dir())
    return [name.removeprefix(_head) for name in found if name.startswith(_head + prefix)]
