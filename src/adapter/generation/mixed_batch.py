"""One batch of all that there is to compute: answers' last tokens, and pieces of prompts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pyllama
from adapter.generation.blocks import CHUNK
from adapter.generation.sequence import Sequence
from adapter.generation.slots import Slot

LEAST_PIECE = 32
"""Tokens of a prompt that are worth a place in a batch, unless they are its last."""


@dataclass(frozen=True)
class Part:
    """A slot's tokens in a batch: those from ``begin``, where its memory ends, up to ``end``."""

    slot: Slot
    sequence: Sequence
    begin: int
    end: int

    @property
    def n_tokens(self) -> int:
        """How many are to be computed."""
        return self.end - self.begin

    @property
    def is_current(self) -> bool:
        """Whether the request has neither ended nor been set back since."""
        return self.slot.sequence is self.sequence and self.sequence.n_past == self.begin

    @property
    def gives_output(self) -> bool:
        """Whether a token can be sampled after it."""
        return self.end == self.sequence.n_tokens


def choose_parts(
    running: Iterable[Slot], prompts: Iterable[Slot], *, room: int, chunk: int
) -> list[Part]:
    """What of these goes into a batch of so many tokens: answers first, then prompts in turn.

    :param chunk: the most tokens of one prompt. One that may end anywhere is cut to the room.
    """
    parts = []
    for slot in [*running, *prompts]:
        sequence = slot.sequence
        if sequence is None:
            continue
        size = sequence.next_end(chunk) - sequence.n_past
        if size > room and sequence.state == "prefilling" and chunk > CHUNK:
            size = room if room >= LEAST_PIECE else 0
        if 0 < size <= room:
            parts.append(Part(slot, sequence, sequence.n_past, sequence.n_past + size))
            room -= size
    return parts


def fill(batch: pyllama.Batch, parts: Iterable[Part]) -> dict[int, Part]:
    """Put the parts into an empty batch; return by output those after which one is sampled."""
    batch.clear()
    outputs = {}
    for part in parts:
        batch.add_tokens(
            part.sequence.tokens_between(part.begin, part.end),
            pos=part.begin,
            seq_id=part.slot.seq_id,
            outputs="last" if part.gives_output else "none",
        )
        if part.gives_output:
            outputs[len(batch) - 1] = part
    return outputs
