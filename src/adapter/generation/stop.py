"""Stop texts in a stream: found across pieces, and never shown."""

from __future__ import annotations

from bisect import bisect_left


class StopMatcher:
    """Passes text through until a stop text appears, and keeps back what may become one.

    Args:
        stops: texts that end the output wherever they stand.
        turn_stops: texts that end it only if what stands before them is a complete answer.
        may_end: whether the empty text is a complete answer.
    """

    def __init__(
        self, stops: tuple[str, ...], turn_stops: tuple[str, ...] = (), *, may_end: bool = True
    ) -> None:
        self._stops = stops
        self._turn_stops = turn_stops
        self._firsts = {stop[:1] for stop in stops + turn_stops}
        self._pending = ""
        self._borders = [0]  # where pieces begin and end in the pending text
        self._may_end = [may_end]  # there
        #: Whether a stop text was found. Nothing passes after it.
        self.stopped = False

    def push(self, text: str, *, may_end: bool = True) -> str:
        """Return the text that can be shown after ``text`` was added.

        Args:
            may_end: whether all text so far is a complete answer.
        """
        if self.stopped:
            return ""
        if not self._pending and self._firsts.isdisjoint(text):
            self._borders[:], self._may_end[:] = [0], [may_end]
            return text
        self._pending += text
        self._borders.append(len(self._pending))
        self._may_end.append(may_end)
        found = [index for stop in self._stops if (index := self._pending.find(stop)) >= 0]
        found += [index for stop in self._turn_stops for index in self._found(stop)]
        if found:
            self.stopped = True
            shown, self._pending = self._pending[: min(found)], ""
            return shown
        return self._show(len(self._pending) - self._beginning_of_stop())

    @property
    def pending(self) -> str:
        """The text that is kept back."""
        return self._pending

    def flush(self) -> str:
        """Return the pending text once no more comes."""
        shown, self._pending = self._pending, ""
        return shown

    def _show(self, size: int) -> str:
        shown, self._pending = self._pending[:size], self._pending[size:]
        passed = bisect_left(self._borders, size)
        self._borders = [border - size for border in self._borders[passed:]]
        del self._may_end[:passed]
        return shown

    def _found(self, stop: str) -> list[int]:
        """Where the first text stands that ends a turn, if there is one."""
        index = self._pending.find(stop)
        while index >= 0 and not self._ends_before(index):
            index = self._pending.find(stop, index + 1)
        return [index] if index >= 0 else []

    def _ends_before(self, index: int) -> bool:
        """Whether the text may end there. If that is within a piece, whether it may end after the
        piece.
        """
        at = bisect_left(self._borders, index)
        # An empty piece, of a character's first bytes, ends where the one before it does.
        while at + 1 < len(self._borders) and self._borders[at + 1] == index:
            at += 1
        return self._may_end[at]

    def _beginning_of_stop(self) -> int:
        """The length of the longest end of the pending text that may begin a stop text."""
        stops = self._stops + self._turn_stops
        longest = max(map(len, stops), default=1) - 1
        for length in range(min(longest, len(self._pending)), 0, -1):
            end = self._pending[-length:]
            ends_turn = bool(self._turn_stops) and self._ends_before(len(self._pending) - length)
            for stop in stops if ends_turn else self._stops:
                if stop.startswith(end):
                    return length
        return 0
