"""Plans the batches of a step: which tokens of which requests are computed in one call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from operator import attrgetter
from typing import NamedTuple, Protocol

import numpy as np

import pyllama
from adapter.generation.answer_writer import LONGEST_RUN
from adapter.generation.batch_sizes import ONE_BY_ONE
from adapter.generation.exactness import Exactness
from adapter.generation.memory.blocks import CHUNK, longest_call
from adapter.generation.memory.kv_cache import KVCache, Slot
from adapter.generation.sequence import ScheduledRequest

LEAST_PIECE = 32
"""The fewest tokens of a prompt that are added to a batch, unless they are its last."""

FEW = 8
"""The most tokens of a batch that are written one by one. For more, arrays take less time."""


class Part(NamedTuple):
    """A slot's tokens in a batch: from ``begin``, where its memory ends, to ``end``.

    Attributes:
        window: the sequences that are computed together with it. Those without a part are padded.
    """

    slot: Slot
    sequence: ScheduledRequest
    begin: int
    end: int
    window: range | None = None

    @property
    def n_tokens(self) -> int:
        """The number of these tokens."""
        return self.end - self.begin

    @property
    def is_current(self) -> bool:
        """Whether the request has neither ended nor been rolled back since."""
        return self.slot.sequence is self.sequence and self.sequence.n_past == self.begin

    @property
    def is_answer(self) -> bool:
        """Whether it is one token of an answer."""
        return self.n_tokens == 1 and self.begin >= len(self.sequence.request.prompt)

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

    One chunk of each prompt whose turn it is, then a token of each answer, in those batches that
    take the least time of all that keep the bytes. Each text that a grammar forced is computed in a
    call of its own, as a prompt is.

    Args:
        exactness: how many answers a batch may hold, and how many are fast.
        chunk: tokens of a prompt that are computed at once.
        n_prompts: how many prompts have their turn in a step.
    """

    def __init__(self, exactness: Exactness, chunk: int, n_prompts: int = 1) -> None:
        self._exactness = exactness
        self._chunk = chunk
        self._n_prompts = n_prompts

    def step(
        self, caches: Iterable[KVCache], prefilling: Sequence[Slot]
    ) -> Iterator[tuple[KVCache, Batches]]:
        """Yield the KV cache of each prompt in turn, then each one with running answers."""
        for slot in list(islice(prefilling, self._n_prompts)):
            if slot.sequence is not None:  # it did not fail with the one before
                yield slot.cache, self._prefill(slot)
        for cache in caches:
            yield cache, self._decode(cache)

    def _prefill(self, slot: Slot) -> Batches:
        parts = choose_parts([], [slot], room=slot.cache.context.n_batch, chunk=self._chunk)
        yield [self._padded(part) for part in parts]

    def _decode(self, cache: KVCache) -> Batches:
        room = (LONGEST_RUN + 1) * cache.count
        parts = choose_parts(cache.running, [], room=room, chunk=self._chunk)
        single = [part for part in parts if part.n_tokens == 1 and not part.sequence.restarted]
        others = [part for part in parts if part.n_tokens > 1 or part.sequence.restarted]
        windows = self._exactness.windows(cache.count)
        if windows is not None:
            for window in windows.cover(part.slot.seq_id for part in single):
                inside = [part for part in single if part.slot.seq_id in window]
                yield [part._replace(window=window) for part in inside]
        else:
            sizes = self._exactness.batch_sizes(cache.count) if len(single) > 1 else ONE_BY_ONE
            yield from sizes.split(single)
        yield from ([self._padded(part)] for part in others)

    def _padded(self, part: Part) -> Part:
        """A part that is computed without others: a token of an answer as it is beside them."""
        windows = self._exactness.windows(part.slot.cache.count) if part.is_answer else None
        if windows is None:
            return part
        return part._replace(window=windows.cover([part.slot.seq_id])[0])


class MixedPlan:
    """One batch of all answers, filled up with prompts, which needs the fewest calls.

    Requests that are computed by themselves are left out, and room is left for their next tokens.

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
        prompts = [slot for slot in prefilling if slot.cache is cache and not _joined(slot)]
        answers = [slot for slot in cache.running if not _joined(slot)]
        room = cache.context.n_batch - sum(map(_joined, cache.slots))
        parts = choose_parts(answers, prompts, room=room, chunk=self._chunk)
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
    waiting = [_part(slot, chunk) for slot in prompts if slot.sequence is not None]
    kept = longest_call(CHUNK) if waiting else 0
    parts = [part for part in going_on if part.n_tokens == 1][:room]
    room -= len(parts)
    forced = [part for part in going_on if part.n_tokens > 1]
    for part in sorted(forced, key=attrgetter("sequence.step")):
        if part.n_tokens <= room - kept:
            parts.append(part)
            room -= part.n_tokens
    for part in waiting:
        size = part.n_tokens
        if size > room and chunk > CHUNK:
            size = room if room >= LEAST_PIECE else 0
        if 0 < size <= room:
            parts.append(part._replace(end=part.begin + size))
            room -= size
    return parts


def _joined(slot: Slot) -> bool:
    """Whether a slot's request is computed by itself."""
    return slot.sequence is not None and slot.sequence.joined


def _part(slot: Slot, chunk: int) -> Part:
    """The next tokens of a request."""
    sequence = slot.sequence
    assert sequence is not None
    return Part(slot, sequence, sequence.n_past, sequence.next_end(chunk))


def fill(
    batch: pyllama.Batch, parts: Iterable[Part], padding: Mapping[int, int] | None = None
) -> dict[int, Part]:
    """Fill an empty batch. Returns the parts after which a token is sampled, by output.

    Args:
        padding: positions of tokens that nobody needs, by their sequences.
    """
    rows = _Rows()
    padded = sorted((padding or {}).items(), reverse=True)
    outputs = {}
    for part in parts:
        seq_id = part.slot.seq_id
        while padded and padded[-1][0] < seq_id:
            rows.pad(*padded.pop())
        rows.add(part.sequence.tokens_between(part.begin, part.end), part.begin, seq_id)
        if part.gives_output:
            rows.outputs[-1] = True
            outputs[len(rows.outputs) - 1] = part
    while padded:
        rows.pad(*padded.pop())
    batch.clear()
    rows.write(batch)
    return outputs


class _Rows:
    """The rows of a batch."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.seq_ids: list[int] = []
        self.outputs: list[bool] = []

    def add(self, tokens: list[int], pos: int, seq_id: int) -> None:
        """Add tokens of a sequence from a position on."""
        self.tokens += tokens
        self.positions += range(pos, pos + len(tokens))
        self.seq_ids += [seq_id] * len(tokens)
        self.outputs += [False] * len(tokens)

    def pad(self, seq_id: int, pos: int) -> None:
        """Add a token that nobody needs. Its output lets its row go as far as others."""
        self.add([0], pos, seq_id)
        self.outputs[-1] = True

    def write(self, batch: pyllama.Batch) -> None:
        """Fill a batch with them. Many are checked and copied all at once, few one by one."""
        if len(self.tokens) > FEW:
            wanted = np.array(self.outputs, bool)
            batch.add_tokens(self.tokens, pos=self.positions, seq_id=self.seq_ids, outputs=wanted)
            return
        for row in zip(self.tokens, self.positions, self.seq_ids, self.outputs, strict=True):
            token, pos, seq_id, output = row
            batch.add(token, pos, (seq_id,), output=output)
