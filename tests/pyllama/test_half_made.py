"""What an object says of itself whose making failed: tracebacks and debuggers show those, too."""

from __future__ import annotations

import pytest
from half_made import described_classes

import pyllama


@pytest.mark.parametrize("kind", described_classes(pyllama), ids=lambda kind: kind.__qualname__)
def test_repr_says_what_failed(kind):
    assert kind.__name__ in repr(kind.__new__(kind))


def test_a_fault_of_what_repr_shows_is_raised():
    class Broken(pyllama.Batch):
        n_embd = property(lambda _: object().missing)

    with pytest.raises(AttributeError, match="missing"):
        repr(Broken.__new__(Broken))
