"""What to do about backends of this build that could not be loaded."""

from __future__ import annotations

_PACKAGES = {
    "VULKAN": "; GPUs of AMD and Intel need: apt-get install libvulkan1 mesa-vulkan-drivers"
}


def missing_drivers() -> list[str]:
    """A line about each of them."""
    import pyllama

    return [
        f"{entry.name} is not loaded: its loader or driver is not installed here"
        + _PACKAGES.get(entry.name, "")
        for entry in pyllama.unloaded_backends()
    ]
