"""Calls with an id between name and arguments, as Mistral Small 3.2 writes them.

llama.cpp finds out this format by comparing what the template writes. If the vocabulary has a token
for the end of a sequence, llama.cpp takes the mark before the arguments for a part of the name. Its
grammar and parser then expect the mark twice, which the model never saw in training. They also
allow an id of any length.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

import pyllama

_TWICE = re.compile(r'"(?P<args>[^"\\]+)"\) \("(?P<id>[^"\\]+)" until-\d+\)\? "(?P=args)"')
_ANY_ID = re.compile(r'\("(?P<id>\[CALL_ID\])" until-\d+\)\?')
_ID = r'"\g<id>" [A-Za-z0-9]{9}'


def with_call_ids(rendered: pyllama.RenderedChat, names: Iterable[str]) -> pyllama.RenderedChat:
    """Return a rendered conversation whose calls have the form that its template shows.

    Args:
        names: the functions that may be called.
    """
    found = _TWICE.search(rendered.grammar)
    if found is None:
        return replace(rendered, grammar=_ANY_ID.sub(_ID, rendered.grammar))
    grammar = _TWICE.sub(rf'"") {_ID} "\g<args>"', rendered.grammar)
    parser = _CallIdParser(rendered.parser, names, found["id"], found["args"])
    return replace(rendered, grammar=grammar, parser=parser)


class _CallIdParser(pyllama.ChatParser):
    """Reads calls in the form in which they are written, with the parser that expects the mark
    twice.
    """

    def __init__(
        self, parser: pyllama.ChatParser, names: Iterable[str], before_id: str, before_args: str
    ) -> None:
        self._parser = parser
        self._before_id, self._before_args = before_id, before_args
        self._begin = re.compile(f"({'|'.join(map(re.escape, names))}){re.escape(before_id)}")

    def parse(self, text: str | bytes, *, partial: bool = False) -> pyllama.ChatMessage:
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        if partial:
            # An incomplete mark would be read as a name that something follows.
            for size in range(len(self._before_id) - 1, 0, -1):
                if text.endswith(self._before_id[:size]):
                    text = text[:-size]
                    break
        twice = self._begin.sub(self._with_mark, text)
        return self._parser.parse(twice, partial=partial)

    def _with_mark(self, found: re.Match[str]) -> str:
        return f"{found[1]}{self._before_args}{self._before_id}"
