"""What an object says of itself whose making failed: tracebacks and debuggers show those, too."""

from __future__ import annotations

import pytest
from half_made import described_classes

import adapter


@pytest.mark.parametrize("kind", described_classes(adapter), ids=lambda kind: kind.__qualname__)
def test_repr_says_what_failed(kind):
    assert kind.__name__ in repr(kind.__new__(kind))
