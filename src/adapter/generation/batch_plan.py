"""Plans the batches of a step: which tokens of which requests are computed in one call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import pyllama
from adapter.generation.answer_writer import LONGEST_RUN
from adapter.generation.batch_sizes import ONE_BY_ONE
from adapter.generation.exactness import Exactness
from adapter.generation.memory.blocks import CHUNK, longest_call
from adapter.generation.memory.kv_cache import KVCache, Slot
from adapter.generation.sequence import Sequence as Request

LEAST_PIECE = 32
"""The fewest tokens of a prompt that are added to a batch, unless they are its last."""


@dataclass(frozen=True)
class Part:
    """A slot's tokens in a batch: from ``begin``, where its memory ends, to ``end``."""

    slot: Slot
    sequence: Request
    begin: int
    end: int

    @property
    def n_tokens(self) -> int:
        """The number of these tokens."""
        return self.end - self.begin

    @property
    def is_current(self) -> bool:
        """Whether the request has neither ended nor been rolled back since."""
        return self.slot.sequence is self.sequence and self.sequence.n_past == self.begin

    @property
    def gives_output(self) -> bool:
        """Whether a token can be sampled after these."""
        return self.end == self.sequence.n_tokens


Batches = Iterator[list[Part]]
"""Batches of one KV cache. Each is planned after the one before it was computed."""


class Plan(Protocol):
    """Decides how a step computes prompts and answers."""

    def step(
        self, caches: Iterable[KVCache], prefilling: Sequence[Slot]
    ) -> Iterator[tuple[KVCache, Batches]]:
        """Yield each KV cache with its batches. The same one may come several times.

        Args:
            prefilling: slots whose prompts are being computed, in turn.
        """


class ExactPlan:
    """Batches in which a request gets the same bytes whatever else runs.

    One chunk of one prompt, then a token of each answer, in those batches that take the least time
    of all that keep the bytes. Each text that a grammar forced is computed in a call of its own, as
    a prompt is.

    Args:
        exactness: how many answers a batch may hold, and how many are fast.
        chunk: tokens of a prompt that are computed at once.
    """

    def __init__(self, exactness: Exactness, chunk: int) -> None:
        self._exactness = exactness
        self._chunk = chunk

    def step(
        self, caches: Iterable[KVCache], prefilling: Sequence[Slot]
    ) -> Iterator[tuple[KVCache, Batches]]:
        """Yield the KV cache of the next prompt in turn, then each one with running answers."""
        if prefilling:
            yield prefilling[0].cache, self._prefill(prefilling[0])
        for cache in caches:
            yield cache, self._decode(cache)

    def _prefill(self, slot: Slot) -> Batches:
        yield choose_parts([], [slot], room=slot.cache.context.n_batch, chunk=self._chunk)

    def _decode(self, cache: KVCache) -> Batches:
        room = (LONGEST_RUN + 1) * cache.count
        parts = choose_parts(cache.running, [], room=room, chunk=self._chunk)
        single = [part for part in parts if part.n_tokens == 1 and not part.sequence.restarted]
        others = [part for part in parts if part.n_tokens > 1 or part.sequence.restarted]
        sizes = self._exactness.batch_sizes(cache.count) if len(single) > 1 else ONE_BY_ONE
        yield from sizes.split(single)
        yield from ([part] for part in others)


class MixedPlan:
    """One batch of all answers, filled up with prompts, which needs the fewest calls.

    Args:
        chunk: the most tokens of a prompt that are computed at once.
    """

    def __init__(self, chunk: int) -> None:
        self._chunk = chunk

    def step(
        self, caches: Iterable[KVCache], prefilling: Sequence[Slot]
    ) -> Iterator[tuple[KVCache, Batches]]:
        """Yield each KV cache with one batch, and one more batch for each request that failed
        before.
        """
        for cache in caches:
            yield cache, self._batches(cache, prefilling)

    def _batches(self, cache: KVCache, prefilling: Sequence[Slot]) -> Batches:
        prompts = [slot for slot in prefilling if slot.cache is cache]
        room = cache.context.n_batch
        parts = choose_parts(cache.running, prompts, room=room, chunk=self._chunk)
        yield [part for part in parts if not part.sequence.restarted]
        yield from ([part] for part in parts if part.sequence.restarted)


def choose_parts(
    running: Iterable[Slot], prompts: Iterable[Slot], *, room: int, chunk: int
) -> list[Part]:
    """Choose what fits into a batch of a number of tokens.

    Answers that need one token come first, then answers with forced text, then prompts. Among the
    forced texts, those that have been left out longest come first. If prompts wait, forced texts
    leave room for one chunk. So neither blocks the other.

    Args:
        prompts: in turn. One that may be cut anywhere is cut to the room.
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
    """The next tokens of a request."""
    sequence = slot.sequence
    assert sequence is not None
    return Part(slot, sequence, sequence.n_past, sequence.next_end(chunk))


def fill(batch: pyllama.Batch, parts: Iterable[Part]) -> dict[int, Part]:
    """Fill an empty batch. Returns the parts after which a token is sampled, by output."""
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
