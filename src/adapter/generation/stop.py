"""Stop texts in a stream: found across pieces, and never shown."""

from __future__ import annotations


class StopMatcher:
    """Passes text through until a stop text appears, holding back what may become one."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        #: Whether a stop text was found; nothing passes after it.
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that can be shown now that ``text`` came."""
        if self.stopped:
            return ""
        self._held += text
        found = [index for stop in self._stops if (index := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        end = len(self._held) - self._beginning_of_stop()
        shown, self._held = self._held[:end], self._held[end:]
        return shown

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        shown, self._held = self._held, ""
        return shown

    def _beginning_of_stop(self) -> int:
        """The length of the longest end of the held text that begins a stop text."""
        longest = max(map(len, self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
