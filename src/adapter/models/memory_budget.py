"""How much memory, and how many models, a pool may hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from adapter.errors import PoolFullError
from adapter.models.hardware import HOST, Placement
from adapter.models.integers import require_integer
from adapter.models.machine_memory import machine
from adapter.models.slot import Residency


class MemoryBudget:
    """Whether a pool has room for one more model.

    Args:
        memory_budget: bytes that its models may take together; "auto" for what was free of each
            memory before pools took any of it, less a margin; None for no limit.
        max_models: how many may be in memory; None for any number.

    Raises:
        InvalidParameterError: a number out of range.
    """

    def __init__(self, memory_budget: int | Literal["auto"] | None, max_models: int | None) -> None:
        if memory_budget != "auto":
            require_integer("memory_budget", memory_budget, least=1)
        require_integer("max_models", max_models, least=1)
        self._memory_budget = memory_budget
        self._max_models = max_models

    @property
    def is_unlimited(self) -> bool:
        """Whether there is no limit on memory."""
        return self._memory_budget is None

    def room(self, own: Sequence[Residency]) -> int | None:
        """Bytes of the host's memory that are left; None for what the system reports as free.

        A model takes a part of its reserved memory only when it needs it.

        Args:
            own: what the pool has in memory. A budget in bytes is for these models only.
        """
        if self.is_unlimited:
            return None
        if isinstance(self._memory_budget, int):
            return self._memory_budget - sum(sum(model.memory.values()) for model in own)
        held, limits = machine.read()
        return limits[HOST] - held[HOST] if HOST in limits and held[HOST] else None

    def shortage(
        self, name: str, placement: Placement, own: Sequence[Residency], kept: Sequence[Residency]
    ) -> PoolFullError | None:
        """What would be missing for a model if only `kept` of the pool's own models stayed."""
        # A failed model was replaced. Until its requests have ended, there are two of one model.
        n_kept = sum(not model.replaced for model in kept)
        if self._max_models is not None and n_kept >= self._max_models:
            return _error(name, 1, n_kept, self._max_models, "models", "the pool", kept)
        if isinstance(self._memory_budget, int):
            needed = sum(placement.memory.values())
            held = sum(sum(model.memory.values()) for model in kept)
            if needed + held > self._memory_budget:
                return _error(name, needed, held, self._memory_budget, "bytes", "the pool", kept)
        if self._memory_budget == "auto":
            in_all, limits = machine.read()
            for memory, needed in placement.memory.items():
                evictable = _taken(memory, own) - _taken(memory, kept)
                held, limit = in_all[memory] - evictable, limits[memory]
                if needed + held > limit:
                    where = f"this process, of {memory} memory,"
                    return _error(name, needed, held, limit, "bytes", where, kept)
        return None


def _taken(memory: str, models: Sequence[Residency]) -> int:
    return sum(model.memory.get(memory, 0) for model in models)


def _error(
    name: str,
    needed: int,
    held: int,
    limit: int,
    unit: str,
    memory: str,
    kept: Sequence[Residency],
) -> PoolFullError:
    holders = [f"{model.name!r} is {model.kept_because}" for model in kept]
    if memory != "the pool" and held > sum(sum(model.memory.values()) for model in kept):
        holders.append("other pools hold models")
    return PoolFullError(
        name,
        needed=needed,
        held=held,
        limit=limit,
        unit=unit,
        memory=memory,
        holders=", ".join(holders) or "the pool is empty",
    )
