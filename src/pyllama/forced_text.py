"""Which of the texts that a grammar forces are written as tokens, without sampling."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from pyllama._arguments import INT32_MAX, integer
from pyllama._native._binding import ffi
from pyllama.vocab import Vocab

if TYPE_CHECKING:
    from pyllama._native._binding import pyllama_forcing

MAX_FORCED = 1024
"""The most tokens that are written at once."""


@dataclass(frozen=True)
class Forcing:
    """When the tokens of a forced text are written instead of sampled.

    They are those that the tokenizer makes of the text, without the last one, which may become a
    part of a longer token. A text is left to sampling if it spells a control token, if its tokens
    spell something else, or if they leave too few to complete the text in time.

    Attributes:
        fewest: a text of fewer tokens is left to sampling.
        most: tokens that are written at once.
        never: tokens with which a text is left to sampling.
    """

    fewest: int = 2
    most: int = 32
    never: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        integer("fewest", self.fewest, 1, INT32_MAX)
        integer("most", self.most, 1, MAX_FORCED)
        if not isinstance(self.never, tuple):
            raise TypeError(f"never must be a tuple of tokens, got {self.never!r}")
        for token in self.never:
            integer("never", token, 0, INT32_MAX)

    @cached_property
    def _never(self) -> array[int]:
        """The tokens as C reads them. There may be as many as the vocabulary has."""
        return array("i", self.never)

    def _fill(self, struct: pyllama_forcing, vocab: Vocab) -> list[object]:
        """Fill a struct of C, and return what it points to."""
        tokenizer, never = vocab._tokenizer, ffi.from_buffer("llama_token[]", self._never)
        struct.tokenizer, struct.fewest, struct.most = tokenizer.pointer, self.fewest, self.most
        struct.never, struct.n_never = never, len(self.never)
        return [tokenizer, never]
