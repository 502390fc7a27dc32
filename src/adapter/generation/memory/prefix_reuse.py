"""Restores beginnings of prompts from other sequences or from saved states."""

from __future__ import annotations

import logging
from typing import Protocol
from weakref import WeakSet

import pyllama
from adapter.generation.exactness import Exactness
from adapter.generation.failures import note
from adapter.generation.memory.block_index import BlockIndex
from adapter.generation.memory.blocks import (
    BLOCK,
    CHUNK,
    BlockHashes,
    block_hashes,
    last_border,
    n_shared,
)
from adapter.generation.memory.kv_cache import KVCache, Slot
from adapter.generation.memory.prefix_cache import PrefixCache, SavedPrefix
from adapter.generation.memory.prefix_files import PrefixFiles, Reading
from adapter.generation.sequence import ScheduledRequest
from adapter.generation.waiting import Waiting

logger = logging.getLogger(__name__)

WORTH_SAVING = 128
"""The fewest tokens of a prompt that are saved on eviction. The last ones are rarely shared."""

WORTH_SHARING = 2 * BLOCK
"""The fewest tokens more that a slot of a shared memory takes over from another one, or waits for.
To take them goes over all cells twice, and one block is computed in less time."""


class HashedPrompt(Protocol):
    """What is compared of a prompt, whether a request has it or one is expected to have it."""

    @property
    def prompt(self) -> tuple[int, ...]:
        """Its tokens."""

    @property
    def hashes(self) -> BlockHashes:
        """The hashes of its whole blocks."""

    @property
    def n_reusable(self) -> int:
        """How many of its blocks need not be computed."""

    @property
    def n_to_border(self) -> int:
        """Blocks before its last call."""


