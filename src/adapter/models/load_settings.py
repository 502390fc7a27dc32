"""The settings with which the models of one pool are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from adapter.models.chat_templates import ChatTemplates
from adapter.models.hardware import Placement
from adapter.models.loading_bar import Watch
from adapter.models.memory_budget import MemoryBudget


class PlanPlacement(Protocol):
    """Decides where the model in a file runs, like HardwareManager.plan()."""

    def __call__(self, path: Path, **settings: Any) -> Placement: ...


@dataclass(eq=False)
class LoadSettings:
    """Settings that all models of a pool share.

    Attributes:
        plan: decides where a model runs.
        budget: how much the pool may hold.
        reproducible: whether requests give the same bytes whatever else runs.
        prefix_folder: where beginnings of prompts are kept.
        templates: chat templates in place of the models' own.
        watch: makes the function that a load calls with the fraction loaded.
    """

    plan: PlanPlacement
    budget: MemoryBudget
    reproducible: bool
    prefix_folder: Path | None
    templates: ChatTemplates
    watch: Watch
