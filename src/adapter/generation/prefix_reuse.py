"""Brings beginnings of prompts into sequences: from other sequences, or from saved states."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import pyllama
from adapter.generation.blocks import BLOCK, CHUNK, BlockHashes, last_border, n_shared
from adapter.generation.exactness import Exactness
from adapter.generation.lanes import Lane
from adapter.generation.prefix_cache import PrefixCache, SavedPrefix
from adapter.generation.prefix_folder import PrefixFolder
from adapter.generation.sequence import Sequence
from adapter.generation.slots import Slot

logger = logging.getLogger(__name__)

MAX_IDLE = 8192
"""Tokens that are left in a shared memory for requests to come."""

WORTH_KEEPING = 128
"""Tokens of a prompt that are saved before others take their place: the end of one rarely is."""


class PrefixReuse:
    """What of a prompt is in memory already, and how a slot gets it. For the scheduler's thread.

    :param saved: states of what is no longer in a context.
    :param exactness: where a prompt may be cut.
    :param folder: states of earlier processes, and for later ones.
    """

    def __init__(
        self,
        model: pyllama.Model,
        saved: PrefixCache,
        exactness: Exactness,
        folder: PrefixFolder | None,
    ) -> None:
        self._saved = saved
        self._folder = folder
        self._exactness = exactness
        # The state of a recurrent model cannot go back to an earlier token. That of a model with a
        # sliding window can, but puts what follows elsewhere, and sums it in another order.
        self._rolls_back = rolls_back(model)

    def shared(self, held: BlockHashes, sequence: Sequence) -> int:
        """How many blocks a prompt can take over from another that is or was computed."""
        n_blocks = n_shared(held, self._wanted(sequence))
        return self._cut_to(n_blocks, len(held), sequence)

    def n_held(self, sequence: Sequence, slots: Iterable[Slot]) -> int:
        """How many blocks of a prompt need not be computed, given what is in memory now."""
        in_slots = (self.shared(slot.held, sequence) for slot in slots)
        saved, n_found = self._saved.find(self._wanted(sequence))
        return max(self._cut_to_saved(saved, n_found, sequence), *in_slots, 0)

    def bring(self, lane: Lane, slot: Slot, sequence: Sequence) -> int:
        """Bring as much of a prompt into a slot as is in memory; return how many tokens that is."""
        wanted = self._wanted(sequence)
        memory = lane.context.memory
        donor = lane.slots.nearest(wanted)
        n_here = self.shared(slot.held, sequence)
        n_there = self.shared(donor.held, sequence)
        saved, n_found = self._find(wanted, max(n_here, n_there))
        n_saved = self._cut_to_saved(saved, n_found, sequence)
        if self._rolls_back and n_here >= max(n_there, n_saved):
            if (len(slot.held) - n_here) * BLOCK >= WORTH_KEEPING:
                self._keep(lane, slot)
            self._cut(lane, slot, n_here)
            return n_here * BLOCK
        if len(slot.held) * BLOCK >= WORTH_KEEPING:
            self._keep(lane, slot)
        slot.held = ()
        memory.seq_rm(slot.seq_id)
        if self._rolls_back and n_there >= max(n_saved, 1):
            memory.seq_cp(donor.seq_id, slot.seq_id)
            slot.held = donor.held
            self._cut(lane, slot, n_there)
            return n_there * BLOCK
        if saved is None or not self._restore(lane, slot, saved.state):
            return 0
        self._saved.used(saved)
        slot.held = saved.hashes
        if self._rolls_back:
            self._cut(lane, slot, n_saved)
        return n_saved * BLOCK

    def checkpoint(self, lane: Lane, slot: Slot, waiting: Iterable[Sequence]) -> None:
        """Save a state that cannot be cut back later where others may want to go on from it.

        That is at the last place where the prompt may be cut, and where prompts that wait part
        from it.
        """
        sequence = slot.sequence
        if sequence is None or self._rolls_back or self._saved.holds(slot.held):
            return
        borders = {self.shared(sequence.hashes, other) for other in waiting}
        if sequence.n_computed_blocks in borders | {sequence.n_to_border}:
            self._save(lane, slot, slot.held)

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
        if self._folder is None:
            return
        for lane in lanes:
            for slot in lane.slots.slots:
                if len(slot.held) * BLOCK >= WORTH_KEEPING:
                    self._keep(lane, slot)

    def _find(self, wanted: BlockHashes, n_held: int) -> tuple[SavedPrefix | None, int]:
        """The saved state with most of these blocks, and how many it has."""
        saved, n_found = self._saved.find(wanted)
        if self._folder is not None:
            more_than, whole = max(n_found, n_held), not self._rolls_back
            earlier = self._folder.find(wanted, more_than=more_than, whole=whole)
            if earlier is not None:
                self._saved.add(earlier.hashes, earlier.state)
                return self._saved.find(wanted)
        return saved, n_found

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

    def _keep(self, lane: Lane, slot: Slot) -> None:
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
        self._save(lane, slot, slot.held)

    def _save(self, lane: Lane, slot: Slot, hashes: BlockHashes) -> None:
        try:
            state = lane.context.state.seq_get_data(slot.seq_id)
        except pyllama.StateError as error:  # copies are waiting for the next decode
            logger.debug("not kept: %s", error)
            return
        self._saved.add(hashes, state)
        if self._folder is not None:
            self._folder.add(SavedPrefix(hashes, state))

    def _restore(self, lane: Lane, slot: Slot, state: bytes) -> bool:
        try:
            lane.context.state.seq_set_data(state, slot.seq_id)
        except pyllama.StateError as error:
            logger.debug("computed anew: %s", error)
            return False
        return True


def rolls_back(model: pyllama.Model) -> bool:
    """Whether the memory of a sequence can be cut back to fewer tokens and go on from there."""
    return not (model.is_recurrent or model.is_hybrid or model.n_swa)
