"""Tokens to text, one at a time."""

from __future__ import annotations

import codecs

from pyllama.vocab import Vocab


class Detokenizer:
    """Turns a stream of tokens into text, never splitting a character.

    Bytes of a character that is not complete yet are held back until its last token comes.

    Args:
        special: render special tokens as their text, instead of as nothing.
    """

    def __init__(self, vocab: Vocab, *, special: bool = False) -> None:
        if not isinstance(vocab, Vocab):
            raise TypeError(f"vocab must be a pyllama.Vocab, got {vocab!r}")
        self._vocab = vocab
        self._special = special
        self._texts = vocab._texts[bool(special)]
        self._held = b""

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        if not self._held and type(token) is int and token in self._texts:
            self._vocab._model._open()
            return self._texts[token]
        data = self._held + self._vocab.token_to_piece(token, special=self._special)
        text, length = codecs.utf_8_decode(data, "replace", False)
        if not self._held and length == len(data):
            self._texts[token] = text
        self._held = data[length:]
        return text

    @property
    def held(self) -> bytes:
        """The bytes that are held back."""
        return self._held

    def flush(self) -> str:
        """End the stream: what is still held back, as U+FFFD."""
        held, self._held = self._held, b""
        return held.decode("utf-8", "replace")
