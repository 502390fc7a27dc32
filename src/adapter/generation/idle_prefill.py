"""Computes answers as the beginning of the next turn's prompt, while no request waits or runs.

An answer was computed token by token, so its keys and values have other bits than those of a
prompt, and a later prompt must not reuse them. In the time in which a user reads it, it can be
computed once more in the calls of a prompt. Then the next turn finds it in memory.
"""

from __future__ import annotations

import logging
from collections import deque
from functools import cached_property
from typing import NamedTuple

import pyllama
from adapter.generation.contexts import warnings_as_info
from adapter.generation.conversations import Conversations, Tokens, Turn
from adapter.generation.exactness import Exactness
from adapter.generation.failures import note
from adapter.generation.memory.blocks import (
    BLOCK,
    CHUNK,
    BlockHashes,
    block_hashes,
    call_end,
    last_border,
    n_reusable,
)
from adapter.generation.memory.kv_cache import Slot
from adapter.generation.memory.strategy import MemoryStrategy
from adapter.generation.metrics import Metrics
from adapter.generation.sequence import ScheduledRequest
from adapter.generation.thread_tuner import ThreadTuner

logger = logging.getLogger(__name__)

MAX_PROMPTS = 16
"""How many conversations' next prompts wait to be computed, the newest."""

CALL = 16
"""Tokens of a call, where prompts may be cut at any block. A request that arrives waits for it."""

LEAST_BLOCKS = 2
"""The fewest blocks that are worth a call."""

MOST_BEFORE = 2 * CHUNK
"""The most tokens before the answer that are computed with it. There are more only if other prompts
took their place in memory. They are not computed again for an answer that perhaps nobody continues.
"""


class NextPrompt:
    """How the prompt of a conversation's next turn begins, in whole blocks.

    Args:
        n_new: how many of its tokens are the answer's.
    """

    def __init__(self, tokens: Tokens, n_new: int) -> None:
        self.prompt = tokens[: len(tokens) - len(tokens) % BLOCK]
        self.n_new = n_new

    @cached_property
    def hashes(self) -> BlockHashes:
        """The hashes of its blocks."""
        return block_hashes(self.prompt)

    @property
    def n_reusable(self) -> int:
        """Blocks of it that need not be computed."""
        return n_reusable(len(self.prompt))

    @property
    def n_to_border(self) -> int:
        """Blocks before its last call."""
        return last_border(len(self.prompt)) // BLOCK


class _Progress(NamedTuple):
    prompt: NextPrompt
    slot: Slot
    n_past: int


class IdlePrefill:
    """Prompts of next turns. Only the scheduler's thread uses it.

    What it computes belongs to a free slot, so a request can take that slot after any call. No
    request depends on it: an error here gives up the prompt, and ends nothing else.

    Args:
        exactness: where a prompt may be cut.
        tuner: says how many threads compute; None for as many as the context has.
    """

    def __init__(
        self,
        memory: MemoryStrategy,
        exactness: Exactness,
        metrics: Metrics,
        tuner: ThreadTuner | None = None,
    ) -> None:
        self._memory = memory
        self._tuner = tuner
        self._exactness = exactness
        self._metrics = metrics
        self._conversations = Conversations()
        self._waiting: deque[NextPrompt] = deque(maxlen=MAX_PROMPTS)
        self._progress: _Progress | None = None

    @property
    def has_work(self) -> bool:
        """Whether there is a prompt to compute."""
        return bool(self._waiting)

    def answered(self, sequence: ScheduledRequest) -> None:
        """Have the next prompt computed, if a request that was answered is part of a
        conversation.
        """
        prompt = sequence.request.prompt
        turn = Turn(prompt, sequence.hashes, sequence.tokens[len(prompt) :])
        tokens = self._conversations.next_prompt(turn)
        if tokens:
            self._waiting.append(NextPrompt(tokens, len(turn.answer)))

    def pause(self) -> None:
        """A request takes its turn. It may have the slot that was being computed."""
        self._progress = None

    def clear(self) -> bool:
        """Give up all prompts. Returns whether there were any."""
        had_work, self._progress = self.has_work, None
        self._waiting.clear()
        return had_work

    def step(self) -> None:
        """Compute a call of the newest prompt."""
        prompt = self._waiting[-1]
        try:
            progress = self._progress or self._begin(prompt)
            if progress is not None:
                progress = self._compute(progress)
            self._progress = progress
            if progress is None:
                self._waiting.pop()
        except BaseException as error:  # whatever it is, it concerns no request
            self._give_up(error)

    def _begin(self, prompt: NextPrompt) -> _Progress | None:
        """Restore what is cached of a prompt. None if the rest should not be computed."""
        prefixes, hashes = self._memory.prefixes, prompt.hashes
        n_missing = self._end(prompt) // BLOCK - prefixes.n_cached(prompt)
        if n_missing < LEAST_BLOCKS or n_missing * BLOCK > prompt.n_new + MOST_BEFORE:
            return None
        caches = [cache for cache in self._memory if cache.length >= len(prompt.prompt)]
        caches = [cache for cache in caches if cache.free and not cache.drains]
        if not caches:
            return None
        slot = max(caches, key=lambda cache: cache.n_shared(hashes)).to_overwrite(hashes)
        self._progress = _Progress(prompt, slot, 0)  # known to an error in the next line
        return self._progress._replace(n_past=prefixes.restore(slot, prompt))

    def _compute(self, progress: _Progress) -> _Progress | None:
        """Compute a call. Returns None if it was the last one."""
        prompt, slot, begin = progress
        last = self._end(prompt)
        if self._memory.prefixes.rolls_back and self._exactness.cuts_anywhere:
            end = min(begin + CALL, last)
        else:
            end = call_end(len(prompt.prompt), begin, CHUNK)
        batch = slot.cache.batch
        batch.clear()
        batch.add_tokens(prompt.prompt[begin:end], pos=begin, seq_id=slot.seq_id, outputs="none")
        if self._tuner is not None:
            slot.cache.context.set_n_threads(self._tuner.look())
        with warnings_as_info(logging.ERROR):  # where it is cancelled, or tried again by a request
            slot.cache.context.decode(batch)
        slot.blocks = prompt.hashes[: end // BLOCK]
        self._metrics.prefilled(end - begin)
        if end < last:
            return progress._replace(n_past=end)
        self._memory.prefixes.save_whole(slot)
        return None

    def _end(self, prompt: NextPrompt) -> int:
        """How many of a prompt's tokens are computed.

        A state that cannot be cut back is of use where the last call of a prompt begins.
        """
        if self._memory.prefixes.rolls_back:
            return len(prompt.prompt)
        return prompt.n_to_border * BLOCK

    def _give_up(self, error: BaseException) -> None:
        """Forget the newest prompt, and what may have been computed of it."""
        cancelled = isinstance(error, pyllama.DecodeCancelled)
        if not cancelled:
            note(logger, logging.WARNING, "the next turn of a conversation is slower: %s", error)
        if self._progress is not None:
            # What was computed before a call that was cancelled is still there, and is saved when
            # the scheduler closes.
            if not (cancelled and self._memory.prefixes.rolls_back):
                self._progress.slot.blocks = ()
            self._progress = None
        for cache in self._memory:
            if not cache.context.usable:
                self._memory.drop(cache)
        self._waiting.pop()  # last: an error above ends the thread unless there is one to give up
