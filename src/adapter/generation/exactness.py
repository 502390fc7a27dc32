"""Finds out by trial which ways of computing give the same bits."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.random import default_rng  # numpy imports it on first use, which takes memory
from numpy.typing import NDArray

import pyllama
from adapter.generation.batch_sizes import ONE_BY_ONE, BatchSizes, Windows
from adapter.generation.contexts import PADDING, padded
from adapter.generation.failures import note
from adapter.generation.memory.anchors import LEAST, STEP, extend, is_anchor
from adapter.generation.memory.blocks import BLOCK, CHUNK, LEAST_LEFT

Found = TypeVar("Found")

logger = logging.getLogger(__name__)

PROBED = (2, 3, 4, 5, 8, 12, 16, 24, 32, 48, 64)
"""Sizes of batches to try. Kernels change at small numbers and at multiples of 4."""

N_TOKENS = 4
"""Tokens of each sequence when batches are tried."""

N_TIMED = 2
"""Tokens of each sequence by which the time of a batch is measured: the least counts."""

COMPUTING = time.perf_counter if os.name == "nt" else time.thread_time
"""The clock for batches on a CPU: processor time of the calling thread.

It computes its part of the batch, and sleeps where it waits for the others, or for a processor that
other work has. So the times are right on a busy machine, too. Windows counts in steps of 16 ms.
"""

CUTS = ((CHUNK + 3 * BLOCK,), (BLOCK, 2 * BLOCK, CHUNK - BLOCK, LEAST_LEFT))
"""The calls in which the same prompt is computed to try different cuts. They end at blocks, and
none is shorter than the part of a prompt that is always computed.
"""

N_PROMPT = sum(CUTS[0])

READ = (LEAST, LEAST + STEP, LEAST + 2 * STEP)
"""Numbers of cells that attention reads, to try whether they change the bits on a GPU."""

LONGER = LEAST - STEP // 2
"""Tokens of a sequence that is longer than the others of that trial."""

RETRY_SECONDS = 10.0
"""How long after a failed trial the next one is made."""


class Exactness:
    """What keeps the bytes of a model on this machine.

    It is found out once, when it is first needed. A trial is no proof, so the results stay below
    what was tried. If a trial fails, for want of memory perhaps, the result is what holds for every
    model, and the trial is repeated later.

    Args:
        make: makes a context for a number of tokens and of sequences.
        reproducible: whether bytes matter. Otherwise everything is allowed, and only the times of
            batches are found out.
        flash_attention: whether contexts use it. No bytes are tried then: a batch of one, and cuts
            at multiples of CHUNK, are what holds for every length.
        width: how many sequences each batch is to have at the least, padded where fewer have a
            token: a batch of one then has the same bytes as a full one, for many types of weights
            that have other bytes in batches of one.
        anchored: whether each batch has an anchor for every `width` sequences, as a GPU needs it.
            Batches without one are never shared then, whose bits depend on the longest sequence.
    """

    def __init__(
        self,
        make: Callable[[int, int], pyllama.Context],
        *,
        reproducible: bool,
        flash_attention: bool = False,
        width: int = 1,
        anchored: bool = False,
    ) -> None:
        self._make = make
        self._width = width if reproducible and not flash_attention else 1
        self._anchored = anchored
        self._reads_exactly: bool | None = None if anchored else True
        self._windows: dict[int, Windows | None] = {}
        self._threads: dict[int, bool] = {}
        self._tries = not (reproducible and flash_attention)
        self._reproducible = reproducible
        self._sizes: dict[int, BatchSizes] = {}
        self._cuts: bool | None = None
        self._not_before = 0.0

    def batch_sizes(self, count: int) -> BatchSizes:
        """How many of a context's sequences a batch may hold, one token of each, and how fast."""
        if self._anchored:
            return ONE_BY_ONE
        if count not in self._sizes:
            found = self._found(PADDING * count, count, self._try_sizes)
            if found is None:
                return ONE_BY_ONE if self._reproducible else BatchSizes({1: 0.0, count: 0.0})
            self._sizes[count] = found
        return self._sizes[count]

    def windows(self, count: int) -> Windows | None:
        """How a context's sequences are decoded in batches that are padded; None if they are not.

        While no trial can be made, all batches have the width that was asked for.
        """
        if self._width == 1:
            return None
        if self._reads_exactly is None:
            n_cells = READ[-1] * self._width
            self._reads_exactly = self._found(n_cells, self._width, exact_reads)
        if self._reads_exactly is False:
            return None
        if count not in self._windows:
            n_cells = (LEAST if self._anchored else PADDING) * count
            found = self._found(n_cells, count, self._try_windows)
            if found is None:
                return Windows({self._width: 0.0}, count)
            (self._windows[count],) = found
        return self._windows[count]

    def threads_are_exact(self, most: int) -> bool | None:
        """Whether fewer threads than ``most`` compute the same bits. None while no trial can be
        made.
        """
        if not self._reproducible:
            return True
        if most not in self._threads:
            found = self._found(PADDING, 1, partial(exact_threads, most=most))
            if found is None:
                return None if self._tries else False
            self._threads[most] = found
        return self._threads[most]

    def _try_windows(self, context: pyllama.Context) -> tuple[Windows | None]:
        return (tried_windows(context, self._width, anchored=self._anchored),)

    def _try_sizes(self, context: pyllama.Context) -> BatchSizes:
        return tried_sizes(context, exact=self._reproducible)

    @property
    def cuts_anywhere(self) -> bool:
        """Whether a prompt may be cut at any block, not only at multiples of CHUNK."""
        if not self._reproducible:
            return True
        if self._cuts is None:
            self._cuts = self._found(padded(2 * CHUNK), 1, exact_cuts)
        return bool(self._cuts)

    def _found(
        self, n_cells: int, count: int, trial: Callable[[pyllama.Context], Found]
    ) -> Found | None:
        """Run a trial in a context of its own. Returns None if it cannot be made now."""
        if not self._tries or time.monotonic() < self._not_before:
            return None
        try:
            with self._make(n_cells, count) as context:
                return trial(context)
        except pyllama.DecodeCancelled:
            raise
        except Exception as error:
            self._not_before = time.monotonic() + RETRY_SECONDS
            note(logger, logging.WARNING, "slower for a while: a trial failed: %s", error)
            return None


