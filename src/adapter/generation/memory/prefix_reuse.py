"""Brings beginnings of prompts into sequences: from other sequences, or from saved states."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from weakref import WeakSet

import pyllama
from adapter.generation.exactness import Exactness
from adapter.generation.failures import note
from adapter.generation.memory.block_index import BlockIndex
from adapter.generation.memory.blocks import BLOCK, CHUNK, BlockHashes, last_border, n_shared
from adapter.generation.memory.lanes import Lane
from adapter.generation.memory.prefix_cache import PrefixCache, SavedPrefix
from adapter.generation.memory.prefix_files import PrefixFiles, Reading
from adapter.generation.memory.slots import Slot
from adapter.generation.sequence import Sequence
from adapter.generation.waiting import Waiting

logger = logging.getLogger(__name__)

MAX_IDLE = 8192
"""Tokens that are left in a shared memory for requests to come."""

WORTH_KEEPING = 128
"""Tokens of a prompt that are saved before others take their place: the end of one rarely is."""


class PrefixReuse:
    """What of a prompt is in memory already, and how a slot gets it. For the scheduler's thread.

    Args:
        saved: states of what is no longer in a context.
        exactness: where a prompt may be cut.
        files: states of earlier processes, and for later ones.
        lanes: all that there are now.
    """

    def __init__(
        self,
        model: pyllama.Model,
        saved: PrefixCache,
        exactness: Exactness,
        files: PrefixFiles | None,
        *,
        lanes: Iterable[Lane] = (),
    ) -> None:
        self._saved = saved
        self._files = files
        self._exactness = exactness
        self._lanes = lanes
        # The state of a recurrent model cannot go back to an earlier token. That of a model with a
        # sliding window can, but puts what follows elsewhere, and sums it in another order.
        self._rolls_back = rolls_back(model)
        self._held: BlockIndex[Slot] = BlockIndex()
        self._computing: BlockIndex[Sequence] = BlockIndex()
        self._lane_of: dict[Sequence, Lane] = {}
        self._read_for: WeakSet[Sequence] = WeakSet()

    def begin(self, lane: Lane, sequence: Sequence) -> None:
        """Take note of a prompt that is being computed."""
        if sequence.state == "prefilling":
            self._lane_of[sequence] = lane  # first: what is put is looked up there
            self._computing.put(sequence, sequence.hashes)

    def awaited(self, sequence: Sequence) -> Sequence | Reading | None:
        """What a request is to wait for, which will bring more of its prompt than is held now."""
        owner = self.computing(sequence)
        if owner is not None or self._files is None or sequence in self._read_for:
            return owner
        self._read_for.add(sequence)  # one file is enough
        wanted, n_held = self._wanted(sequence), self.n_held(sequence)
        return self._files.fetch(wanted, more_than=n_held, whole=not self._rolls_back)

    def computing(self, sequence: Sequence) -> Sequence | None:
        """Whose prompt is being computed that will soon hold more of this one than is held now."""
        for done in [other for other in self._lane_of if other.state != "prefilling"]:
            self._computing.put(done, ())
            del self._lane_of[done]
        wanted = self._wanted(sequence)
        n_found = self._computing.find(wanted)
        if not n_found or n_found <= (n_held := self.n_held(sequence)):
            return None
        for other in self._computing.owners(wanted[n_found - 1]):
            if self.shared(other.hashes, sequence) > n_held and self._is_usable(other, sequence):
                return other
        return None

    def shared(self, held: BlockHashes, sequence: Sequence) -> int:
        """How many blocks a prompt can take over from another that is or was computed."""
        n_blocks = n_shared(held, self._wanted(sequence))
        return self._cut_to(n_blocks, len(held), sequence)

    def n_held(self, sequence: Sequence) -> int:
        """How many blocks of a prompt need not be computed, given what is in memory now."""
        wanted = self._wanted(sequence)
        saved, n_found = self._saved.find(wanted)
        n_saved = self._cut_to_saved(saved, n_found, sequence)
        return max(n_saved, self._n_in_slots(wanted, sequence)) if self._rolls_back else n_saved

    def must_wait(self, lane: Lane, sequence: Sequence) -> bool:
        """Whether most of a prompt is in another lane, which the next step makes ready to copy."""
        if not self._rolls_back:
            return False
        _, n_unsettled = self._elsewhere(lane, sequence, settled=False)
        return n_unsettled > 0 and n_unsettled > max(
            lane.slots.n_shared(self._wanted(sequence)),
            self._n_saved(lane, sequence),
            self._elsewhere(lane, sequence)[1],
        )

    def bring(self, lane: Lane, slot: Slot, sequence: Sequence) -> int:
        """Bring as much of a prompt into a slot as is in memory; return how many tokens that is."""
        wanted = self._wanted(sequence)
        donor = lane.slots.nearest(wanted)
        n_here = n_there = 0
        if self._rolls_back:
            n_here = self.shared(slot.held, sequence)
            n_there = self.shared(donor.held, sequence)
        saved, n_found = self._saved.find(wanted)
        n_saved = self._cut_to_saved(saved, n_found, sequence)
        if saved is not None and len(saved.hashes) * BLOCK > lane.length:
            n_saved = 0
        elsewhere, n_elsewhere = self._elsewhere(lane, sequence)
        if self._rolls_back and n_here >= max(n_there, n_saved, n_elsewhere):
            if (len(slot.held) - n_here) * BLOCK >= WORTH_KEEPING:
                self._keep(lane, slot)
            self._cut(lane, slot, n_here)
            return n_here * BLOCK
        if len(slot.held) * BLOCK >= WORTH_KEEPING:
            self._keep(lane, slot)
        slot.held = ()
        lane.context.memory.seq_rm(slot.seq_id)
        if n_there >= max(n_saved, n_elsewhere, 1):
            return self._copy(lane, slot, donor, n_there)
        if elsewhere is not None and n_elsewhere > n_saved and self._move(lane, slot, *elsewhere):
            self._cut(lane, slot, n_elsewhere)
            return n_elsewhere * BLOCK
        if saved is not None and n_saved > n_there:
            if self._restore(lane, slot, saved.state):
                self._saved.used(saved)
                slot.held = saved.hashes
                if self._rolls_back:
                    self._cut(lane, slot, n_saved)
                return n_saved * BLOCK
            self._saved.remove(saved)  # it would be refused each time
            if self._files is not None:
                self._files.refuse(saved)
        return self._copy(lane, slot, donor, n_there) if n_there else 0

    def checkpoint(self, lane: Lane, slot: Slot, waiting: Waiting) -> None:
        """Save a state that cannot be cut back later where others may want to go on from it.

        That is at the last place where the prompt may be cut, and where prompts that wait part
        from it.
        """
        sequence = slot.sequence
        if sequence is None or self._rolls_back or self._saved.holds(slot.held):
            return
        n_blocks, n_most = sequence.n_computed_blocks, sequence.n_to_border
        if n_blocks == n_most or waiting.parts_after(sequence.hashes, n_blocks, n_most):
            self._save(lane, slot, slot.held)

    def leave(self, lane: Lane) -> None:
        """Save what a context holds that nobody uses, before it is closed."""
        try:
            if lane.context.usable:
                for slot in sorted(lane.slots.free, key=lambda slot: slot.last_used):
                    if len(slot.held) * BLOCK >= WORTH_KEEPING:
                        self._keep(lane, slot)
        except Exception as error:
            note(logger, logging.DEBUG, "not kept: %s", error)

    def trim(self, lane: Lane, slot: Slot) -> None:
        """Leave of a slot that becomes free what it holds of prompts."""
        if not self._rolls_back:
            slot.held = ()  # its memory serves nobody
        self._cut(lane, slot, len(slot.held))

    def make_room(self, lane: Lane) -> None:
        """Empty free slots of a shared memory, but for those used last.

        What its requests may need must be there, and attention goes over all that is in memory.
        """
        left = lane.n_cells - lane.n_promised
        blocks: set[bytes] = set()
        for slot in sorted(lane.slots.free, key=lambda slot: -slot.last_used):
            left -= len(slot.held) * BLOCK
            blocks.update(slot.held)
            if left < 0 or len(blocks) * BLOCK > MAX_IDLE:
                self._cut(lane, slot, 0)

    def keep_all(self, lanes: Iterable[Lane]) -> None:
        """Save for later processes what the slots hold."""
        if self._files is None:
            return
        for lane in lanes:
            for slot in lane.slots.slots:
                if len(slot.held) * BLOCK >= WORTH_KEEPING:
                    self._keep(lane, slot, wait=True)

    def _n_in_slots(self, wanted: BlockHashes, sequence: Sequence) -> int:
        """How many blocks of a prompt are in slots."""
        slots = {slot: slot.held for lane in self._lanes for slot in lane.slots.slots}
        for gone in [slot for slot in self._held if slot not in slots]:
            self._held.put(gone, ())
        for slot, held in slots.items():
            if held is not self._held.blocks(slot):
                self._held.put(slot, held)
        n_found = self._held.find(wanted)
        if not n_found or self._exactness.cuts_anywhere:
            return n_found
        n_found -= n_found % (CHUNK // BLOCK)
        if not n_found:
            return 0
        n_held = max(len(slot.held) for slot in self._held.owners(wanted[n_found - 1]))
        return self._cut_to(n_found, n_held, sequence)

    def _is_usable(self, other: Sequence, sequence: Sequence) -> bool:
        """Whether a slot that a request can have will have room for what another one computes."""
        lane, n_needed = self._lane_of[other], sequence.n_needed
        long_enough = [lane for lane in self._lanes if lane.length >= n_needed and not lane.drains]
        if not long_enough:
            return True  # a new lane is as long as the longest so far
        return (lane in long_enough and bool(lane.slots.free)) or any(
            lane.length >= other.n_needed for lane in long_enough if lane.slots.free
        )

    def _n_saved(self, lane: Lane, sequence: Sequence) -> int:
        saved, n_found = self._saved.find(self._wanted(sequence))
        if saved is None or len(saved.hashes) * BLOCK > lane.length:
            return 0
        return self._cut_to_saved(saved, n_found, sequence)

    def _elsewhere(
        self, lane: Lane, sequence: Sequence, *, settled: bool = True
    ) -> tuple[tuple[Lane, Slot] | None, int]:
        """The slot of another lane with most of a prompt that fits here, and how much it has.

        Args:
            settled: of lanes whose memory can be copied now; the others have requests, and can be
                copied once these were computed.
        """
        best: tuple[Lane, Slot] | None = None
        n_best = 0
        for other in self._lanes if self._rolls_back else ():
            if other is lane or not other.context.usable:
                continue
            if other.context.memory.settled is not settled:
                continue
            if not settled and not other.slots.taken:
                continue
            slot = other.slots.nearest(self._wanted(sequence))
            n_blocks = self.shared(slot.held, sequence)
            if n_blocks > n_best and slot.n_tokens <= lane.length:
                best, n_best = (other, slot), n_blocks
        return best, n_best

    def _copy(self, lane: Lane, slot: Slot, donor: Slot, n_blocks: int) -> int:
        lane.context.memory.seq_cp(donor.seq_id, slot.seq_id)
        slot.held = donor.held
        self._cut(lane, slot, n_blocks)
        return n_blocks * BLOCK

    def _move(self, lane: Lane, slot: Slot, other: Lane, donor: Slot) -> bool:
        """Copy what a slot of another lane holds, and say whether that was possible."""
        if donor.sequence is None:
            self._cut(other, donor, len(donor.held))
        state = self._state(other, donor)
        if state is None or not self._restore(lane, slot, state):
            return False
        slot.held = donor.held
        return True

    def _wanted(self, sequence: Sequence) -> BlockHashes:
        """The blocks of a prompt that need not be computed if they are in memory."""
        return sequence.hashes[: sequence.n_reusable if self._rolls_back else sequence.n_to_border]

    def _cut_to(self, n_blocks: int, n_held: int, sequence: Sequence) -> int:
        """At how many of these blocks, of so many held ones, a prompt may be cut.

        Where not at any, at the end of a whole chunk of both prompts.
        """
        whole = min(n_blocks, last_border(n_held * BLOCK) // BLOCK, sequence.n_to_border)
        whole -= whole % (CHUNK // BLOCK)
        if whole == n_blocks or not self._rolls_back:
            return whole
        return n_blocks if self._exactness.cuts_anywhere else whole

    def _cut_to_saved(self, saved: SavedPrefix | None, n_found: int, sequence: Sequence) -> int:
        if saved is None or not self._rolls_back:
            return n_found  # states that cannot be cut were saved where they serve
        return self._cut_to(n_found, len(saved.hashes), sequence)

    def _cut(self, lane: Lane, slot: Slot, n_blocks: int) -> None:
        """Leave the first blocks of a slot alone."""
        lane.context.memory.seq_rm(slot.seq_id, n_blocks * BLOCK)
        slot.held = slot.held[:n_blocks]

    def _keep(self, lane: Lane, slot: Slot, *, wait: bool = False) -> None:
        """Save what a slot holds before something else takes its place."""
        if not self._rolls_back or self._saved.holds(slot.held) or not self._saved.max_bytes:
            return
        if any(
            n_shared(other.held, slot.held) == len(slot.held)
            for other in lane.slots.slots
            if other is not slot
        ):
            return
        self._cut(lane, slot, len(slot.held))
        self._save(lane, slot, slot.held, wait=wait)

    def _save(self, lane: Lane, slot: Slot, hashes: BlockHashes, *, wait: bool = False) -> None:
        state = self._state(lane, slot)
        if state is not None:
            self._saved.add(hashes, state)
            if self._files is not None:
                self._files.add(SavedPrefix(hashes, state), wait=wait)

    def _state(self, lane: Lane, slot: Slot) -> bytes | None:
        """What a slot holds, or None where it cannot be had: it will be computed anew."""
        try:
            return lane.context.state.seq_get_data(slot.seq_id)
        except (pyllama.LlamaError, MemoryError) as error:  # or copies wait for the next decode
            if not lane.context.usable:
                raise
            note(logger, logging.DEBUG, "not kept: %s", error)
            return None

    def _restore(self, lane: Lane, slot: Slot, state: bytes) -> bool:
        try:
            lane.context.state.seq_set_data(state, slot.seq_id)
        except (pyllama.LlamaError, MemoryError) as error:
            if not lane.context.usable:
                raise
            note(logger, logging.DEBUG, "computed anew: %s", error)
            return False
        return True


def rolls_back(model: pyllama.Model) -> bool:
    """Whether the memory of a sequence can be cut back to fewer tokens and go on from there."""
    return not (model.is_recurrent or model.is_hybrid or model.n_swa)
