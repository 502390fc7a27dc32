"""The tokens that a request takes while it is computed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(eq=False)
class TokenCount:
    """The tokens that one request has taken so far. Whoever computes it updates this.

    A request takes none if it is refused, or given up while it waits.

    Attributes:
        prompt: tokens of the prompt that are in memory for it, including cached ones.
        answer: tokens that were sampled or forced by a grammar; or tokens of continuations that
            were computed to score them.
        pending: it may still take more. Its caller may have left while a step computes it.
    """

    prompt: int = 0
    answer: int = 0
    pending: bool = False

    @property
    def total(self) -> int:
        """Tokens of the prompt and of the answer together.

        Text that a grammar forces at the beginning of an answer is known before anything is
        computed. It counts once the first token of the prompt does.
        """
        return self.prompt + self.answer if self.prompt else 0
