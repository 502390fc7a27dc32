"""What this machine can compute with."""

from __future__ import annotations

from pathlib import Path

import pyllama

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def cpu_threads() -> int:
    """Threads to compute with: the cores worth using, within a container's limit."""
    cores, limit = pyllama.cpu_math_cores(), _container_limit()
    return cores if limit is None else min(cores, limit)


def running_device(n_gpu_layers: int) -> pyllama.Device:
    """The device that llama.cpp puts a model's layers on: the first GPU, else the CPU."""
    found = pyllama.devices()
    gpus = [device for device in found if device.type in ("gpu", "igpu")]
    if gpus and n_gpu_layers != 0:
        return gpus[0]
    return next(device for device in found if device.type == "cpu")


def _container_limit() -> int | None:
    """CPUs that Linux's control group allows, if it sets a limit."""
    try:
        quota, period = _CPU_QUOTA.read_text().split()
        return None if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return None