class PrefixReuse:
    """Finds what is cached of a prompt and restores it to a slot. For the scheduler's thread.

    Args:
        saved: the prefix cache: states that are no longer in a context.
        exactness: where a prompt may be cut.
        files: states of earlier processes, and for later ones.
        reuses: whether a slot keeps what it holds for later requests.
        keeps_answers: whether an answer is kept too, as the beginning of the next turn's prompt.
        shared_memory: whether slots share the cells of one memory, as on a GPU. Prompts are
            computed in little time there, so what is worth neither `WORTH_SAVING` nor
            `WORTH_SHARING` is computed again.
    """

    def __init__(
        self,
        model: pyllama.Model,
        saved: PrefixCache,
        exactness: Exactness,
        files: PrefixFiles | None,
        *,
        reuses: bool = True,
        keeps_answers: bool = False,
        shared_memory: bool = False,
    ) -> None:
        self._saved = saved
        self._files = files
        self._exactness = exactness
        self._reuses = reuses
        # The state of a recurrent model cannot go back to an earlier token. With a sliding window
        # it can, but what follows is stored in other cells and summed in another order.
        self.rolls_back = rolls_back(model)
        self._shares_cells = shared_memory and self.rolls_back
        # The fewest tokens beyond what a slot has that are saved or restored, and that are taken
        # over from another slot.
        self._least = WORTH_SAVING if self._shares_cells else BLOCK
        self._least_shared = WORTH_SHARING if self._shares_cells else BLOCK
        self._keeps_answers = keeps_answers and self.rolls_back
        self._computing: BlockIndex[ScheduledRequest] = BlockIndex()
        self._cache_of: dict[ScheduledRequest, KVCache] = {}
        self._read_for: WeakSet[ScheduledRequest] = WeakSet()
        #: All KV caches.
        self.caches: list[KVCache] = []

    def track(self, slot: Slot, sequence: ScheduledRequest) -> None:
        """Register a prompt that is being computed."""
        if sequence.state == "prefilling":
            self._cache_of[sequence] = slot.cache  # first: what is registered is looked up there
            self._computing.put(sequence, sequence.hashes)

    def in_progress(self, sequence: ScheduledRequest) -> ScheduledRequest | Reading | None:
        """What will give more of a prompt than is cached: another prompt, or a file that is being
        read.
        """
        owner = self._computed_for(sequence)
        if owner is not None or self._files is None or sequence in self._read_for:
            return owner
        self._read_for.add(sequence)  # one file is enough
        wanted, n_cached = self._wanted(sequence), self.n_cached(sequence)
        more_than = n_cached + self._least // BLOCK - 1
        return self._files.fetch(wanted, more_than=more_than, exact=not self.rolls_back)

    def shared(self, blocks: BlockHashes, prompt: HashedPrompt) -> int:
        """How many blocks a prompt can reuse from another that is or was computed."""
        n_blocks = n_shared(blocks, self._wanted(prompt))
        return self._cut_to(n_blocks, len(blocks), prompt)

    def n_cached(self, prompt: HashedPrompt) -> int:
        """How many blocks of a prompt need not be computed, given what is in memory now."""
        wanted = self._wanted(prompt)
        saved, n_found = self._saved.find(wanted)
        n_saved = self._cut_to_saved(saved, n_found, prompt)
        return max(n_saved, self._n_in_slots(wanted, prompt)) if self.rolls_back else n_saved

    def must_wait(self, cache: KVCache, sequence: ScheduledRequest) -> bool:
        """Whether most of a prompt is in another context and can be copied after the next step."""
        if not self.rolls_back:
            return False
        _, n_unsettled = self._elsewhere(cache, sequence, settled=False)
        return n_unsettled > 0 and n_unsettled > max(
            cache.n_shared(self._wanted(sequence)),
            self._find_saved(cache, sequence)[1],
            self._elsewhere(cache, sequence)[1],
        )

    def restore(self, slot: Slot, prompt: HashedPrompt) -> int:
        """Restore as much of a prompt as is cached to a slot. Returns how many tokens that is."""
        donor = slot.cache.nearest(self._wanted(prompt))
        n_here = n_there = 0
        if self.rolls_back:
            n_here = self.shared(slot.blocks, prompt)
            n_there = self.shared(donor.blocks, prompt)
        saved, n_saved = self._find_saved(slot.cache, prompt)
        if self.rolls_back and (n_saved - max(n_here, n_there)) * BLOCK < self._least:
            n_saved = 0
        elsewhere, n_elsewhere = self._elsewhere(slot.cache, prompt)
        n_offered = n_there if (n_there - n_here) * BLOCK >= self._least_shared else 0
        if self.rolls_back and n_here >= max(n_offered, n_saved, n_elsewhere):
            if (len(slot.blocks) - n_here) * BLOCK >= WORTH_SAVING:
                self._save_evicted(slot)
            if n_here == len(slot.blocks) and self._keeps_answers:
                return slot.keep_whole(prompt.prompt)
            slot.keep(n_here)
            return n_here * BLOCK
        self.evict(slot)
        if n_there >= max(n_saved, n_elsewhere, 1):
            return self._copy(slot, donor, n_there)
        if elsewhere is not None and n_elsewhere > n_saved and self._move(slot, elsewhere):
            slot.keep(n_elsewhere)
            return n_elsewhere * BLOCK
        if saved is not None and n_saved > n_there:
            if self._set_state(slot, saved.state):
                self._saved.used(saved)
                slot.blocks = saved.hashes
                if self.rolls_back:
                    slot.keep(n_saved)
                return n_saved * BLOCK
            self._saved.remove(saved)  # it would be refused each time
            if self._files is not None:
                self._files.refuse(saved)
        # The slot itself has nothing left to copy.
        return self._copy(slot, donor, n_there) if n_there and donor is not slot else 0

    def checkpoint(self, slot: Slot, waiting: Waiting) -> None:
        """Save a state that cannot be cut back later where other prompts may continue from it.

        These places are the last one where the prompt may be cut, and where waiting prompts diverge
        from it.
        """
        sequence = slot.sequence
        if sequence is None or self.rolls_back or not self._reuses:
            return
        n_blocks, n_most = sequence.n_computed_blocks, sequence.n_to_border
        if n_blocks == n_most or waiting.parts_after(sequence.hashes, n_blocks, n_most):
            self.save_whole(slot)

    def save_whole(self, slot: Slot) -> None:
        """Save what a slot holds if it cannot be cut back later."""
        if not self.rolls_back and not self._saved.holds(slot.blocks):
            self._save(slot, slot.blocks)

    def keep_answer(self, slot: Slot, sequence: ScheduledRequest) -> None:
        """Keep an answer in its slot for the next turn, if bytes need not stay the same."""
        if self._keeps_answers:
            tokens = sequence.tokens_between(0, sequence.n_past)
            slot.blocks = block_hashes(tokens, sequence.hashes[: sequence.n_computed_blocks])
            begin = len(slot.blocks) * BLOCK
            slot.rest = (begin, tuple(tokens[begin:])) if begin else None

    def forget_unless_reused(self, slot: Slot) -> None:
        """Clear a slot that becomes free, if nothing is reused."""
        if not self._reuses:
            slot.blocks, slot.rest = (), None

    def evict(self, slot: Slot) -> None:
        """Save what a free slot holds, and clear it."""
        self._save_evicted(slot)
        slot.keep(0)

    def save_unused(self, cache: KVCache) -> None:
        """Save what an unused context holds before it is closed."""
        try:
            if cache.context.usable:
                self._save_all(sorted(cache.free, key=lambda slot: slot.last_used))
        except Exception as error:
            note(logger, logging.DEBUG, "not saved: %s", error)

    def write_all(self) -> None:
        """Save for later processes what the slots hold, and end the thread that writes files."""
        if self._files is None:
            return
        try:
            for cache in self.caches:
                if cache.context.usable:
                    self._save_all(cache.slots, wait=True)
        finally:
            self._files.close()

    def _computed_for(self, sequence: ScheduledRequest) -> ScheduledRequest | None:
        """The request whose prompt is being computed and will give more of this one than is cached
        now.
        """
        for done in [other for other in self._cache_of if other.state != "prefilling"]:
            self._computing.put(done, ())
            del self._cache_of[done]
        wanted = self._wanted(sequence)
        n_found = self._computing.find(wanted)
        n_least = self._least_shared // BLOCK
        if not n_found or n_found - (n_cached := self.n_cached(sequence)) < n_least:
            return None
        for other in self._computing.owners(wanted[n_found - 1]):
            n_more = self.shared(other.hashes, sequence) - n_cached
            if n_more >= n_least and self._is_usable(other, sequence):
                return other
        return None

    def _n_in_slots(self, wanted: BlockHashes, prompt: HashedPrompt) -> int:
        """How many blocks of a prompt are in slots."""
        held = [cache.held for cache in self.caches]
        n_found = max((each.find(wanted) for each in held), default=0)
        if not n_found or self._exactness.cuts_anywhere:
            return n_found
        n_found -= n_found % (CHUNK // BLOCK)
        if not n_found:
            return 0
        last = wanted[n_found - 1]
        n_other = max(len(slot.blocks) for each in held for slot in each.owners(last))
        return self._cut_to(n_found, n_other, prompt)

    def _is_usable(self, other: ScheduledRequest, sequence: ScheduledRequest) -> bool:
        """Whether a slot that a request can get will have room for what another prompt computes."""
        cache, n_needed = self._cache_of[other], sequence.n_needed
        long_enough = [each for each in self.caches if each.length >= n_needed and not each.drains]
        if not long_enough:
            return True  # a new context is as long as the longest so far
        return (cache in long_enough and bool(cache.free)) or any(
            each.length >= other.n_needed for each in long_enough if each.free
        )

    def _find_saved(self, cache: KVCache, prompt: HashedPrompt) -> tuple[SavedPrefix | None, int]:
        """The saved state with most of a prompt, and how many blocks of it fit here."""
        saved, n_found = self._saved.find(self._wanted(prompt))
        if saved is None or len(saved.hashes) * BLOCK > cache.length:
            return saved, 0
        return saved, self._cut_to_saved(saved, n_found, prompt)

    def _elsewhere(
        self, cache: KVCache, prompt: HashedPrompt, *, settled: bool = True
    ) -> tuple[Slot | None, int]:
        """The slot of another context with most of a prompt that fits here, and how many blocks it
        has.

        Args:
            settled: only contexts whose memory can be copied now. The others have requests, and can
                be copied once these were computed.
        """
        best: Slot | None = None
        n_best = 0
        for other in self.caches if self.rolls_back else ():
            if other is cache or not other.context.usable:
                continue
            if other.context.memory.settled is not settled:
                continue
            if not settled and not other.taken:
                continue
            slot = other.nearest(self._wanted(prompt))
            n_blocks = self.shared(slot.blocks, prompt)
            if n_blocks > n_best and slot.n_tokens <= cache.length:
                best, n_best = slot, n_blocks
        return best, n_best

    def _copy(self, slot: Slot, donor: Slot, n_blocks: int) -> int:
        n_tokens = n_blocks * BLOCK
        if self._shares_cells:
            slot.cache.context.memory.seq_cp(donor.seq_id, slot.seq_id, 0, n_tokens)
            slot.blocks = donor.blocks[:n_blocks]
        else:
            slot.cache.context.memory.seq_cp(donor.seq_id, slot.seq_id)
            slot.blocks = donor.blocks
            slot.keep(n_blocks)
        return n_tokens

    def _move(self, slot: Slot, donor: Slot) -> bool:
        """Copy what a slot of another context holds. Returns whether that was possible."""
        if donor.sequence is None:
            donor.keep(len(donor.blocks))
        state = self._state(donor)
        if state is None or not self._set_state(slot, state):
            return False
        slot.blocks = donor.blocks
        return True

    def _wanted(self, prompt: HashedPrompt) -> BlockHashes:
        """The blocks of a prompt that need not be computed if they are in memory."""
        return prompt.hashes[: prompt.n_reusable if self.rolls_back else prompt.n_to_border]

    def _cut_to(self, n_blocks: int, n_other: int, prompt: HashedPrompt) -> int:
        """After how many of the blocks that it shares with another a prompt may be cut.

        That is after any block if bytes stay the same, and otherwise at the end of a chunk of both
        prompts.

        Args:
            n_blocks: how many they share.
            n_other: how many the other has.
        """
        in_chunks = min(n_blocks, last_border(n_other * BLOCK) // BLOCK, prompt.n_to_border)
        in_chunks -= in_chunks % (CHUNK // BLOCK)
        if in_chunks == n_blocks or not self.rolls_back:
            return in_chunks
        return n_blocks if self._exactness.cuts_anywhere else in_chunks

    def _cut_to_saved(self, saved: SavedPrefix | None, n_found: int, prompt: HashedPrompt) -> int:
        if saved is None or not self.rolls_back:
            return n_found  # states that cannot be cut back were saved where they are useful
        return self._cut_to(n_found, len(saved.hashes), prompt)

    def _save_evicted(self, slot: Slot) -> None:
        """Save what a slot holds before something else replaces it, unless others have it."""
        others = [other for other in slot.cache.slots if other is not slot]
        self._save_unless(slot, others, self._least)

    def _save_all(self, slots: list[Slot], *, wait: bool = False) -> None:
        """Save what slots hold of which nothing will stay."""
        for index, slot in enumerate(slots):
            self._save_unless(slot, slots[index + 1 :], BLOCK, wait=wait)

    def _save_unless(
        self, slot: Slot, others: list[Slot], least: int, *, wait: bool = False
    ) -> None:
        """Save what a slot holds, unless it is little, or fewer than ``least`` tokens more than
        others have.
        """
        if not self.rolls_back or len(slot.blocks) * BLOCK < WORTH_SAVING:
            return
        if self._saved.holds(slot.blocks) or not self._saved.max_bytes:
            return
        n_others = max((n_shared(other.blocks, slot.blocks) for other in others), default=0)
        if (len(slot.blocks) - n_others) * BLOCK < least:
            return
        slot.keep(len(slot.blocks))
        self._save(slot, slot.blocks, wait=wait)

    def _save(self, slot: Slot, hashes: BlockHashes, *, wait: bool = False) -> None:
        state = self._state(slot)
        if state is not None:
            self._saved.add(hashes, state)
            if self._files is not None:
                self._files.add(SavedPrefix(hashes, state), wait=wait)

    def _state(self, slot: Slot) -> bytes | None:
        """What a slot holds, or None if it cannot be read. Then it will be computed again."""
        try:
            return slot.cache.context.state.seq_get_data(slot.seq_id)
        except (
            pyllama.LlamaError,
            MemoryError,
        ) as error:  # or copies are still pending
            if not slot.cache.context.usable:
                raise
            note(logger, logging.DEBUG, "not saved: %s", error)
            return None

    def _set_state(self, slot: Slot, state: bytes) -> bool:
        try:
            slot.cache.context.state.seq_set_data(state, slot.seq_id)
        except (pyllama.LlamaError, MemoryError) as error:
            if not slot.cache.context.usable:
                raise
            note(logger, logging.DEBUG, "computed anew: %s", error)
            return False
        return True


def rolls_back(model: pyllama.Model) -> bool:
    """Whether the memory of a sequence can be cut back to fewer tokens and continue from there."""
    return not (model.is_recurrent or model.is_hybrid or model.n_swa)


def pads(model: pyllama.Model) -> bool:
    """Whether a token can be appended to a sequence and removed again, and nothing else changes."""
    return not (model.is_recurrent or model.is_hybrid)