def tried_sizes(context: pyllama.Context, *, exact: bool = True) -> BatchSizes:
    """How large a batch of a context's sequences may be, and how long each size takes.

    The next token of each sequence is decoded alone, and in batches of growing size. The search
    ends at the first differing bit.

    Args:
        context: an empty one; it is empty again afterwards.
        exact: whether the bytes must stay. Otherwise the time of every size is measured.
    """
    trial = Trial(context)
    alone = [trial.logits([0])] if exact else []
    seconds = {1: trial.seconds([0])}
    for size in (size for size in PROBED if size <= context.n_seq_max):
        seq_ids = range(size)
        if exact:
            alone += [trial.logits([seq_id]) for seq_id in range(len(alone), size)]
            if not np.array_equal(trial.logits(seq_ids), np.concatenate(alone)):
                logger.info("batches of %d change the logits", size)
                break
        seconds[size] = trial.seconds(seq_ids)
    context.memory.clear()
    times = ", ".join(f"{size}: {1e3 * taken:.1f}" for size, taken in seconds.items())
    logger.info("milliseconds of a step by the number of its sequences: %s", times)
    return BatchSizes(seconds)


def tried_windows(
    context: pyllama.Context, width: int, *, anchored: bool = False
) -> Windows | None:
    """Which batches of ``width`` sequences, or a multiple, give each the same logits.

    They must not depend on the other sequences of the batch, nor on a sequence's place in it. None
    if they do.

    Args:
        context: an empty one of at least ``width`` sequences; it is empty again afterwards.
        anchored: whether the last sequence of each ``width`` is an anchor.
    """
    first = range(width)
    free = width - 1 if anchored else width
    trial_of = partial(Trial, context, anchored=width if anchored else 0)
    trial = trial_of()
    expected = trial.logits(first)
    seconds = {width: trial.seconds(first)}
    others = trial.tokens.copy()
    others[1::2] = 0
    moved = trial.tokens.copy()
    moved[:free] = trial.tokens[:free][::-1]
    exact = np.array_equal(trial_of(others).logits(first)[::2], expected[::2])
    exact = exact and np.array_equal(trial_of(moved).logits(first)[:free][::-1], expected[:free])
    if exact:
        trial = trial_of()
        for size in range(2 * width, context.n_seq_max + 1, width):
            expected = np.concatenate([expected, trial.logits(range(size - width, size))])
            if not np.array_equal(trial.logits(range(size)), expected):
                break
            seconds[size] = trial.seconds(range(size))
    else:
        logger.warning("batches padded to %d change the logits: they are not padded", width)
    context.memory.clear()
    return Windows(seconds, context.n_seq_max) if exact else None


