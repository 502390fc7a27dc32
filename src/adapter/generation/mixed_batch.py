"""One batch of all that there is to compute: answers' last tokens, and pieces of prompts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import pyllama
from adapter.generation.memory.blocks import CHUNK, longest_call
from adapter.generation.memory.slots import Slot
from adapter.generation.sequence import Sequence

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
    """What of these goes into a batch of so many tokens.

    First answers that go on by one token, then those by a text that was forced, then prompts. Of
    the forced texts those come first that were passed over longest, and where prompts wait they
    leave room for a call of one: so neither keeps the others from going on.

    Args:
        prompts: in turn. One that may end anywhere is cut to the room.
        chunk: the most tokens of one prompt.
    """
    going_on = [_part(slot, chunk) for slot in running if slot.sequence is not None]
    going_on.sort(key=lambda part: (part.n_tokens > 1, part.n_tokens > 1 and part.sequence.step))
    waiting = [_part(slot, chunk) for slot in prompts if slot.sequence is not None]
    kept = longest_call(CHUNK) if waiting else 0
    parts = []
    for part in going_on:
        if 0 < part.n_tokens <= (room if part.n_tokens == 1 else room - kept):
            parts.append(part)
            room -= part.n_tokens
    for part in waiting:
        size = part.n_tokens
        if size > room and chunk > CHUNK:
            size = room if room >= LEAST_PIECE else 0
        if 0 < size <= room:
            parts.append(replace(part, end=part.begin + size))
            room -= size
    return parts


def _part(slot: Slot, chunk: int) -> Part:
    """What comes next of a request."""
    sequence = slot.sequence
    assert sequence is not None
    return Part(slot, sequence, sequence.n_past, sequence.next_end(chunk))


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
