"""Chooses the devices for models among those that llama.cpp finds, by their descriptions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pyllama

# Which backend to use for a card that several reach: its maker's own first, then the others.
_BACKENDS = ("CUDA", "ROCm", "MUSA", "CANN", "MTL", "SYCL", "Vulkan", "OpenCL")

# Names of Mesa's and Google's Vulkan devices that compute on the CPU.
_SOFTWARE = ("llvmpipe", "lavapipe", "swiftshader")

_REMOTE = "RPC"
_HELPER = "no GPU: the CPU calls it where it helps"


@dataclass(frozen=True)
class DeviceChoice:
    """Whether models run on a device, and why."""

    device: pyllama.Device
    used: bool
    reason: str


def choose_devices(
    devices: Sequence[pyllama.Device], demanded: Collection[pyllama.Device] | None = None
) -> list[DeviceChoice]:
    """Decide for each device, in their order, whether models run on it.

    A card that several backends reach is used once, through its maker's backend rather than Vulkan.
    Cards are recognised by their PCI address or, if a backend does not report it, by their
    description. Integrated GPUs, which share the CPU's memory, are used only if there is no other
    GPU. One that CUDA drives counts as a card. Vulkan devices made of software are not used: they
    compute on the CPU, whose own backend is faster.

    Args:
        demanded: the devices of the backend that the user named; empty for the CPU. These are used,
            whatever they are, and no others. None if no backend was named.
    """
    if demanded is not None:
        return [
            DeviceChoice(device, *_demanded_verdict(device, device in demanded))
            for device in devices
        ]
    cards = [index for index, device in enumerate(devices) if _is_card(device)]
    if not cards:
        cards = [index for index, device in enumerate(devices) if device.type == "igpu"]
    used: list[int] = []
    double_of: dict[int, int] = {}
    paired: set[tuple[int, str]] = set()
    for index in sorted(cards, key=lambda index: _rank(devices[index])):
        device = devices[index]
        same = [
            other
            for other in used
            if _same_card(device, devices[other])
            # Two equal cards are two devices in each backend. Each has one counterpart there.
            and (other, device.backend) not in paired
        ]
        if same:
            double_of[index] = same[0]
            paired.add((same[0], device.backend))
        else:
            used.append(index)
    return [
        DeviceChoice(device, *_verdict(index, devices, used, double_of))
        for index, device in enumerate(devices)
    ]


def _verdict(
    index: int, devices: Sequence[pyllama.Device], used: list[int], double_of: dict[int, int]
) -> tuple[bool, str]:
    device = devices[index]
    if device.type == "cpu":
        return True, "computes what the GPUs do not" if used else "there is no GPU to use"
    if device.type not in ("gpu", "igpu"):
        return False, _HELPER
    if _is_software(device):
        return False, "made of software: the CPU backend is faster"
    if index in double_of:
        return False, f"the same card as {devices[double_of[index]].name}"
    if index not in used:
        return False, "integrated: it shares the memory of the CPU, and there is a GPU with its own"
    if device.backend == _REMOTE:
        return True, "of another machine"
    return True, "a GPU" if _is_card(device) else "integrated, and the only GPU"


def _demanded_verdict(device: pyllama.Device, used: bool) -> tuple[bool, str]:
    if device.type == "cpu":
        return True, "computes what is not on a GPU"
    if device.type not in ("gpu", "igpu"):
        return False, _HELPER
    return used, "of the backend you chose" if used else "not of the backend you chose"


def _is_card(device: pyllama.Device) -> bool:
    if device.type == "igpu":
        return device.backend == "CUDA"
    return device.type == "gpu" and not _is_software(device)


def _is_software(device: pyllama.Device) -> bool:
    return any(name in device.description.lower() for name in _SOFTWARE)


def _rank(device: pyllama.Device) -> int:
    return _BACKENDS.index(device.backend) if device.backend in _BACKENDS else len(_BACKENDS)


def _same_card(one: pyllama.Device, other: pyllama.Device) -> bool:
    if one.backend == other.backend or _REMOTE in (one.backend, other.backend):
        return False
    addresses = one.device_id, other.device_id
    if addresses[0] and addresses[1]:
        return addresses[0].lower() == addresses[1].lower()
    return one.description.lower() == other.description.lower()
