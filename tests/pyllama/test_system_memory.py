"""The memory that the system would give, within the limits of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyllama import _system_memory
from pyllama._system_memory import available_memory

MIB = 2**20


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A system of files, in place of the real one."""

    def path_of(name):
        text = str(name)
        return tmp_path / text.lstrip("/") if text.startswith(("/proc", "/sys")) else Path(text)

    def write(files):
        for name, content in files.items():
            path = path_of(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    monkeypatch.setattr(_system_memory, "Path", path_of)
    monkeypatch.setattr(_system_memory, "_CGROUPS", path_of("/sys/fs/cgroup"))
    write({"/proc/meminfo": "MemTotal: 8192 kB\nMemAvailable: 4096 kB\n"})
    return write


def group(folder, limit, used, cache=0):
    return {
        f"/sys/fs/cgroup{folder}/memory.max": str(limit),
        f"/sys/fs/cgroup{folder}/memory.current": str(used),
        f"/sys/fs/cgroup{folder}/memory.stat": f"anon 1\ninactive_file {cache}\n",
    }


def test_here_it_is_less_than_all():
    assert 0 < available_memory() < 2**50


def test_without_control_groups(system):
    assert available_memory() == 4 * MIB


def test_a_group_without_a_limit(system):
    system({"/proc/self/cgroup": "0::/user\n", **group("/user", "max", 5)})
    assert available_memory() == 4 * MIB


def test_the_tightest_limit_above_counts(system):
    system({"/proc/self/cgroup": "0::/outer/inner\n"})
    system(group("/outer/inner", 3 * MIB, MIB))
    assert available_memory() == 2 * MIB
    system(group("/outer", 3 * MIB, 2 * MIB))
    assert available_memory() == MIB
    system(group("", MIB, MIB + 5))
    assert available_memory() == 0


def test_what_only_caches_files_can_be_had(system):
    system({"/proc/self/cgroup": "0::/\n", **group("", 2 * MIB, 2 * MIB, cache=MIB)})
    assert available_memory() == MIB


def test_a_container_that_names_its_group_as_the_host_does(system):
    system({"/proc/self/cgroup": "0::/docker/0123\n", **group("", 3 * MIB, MIB)})
    assert available_memory() == 2 * MIB


def test_the_older_groups(system):
    system(
        {
            "/proc/self/cgroup": "5:cpu,cpuacct:/a\n4:memory:/a\n",
            "/sys/fs/cgroup/memory/a/memory.limit_in_bytes": str(3 * MIB),
            "/sys/fs/cgroup/memory/a/memory.usage_in_bytes": str(2 * MIB),
            "/sys/fs/cgroup/memory/a/memory.stat": "inactive_file 0\n",
        }
    )
    assert available_memory() == MIB


def test_elsewhere_there_is_no_telling(system, tmp_path):
    (tmp_path / "proc" / "meminfo").unlink()
    assert available_memory() is None
