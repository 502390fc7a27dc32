"""What computes completions and scores, seen from its callers."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

from adapter.generation.pending import Pending, taken_from
from adapter.generation.request import Delta, GenerationRequest, GenerationResult
from adapter.generation.scoring import ScoringRequest, ScoringResult


class Generator(ABC):
    """Computes completions. Any number of threads may call it at once."""

    @abstractmethod
    def submit(
        self, request: GenerationRequest, cancelled: threading.Event | None = None
    ) -> Pending[Delta | GenerationResult]:
        """Return what ``stream`` yields, without waiting for it. It must be closed.

        Raises:
            ContextTooLongError: the prompt leaves no room for an answer.
        """

    @abstractmethod
    def submit_scoring(
        self, request: ScoringRequest, cancelled: threading.Event | None = None
    ) -> Pending[ScoringResult]:
        """Return what ``score`` returns, without waiting for it. It must be closed.

        Raises:
            ContextTooLongError: a continuation does not fit the context.
        """

    def generate(self, request: GenerationRequest) -> GenerationResult:
        """Return the whole completion."""
        *_, result = self.stream(replace(request, streamed=False))
        assert isinstance(result, GenerationResult)
        return result

    def stream(
        self, request: GenerationRequest, cancelled: threading.Event | None = None
    ) -> Iterator[Delta | GenerationResult]:
        """Yield the completion piece by piece, then exactly one GenerationResult, last.

        Closing the iterator stops the computation before the next step. Once ``cancelled`` is set
        it stops likewise, without a result.

        Raises:
            ContextTooLongError: before any work.
            QueueFullError: before any work.
        """
        with closing(self.submit(request, cancelled)) as pending:
            while (piece := taken_from(pending)) is not None:
                yield piece
                if isinstance(piece, GenerationResult):
                    return

    def score(
        self, request: ScoringRequest, cancelled: threading.Event | None = None
    ) -> ScoringResult | None:
        """Return how likely each continuation is, or None once ``cancelled`` is set.

        Raises:
            ContextTooLongError: before any work.
            QueueFullError: before any work.
        """
        with closing(self.submit_scoring(request, cancelled)) as pending:
            return taken_from(pending)
