"""What the models of one pool are loaded with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from adapter.models.chat_templates import ChatTemplates
from adapter.models.hardware import Placement
from adapter.models.loading_bar import Watch
from adapter.models.memory_budget import MemoryBudget


class Plan(Protocol):
    """Where the model in a file runs, as HardwareManager.plan() decides it."""

    def __call__(self, path: Path, **settings: Any) -> Placement: ...


@dataclass(eq=False)
class LoadSettings:
    """The same for all models of a pool.

    plan           decides where a model goes
    budget         how much the pool may hold
    reproducible   whether requests give the same bytes whatever runs beside them
    prefix_folder  where beginnings of prompts are kept
    templates      chat templates in place of the models' own
    watch          gives what a load calls with the fraction loaded
    """

    plan: Plan
    budget: MemoryBudget
    reproducible: bool
    prefix_folder: Path | None
    templates: ChatTemplates
    watch: Watch
