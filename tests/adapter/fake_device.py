"""Devices that this machine does not have, with what adapter reads of a pyllama.Device."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class FakeDevice:
    name: str
    backend: str
    type: str = "gpu"
    description: str = "NVIDIA H100"
    device_id: str | None = None
    memory: tuple[int, int] = (80 * GIB, 80 * GIB)


CPU = FakeDevice("CPU", "CPU", "cpu", "Xeon", memory=(64 * GIB, 64 * GIB))


def gpu(name: str, **changes: object) -> FakeDevice:
    """A card; its backend is its name without the number."""
    return FakeDevice(name, name.rstrip("0123456789"), **changes)
