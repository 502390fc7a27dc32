"""Which of several answers to one call a request is for.

DSPy asks an engine for each candidate of a call (``n``) with the same request, and does not pass
the call's ``rollout_id`` on. With a fixed seed all candidates would be equal. So the language model
notes here what it calls, and the engine derives a seed for each candidate.
"""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from adapter.context_variables import assigned
from adapter.engine.config import MAX_SEED


@dataclass
class Rollout:
    """A call that is in progress.

    Attributes:
        rollout_id: DSPy's; None for a call that has none.
        index: how many of its candidates have been answered.
    """

    rollout_id: Any
    index: int = 0

    def seed(self, seed: int) -> int:
        """Return the seed of the next candidate. The first candidate of a plain call has the call's
        seed.
        """
        if self.rollout_id is None and self.index == 0:
            return seed
        name = f"{seed} {self.rollout_id} {self.index}"
        digest = hashlib.sha256(name.encode("utf-8", "replace")).digest()
        return int.from_bytes(digest[:8], "big") % (MAX_SEED + 1)


_current: ContextVar[Rollout | None] = ContextVar("rollout", default=None)


def rollout(rollout_id: Any) -> AbstractContextManager[None]:
    """Treat the engine's answers within a block as the candidates of one call."""
    return assigned(_current, Rollout(rollout_id))


def current_rollout() -> Rollout:
    """Return the call that is in progress. Without one, each request stands for itself."""
    return _current.get() or Rollout(None)
