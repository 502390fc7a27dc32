"""How much memory the operating system would still give to this process."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Bytes available within the limits of this process's control groups.

    None if that is unknown: on systems other than Linux.
    """
    try:
        info = Path("/proc/meminfo").read_text(encoding="ascii").split()
        available = int(info[info.index("MemAvailable:") + 1]) * 1024
    except (OSError, ValueError):
        return None
    return min([available, *_cgroup_rooms()])


def _cgroup_rooms() -> list[int]:
    """What is left of each memory limit above this process."""
    rooms = []
    try:
        entries = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for entry in entries:
        _, controllers, path = entry.split(":", 2)
        if not controllers:
            root, limit, usage = _CGROUPS, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root = _CGROUPS / "memory"
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        # Inside a container the path may be the host's. Its own limit is at the root.
        group = Path(os.path.normpath(f"{root}/{path}"))
        for folder in (group, *group.parents):
            if folder == root.parent:
                break
            room = _room(folder, limit, usage)
            if room is not None:
                rooms.append(room)
    return rooms


def _room(folder: Path, limit: str, usage: str) -> int | None:
    try:
        bound = int((folder / limit).read_text(encoding="ascii"))
        used = int((folder / usage).read_text(encoding="ascii"))
        stat = (folder / "memory.stat").read_text(encoding="ascii").split()
        reclaimable = int(stat[stat.index("inactive_file") + 1])
    except (OSError, ValueError):  # no such file, or "max"
        return None
    return max(0, bound - used + reclaimable)