def exact_reads(context: pyllama.Context) -> bool:
    """Whether the number of cells that attention reads leaves the bits as they are, from LEAST on.

    Args:
        context: an empty one of as many sequences as a window. It is empty again afterwards.
    """
    width = context.n_seq_max
    short = Trial(context, anchored=width)
    found = [short.logits(range(width))[0]]
    lengths = [N_TOKENS - 1, LONGER] + [N_TOKENS - 1] * (width - 2)
    trial = Trial(context, anchored=width, lengths=lengths)
    trial.tokens[0] = 0
    trial.tokens[0, : short.tokens.shape[1]] = short.tokens[0]
    read = []
    for n_cells in READ:
        trial.n_cells = n_cells
        read.append(trial.logits(range(width))[:2])
    found += [each[0] for each in read]
    exact = all(np.array_equal(found[0], each) for each in found)
    exact = exact and all(np.array_equal(read[0], each) for each in read)
    context.memory.clear()
    if not exact:
        logger.warning(
            "answers are computed one by one: the number of cells that attention reads changes "
            "the logits on this device"
        )
    return exact


def exact_threads(context: pyllama.Context, most: int) -> bool:
    """Whether up to ``most`` threads compute the same logits, of several tokens and of one.

    Args:
        context: an empty one; it is empty again afterwards.
    """
    tokens = default_rng(0).integers(0, context.model.vocab.n_tokens, LEAST_LEFT + 2)
    found = []
    for n_threads in sorted({1, max(1, most // 2), most - 1, most}):
        context.set_n_threads(n_threads)
        context.decode(pyllama.Batch.from_tokens(tokens[:-1]))
        several = context.all_logits()
        context.decode(pyllama.Batch.from_tokens(tokens[-1:], pos=len(tokens) - 1))
        found.append(np.concatenate([several, context.all_logits()]))
        context.memory.clear()
    exact = all(np.array_equal(found[0], other) for other in found[1:])
    if not exact:
        logger.info("the number of threads stays %d: others change the logits", most)
    return exact


class Trial:
    """Decodes one token of some sequences, each after the same tokens of its own.

    Args:
        context: is emptied.
        tokens: of each sequence, an array of shape (n_seq_max, max(lengths) + 1 + N_TIMED).
        anchored: how many sequences have an anchor among them, the last; 0 for no anchors.
        lengths: tokens of each sequence before the one that is decoded.
    """

    def __init__(
        self,
        context: pyllama.Context,
        tokens: NDArray[np.int64] | None = None,
        *,
        anchored: int = 0,
        lengths: Sequence[int] | None = None,
    ) -> None:
        self._context = context
        self._lengths = lengths or [N_TOKENS - 1] * context.n_seq_max
        if tokens is None:
            shape = (context.n_seq_max, max(self._lengths) + 1 + N_TIMED)
            tokens = default_rng(0).integers(0, context.model.vocab.n_tokens, shape)
        self.tokens = tokens
        self._anchored = anchored
        self._clock = time.perf_counter if anchored else COMPUTING
        #: Cells that attention reads, where there are anchors.
        self.n_cells = LEAST
        self._n_past = [0] * context.n_seq_max
        context.memory.clear()

    def logits(self, seq_ids: Sequence[int]) -> NDArray[np.float32]:
        """The logits after each sequence's token, of shape (len(seq_ids), n_vocab)."""
        self._prepare(seq_ids)
        self._decode(seq_ids)
        return self._context.all_logits()

    def seconds(self, seq_ids: Sequence[int]) -> float:
        """The time that a batch takes: the least of several."""
        self._prepare(seq_ids)
        return min(self._decode(seq_ids) for _ in range(1 + N_TIMED))

    def _decode(self, seq_ids: Sequence[int]) -> float:
        """Decode the next token of each sequence; return the seconds that it took."""
        batch = pyllama.Batch(len(seq_ids))
        for seq_id in seq_ids:
            if self._is_anchor(seq_id):
                at = extend(self._context, seq_id, self.n_cells)
                batch.add(0, at, (seq_id,), output=True)
                continue
            at = self._n_past[seq_id]
            batch.add(int(self.tokens[seq_id, at]), at, (seq_id,), output=True)
            self._n_past[seq_id] += 1
        self._context.synchronize()
        begin = self._clock()
        self._context.decode(batch)
        self._context.synchronize()
        return self._clock() - begin

    def _prepare(self, seq_ids: Sequence[int]) -> None:
        """Fill the sequences with their first tokens, all but the one to decode."""
        memory = self._context.memory
        for seq_id in seq_ids:
            if self._is_anchor(seq_id):
                continue
            first = self._lengths[seq_id]
            if self._n_past[seq_id] > first and memory.seq_rm(seq_id, first):
                self._n_past[seq_id] = first
            if self._n_past[seq_id] != first:
                memory.seq_rm(seq_id)
                for begin in range(0, first, CHUNK):
                    prompt = self.tokens[seq_id, begin : min(begin + CHUNK, first)]
                    batch = pyllama.Batch.from_tokens(
                        prompt, pos=begin, seq_id=seq_id, outputs="none"
                    )
                    self._context.decode(batch)
                self._n_past[seq_id] = first

    def _is_anchor(self, seq_id: int) -> bool:
        return self._anchored > 0 and is_anchor(seq_id, self._anchored)


def exact_cuts(context: pyllama.Context) -> bool:
    """Whether the logits of a prompt are the same for all cuts at blocks.

    Args:
        context: an empty one that holds at least N_PROMPT tokens, also in one call. It is empty
            again afterwards.
    """
    random = default_rng(0)
    prompt = random.integers(0, context.model.vocab.n_tokens, N_PROMPT)
    found = [_logits_by_calls(context, prompt, sizes) for sizes in CUTS]
    exact = all(np.array_equal(found[0], other) for other in found[1:])
    if not exact:
        logger.info("prompts are cut at multiples of %d tokens: other cuts change them", CHUNK)
    return exact


def _logits_by_calls(
    context: pyllama.Context, prompt: NDArray[np.int64], sizes: Sequence[int]
) -> NDArray[np.float32]:
    """The logits of the last token of a prompt that was computed in calls of these sizes."""
    begin = 0
    for size in sizes:
        tokens = prompt[begin : begin + size]
        context.decode(pyllama.Batch.from_tokens(tokens, pos=begin, outputs="last"))
        begin += size
    logits = context.all_logits()
    context.memory.clear()
    return logits
