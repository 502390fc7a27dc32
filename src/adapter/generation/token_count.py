"""What a request takes while it is computed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(eq=False)
class TokenCount:
    """The tokens that one request has taken so far. Whoever computes it keeps this up to date.

    A request that is refused, or given up while it waits, takes none.

    prompt   tokens of the prompt that are in memory for it, those from a cache included
    answer   tokens that were sampled, or that a grammar forced; or those of continuations that were
             computed to score them
    pending  it may still take more: its caller can be gone while a step of it is under way
    """

    prompt: int = 0
    answer: int = 0
    pending: bool = False

    @property
    def total(self) -> int:
        """Tokens of the prompt and of the answer together.

        What a grammar forces at an answer's beginning is known before anything is computed: it
        counts from the prompt's first token on.
        """
        return self.prompt + self.answer if self.prompt else 0
