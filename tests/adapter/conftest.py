from __future__ import annotations

from collections.abc import Iterator

import dspy
import pytest


@pytest.fixture(autouse=True)
def own_cache() -> Iterator[None]:
    """Give each test an empty cache in memory, and DSPy's settings back as they were."""
    before = dspy.cache
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    with dspy.context(lm=None, adapter=None):
        yield
    dspy.cache = before
