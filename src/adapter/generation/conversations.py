"""Recognizes conversations by their tokens, and predicts how the prompt of the next turn begins."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from adapter.generation.memory.blocks import BLOCK, BlockHashes

MAX_TURNS = 64
"""How many turns are remembered, the newest."""

MAX_DROPPED = 32
"""The most tokens at the end of a prompt that the next turn's prompt lacks. Some templates begin an
answer with tokens that they do not repeat, such as an empty block of thoughts.
"""

MARK = 2
"""Tokens before the repeated part of an answer, by which that part is found in the next answer."""

MOST_PLACES = 16
"""Places in an answer at which the repeated part is looked for. An answer that repeats itself has
thousands, and comparing all of them would keep requests waiting for seconds.
"""

Tokens = tuple[int, ...]


class Turn(NamedTuple):
    """A prompt, the hashes of its blocks, and its answer."""

    prompt: Tokens
    hashes: BlockHashes
    answer: Tokens


class Repetition(NamedTuple):
    """How a chat template repeats a turn in the prompt of the next one.

    Attributes:
        n_dropped: tokens at the end of the turn's prompt that are not repeated.
        mark: the tokens before the part of the answer that is repeated, such as the end of the
            model's thoughts; none if the whole answer is repeated.
    """

    n_dropped: int
    mark: Tokens

    def of(self, turn: Turn) -> Tokens:
        """How the prompt after a turn begins; no tokens if its answer lacks the mark."""
        ends = [begin + len(self.mark) for begin in _places(self.mark, turn.answer)]
        if not ends:
            return ()
        return turn.prompt[: len(turn.prompt) - self.n_dropped] + turn.answer[ends[0] :]


class Conversations:
    """The newest turns. Only the scheduler's thread uses it.

    A request continues a conversation if its prompt repeats an earlier prompt and the answer to it.
    From that it is known how the chat template repeats an answer. The requests of a program that
    continues no answer are compared with a few hashes, and nothing follows from them.
    """

    def __init__(self) -> None:
        self._turns: deque[Turn] = deque(maxlen=MAX_TURNS)

    def next_prompt(self, turn: Turn) -> Tokens:
        """Remember a turn that has ended, and return how the next turn's prompt begins.

        Returns:
            No tokens if the turn does not continue another, or if nothing can be predicted.
        """
        found = next(self._repetitions(turn), None)
        self._turns.append(turn)
        return () if found is None else found.of(turn)

    def _repetitions(self, turn: Turn) -> Iterator[Repetition]:
        """How the prompt of a turn repeats earlier ones, the newest first."""
        for earlier in reversed(self._turns):
            at = max(0, (len(earlier.prompt) - MAX_DROPPED) // BLOCK - 1)
            block = earlier.hashes[at : at + 1]  # it stands for all blocks before it, too
            if block and block == turn.hashes[at : at + 1]:
                found = _repetition(earlier, turn.prompt, (at + 1) * BLOCK)
                if found is not None:
                    yield found


def _repetition(turn: Turn, prompt: Tokens, n_common: int) -> Repetition | None:
    """How a prompt repeats a turn; None if it does not.

    Args:
        n_common: how many tokens both are known to begin with.
    """
    most = min(len(turn.prompt), len(prompt))
    while n_common < most and turn.prompt[n_common] == prompt[n_common]:
        n_common += 1
    n_dropped = len(turn.prompt) - n_common
    rest = prompt[n_common : n_common + len(turn.answer)]
    if n_dropped > MAX_DROPPED or len(rest) < BLOCK:
        return None
    places = islice(_places(rest[:BLOCK], turn.answer), MOST_PLACES)
    begin = max(places, key=lambda place: _n_equal(rest, turn.answer[place:]), default=None)
    if begin is None:
        return None
    return Repetition(n_dropped, turn.answer[max(0, begin - MARK) : begin])


def _places(part: Tokens, tokens: Tokens) -> list[int]:
    """Where some tokens are found in others."""
    size = len(part)
    return [at for at in range(len(tokens) - size + 1) if tokens[at : at + size] == part]


def _n_equal(one: Tokens, other: Tokens) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
