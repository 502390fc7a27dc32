"""How many processors other work takes, as /proc says it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from adapter.generation import processor_load
from adapter.generation.processor_load import FIRST_SECONDS, SECONDS, ProcessorLoad

HEAD = "cpu  1 2 3 4 5 6 7 8 9 10"


class Machine:
    """Files like those of /proc, and the clock of this process."""

    def __init__(self, folder, monkeypatch):
        self.stat, self.tasks = folder / "stat", folder / "task"
        self.ticks = {0: [0] * 10, 1: [0] * 10, 2: [0] * 10}
        self.own = 0.0
        self.now = 100.0
        monkeypatch.setattr(processor_load, "STAT", self.stat)
        monkeypatch.setattr(processor_load, "TASKS", self.tasks)
        monkeypatch.setattr(processor_load, "_processors", lambda: {0, 1})
        monkeypatch.setattr(processor_load.time, "process_time", lambda: self.own)
        monkeypatch.setattr(os, "sysconf", lambda _name: 100)
        monkeypatch.setattr(os, "nice", lambda _by: 0)
        self.write()

    def write(self):
        lines = [f"cpu{cpu} {' '.join(map(str, ticks))}" for cpu, ticks in self.ticks.items()]
        self.stat.write_text("\n".join([HEAD, *lines, "intr 1 2 3", "cpu9 no"]))

    def thread(self, tid, seconds):
        folder = self.tasks / str(tid)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "schedstat").write_text(f"{int(seconds * 1e9)} 5 6")

    def later(self, **ticks):
        """A second passes, in which processor 0 has so many ticks in each field."""
        names = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"]
        for name, count in ticks.items():
            self.ticks[0][names.index(name)] += count
        self.now += 1
        self.write()

    def others(self, load, **options):
        return load.others(self.now, **options)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


def test_what_this_process_uses_is_not_other_work(machine):
    load = ProcessorLoad()
    assert machine.others(load) is None  # there is nothing to compare with
    machine.later(user=70, system=10, irq=1, softirq=2, steal=7, idle=5, iowait=5)
    machine.own = 0.5
    assert machine.others(load) == pytest.approx(0.4)


def test_other_processors_and_niced_work_do_not_count(machine, monkeypatch):
    load = ProcessorLoad()
    machine.others(load)
    machine.ticks[2][0] += 1000
    machine.later(nice=100)
    assert machine.others(load) == 0.0
    monkeypatch.setattr(os, "nice", lambda _by: 5)  # this process gives way, too
    machine.others(load, paused=True)
    machine.later(nice=100)
    assert machine.others(load) == pytest.approx(1.0)


def test_python_threads_beside_the_calling_one_are_other_work(machine):
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    here, there = threading.get_native_id(), thread.native_id
    load = ProcessorLoad()
    machine.thread(here, 1.0)
    machine.thread(there, 1.0)
    machine.others(load)
    machine.thread(here, 1.9)
    machine.thread(there, 1.6)
    machine.later(user=150)
    machine.own = 1.5
    assert machine.others(load) == pytest.approx(0.6)
    machine.thread(there, 0.1)  # another one that has its id
    machine.later()
    assert machine.others(load) == pytest.approx(0.3)  # the average with none
    stop.set()
    thread.join()


def test_the_latest_time_counts_most_and_a_pause_forgets(machine):
    load = ProcessorLoad()
    machine.others(load)
    found = []
    for busy in (100, 100, 0, 0, 0):
        machine.later(user=busy)
        found.append(machine.others(load))
    assert found == pytest.approx([1.0, 1.0, 0.5, 0.25, 0.125])
    machine.later(user=100)
    assert machine.others(load, paused=True) is None
    machine.later()
    assert machine.others(load) == 0.0


def test_files_are_read_only_now_and_then(machine, monkeypatch):
    reads = []
    read = processor_load._read
    monkeypatch.setattr(processor_load, "_read", lambda at: reads.append(at) or read(at))
    load = ProcessorLoad()
    for index in range(1000):
        load.others(100 + index * SECONDS / 100)
    assert 9 <= len(reads) <= 11
    assert reads[1] - reads[0] == pytest.approx(FIRST_SECONDS)


@pytest.mark.parametrize("text", [None, "", "cpu0 1 2", "cpu0 a b c d e f g h i j", "\xe9"])
def test_nothing_is_known_where_the_files_are_others(machine, text):
    load = ProcessorLoad()
    machine.others(load)
    if text is None:
        machine.stat.unlink()
    else:
        machine.stat.write_bytes(text.encode("latin-1"))
    machine.now += 1
    if text == "":  # no processor is listed, as in some containers
        assert machine.others(load) == 0.0
        return
    assert machine.others(load) is None
    machine.later(user=100)
    assert machine.others(load) is None  # the one before is not known
    machine.later(user=100)
    assert machine.others(load) == pytest.approx(1.0)


def test_a_reading_for_which_there_is_no_memory_fails_nothing(machine, monkeypatch):
    load = ProcessorLoad()
    machine.others(load)

    def full():
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(threading, "enumerate", full)
        machine.later(user=100)
        assert machine.others(load) is None


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_busy_process_is_seen():
    load = ProcessorLoad()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as loop:
        try:
            load.others(time.monotonic())
            for _ in range(240):  # 60 s at most, on a machine that is busy already
                time.sleep(SECONDS)
                if (load.others(time.monotonic()) or 0.0) > 0.3:
                    break
            else:
                pytest.fail("nothing was seen")
        finally:
            loop.kill()
