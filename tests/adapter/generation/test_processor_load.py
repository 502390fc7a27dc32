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
FIELDS = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"]


class Machine:
    """Files like those of /proc, and the clock of this process."""

    def __init__(self, folder, monkeypatch):
        self.stat, self.tasks = folder / "stat", folder / "task"
        self.ticks = {0: [0] * 10, 1: [0] * 10, 2: [0] * 10}
        self.own = 0.0
        self.now = 100.0
        self.processors = {0, 1}
        monkeypatch.setattr(processor_load, "STAT", self.stat)
        monkeypatch.setattr(processor_load, "TASKS", self.tasks)
        monkeypatch.setattr(processor_load, "_processors", lambda: set(self.processors))
        monkeypatch.setattr(processor_load.time, "process_time", lambda: self.own)
        monkeypatch.setattr(processor_load.time, "monotonic", lambda: self.now)
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

    def later(self, *, seconds=1, also_busy=0, **ticks):
        """Time passes. Processor 0 has so many ticks in each field, and is idle in the rest.

        :param also_busy: ticks that processor 1 works.
        """
        for cpu, busy in ((0, ticks), (1, {"user": also_busy}), (2, {})):
            for name, count in busy.items():
                self.ticks[cpu][FIELDS.index(name)] += count
            idle = round(100 * seconds) - sum(busy.values())
            self.ticks[cpu][FIELDS.index("idle")] += idle
        self.now += seconds
        self.write()

    def others(self, load, **options):
        return load.others(self.now, **options)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


def test_what_this_process_uses_is_not_other_work(machine):
    load = ProcessorLoad()
    assert machine.others(load) is None  # there is nothing to compare with
    machine.later(user=70, system=10, irq=1, softirq=2, steal=7, iowait=5)
    machine.own = 0.5
    assert machine.others(load) == pytest.approx(0.4)


def test_threads_that_sleep_between_ticks_are_no_other_work(machine):
    """What Linux says of work is what ran at its ticks. It measures how long nothing did."""
    load = ProcessorLoad()
    machine.later(seconds=0.1, user=10)
    machine.own = 0.1
    assert machine.others(load) == pytest.approx(0.0)
    for at_ticks in (16, 4):  # 10 had run
        machine.later(seconds=0.25, user=10)
        machine.ticks[0][FIELDS.index("user")] += at_ticks - 10
        machine.own += 0.1
        machine.write()
        assert machine.others(load) == pytest.approx(0.0)


def test_other_processors_and_niced_work_do_not_count(machine, monkeypatch):
    load = ProcessorLoad()
    machine.ticks[2][0] += 1000
    machine.later(nice=100)
    assert machine.others(load) == 0.0
    monkeypatch.setattr(os, "nice", lambda _by: 5)  # this process gives way, too
    load = ProcessorLoad()
    machine.later(nice=100)
    assert machine.others(load) == pytest.approx(1.0)


def test_python_threads_beside_the_calling_one_are_other_work(machine):
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, daemon=True)
    thread.start()
    here, there = threading.get_native_id(), thread.native_id
    machine.thread(here, 1.0)
    machine.thread(there, 1.0)
    load = ProcessorLoad()
    machine.thread(here, 1.9)
    machine.thread(there, 1.6)
    machine.later(user=90, also_busy=60)
    machine.own = 1.5
    assert machine.others(load) == pytest.approx(0.6)
    machine.thread(there, 0.1)  # another one that has its id
    machine.later()
    assert machine.others(load) == pytest.approx(0.3)  # the average with none
    stop.set()
    thread.join()


def test_the_latest_time_counts_most(machine):
    load = ProcessorLoad()
    found = []
    for busy in (100, 100, 0, 0, 0):
        machine.later(user=busy)
        found.append(machine.others(load))
    assert found == pytest.approx([1.0, 1.0, 0.5, 0.25, 0.125])


def test_what_others_used_in_a_pause_is_known_at_once(machine):
    load = ProcessorLoad()
    machine.later(user=100)
    machine.others(load)
    machine.later(seconds=60, user=6000, also_busy=3000)
    assert machine.others(load, paused=True) == pytest.approx(1.5)


def test_a_load_that_ended_in_a_pause_counts_for_a_tenth_of_a_second(machine):
    """And one that began there, of a long pause."""
    load = ProcessorLoad()
    machine.later(seconds=60, user=3000)
    assert machine.others(load, paused=True) == pytest.approx(0.5)
    machine.later(seconds=FIRST_SECONDS)
    assert machine.others(load) == pytest.approx(0.0)  # no average of both
    machine.later(seconds=60)
    assert machine.others(load, paused=True) == pytest.approx(0.0)
    machine.later(seconds=FIRST_SECONDS, user=10)
    assert machine.others(load) == pytest.approx(1.0)


def test_python_threads_that_worked_in_a_pause_wait_now(machine):
    """A program prepares its next question: that is no other work while it is answered."""
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, daemon=True)
    thread.start()
    machine.thread(thread.native_id, 1.0)
    load = ProcessorLoad()
    machine.thread(thread.native_id, 2.0)
    machine.later(user=100, also_busy=40)
    machine.own = 1.0
    assert machine.others(load, paused=True) == pytest.approx(0.4)
    machine.thread(thread.native_id, 3.0)  # it goes on
    machine.later(user=100, also_busy=40)
    machine.own = 2.0
    assert machine.others(load) == pytest.approx(1.4)
    stop.set()
    thread.join()


def test_the_time_since_it_was_made_is_known_at_once(machine):
    load = ProcessorLoad()
    machine.later(user=100)
    assert machine.others(load, paused=True) == pytest.approx(1.0)


def test_a_moment_tells_nothing(machine):
    load = ProcessorLoad()
    machine.later(seconds=FIRST_SECONDS / 2, user=5)
    assert machine.others(load, paused=True) is None
    machine.later(seconds=FIRST_SECONDS / 2, user=5)
    assert machine.others(load) == pytest.approx(1.0)


def test_readings_of_other_processors_are_not_compared(machine):
    load = ProcessorLoad()
    machine.later(user=100)
    machine.processors = {0, 2}
    assert machine.others(load) is None
    machine.later(user=100)
    assert machine.others(load) == pytest.approx(1.0)


def test_files_are_read_only_now_and_then(machine, monkeypatch):
    reads = []
    read = processor_load._read
    monkeypatch.setattr(processor_load, "_read", lambda at: reads.append(at) or read(at))
    load = ProcessorLoad()
    for index in range(1000):
        load.others(100 + index * SECONDS / 100)
    assert 9 <= len(reads) <= 11
    assert reads[1] - reads[0] == pytest.approx(FIRST_SECONDS)


@pytest.mark.parametrize("text", [
    None, "", "cpu0 1 2", "cpu0 a b c d e f g h i j", "\xe9",
    "cpu0 0 0 0 0 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0 0 0",  # a sandbox that counts nothing
    "cpu0 0 0 0 9 0 0 0 0 0 0",  # a container that shows fewer
])  # fmt: skip
def test_nothing_is_known_where_the_files_are_others(machine, text):
    for _ in range(2):
        if text is None:
            machine.stat.unlink(missing_ok=True)
        else:
            machine.stat.write_bytes(text.encode("latin-1"))
        load = ProcessorLoad()
        machine.now += 1
        assert machine.others(load) is None
        machine.now += 1
        assert machine.others(load, paused=True) is None
    machine.later(user=100)
    machine.others(load)  # the one before is not known
    machine.later(user=100)
    assert machine.others(load) == pytest.approx(1.0)


def test_a_reading_for_which_there_is_no_memory_fails_nothing(machine, monkeypatch):
    load = ProcessorLoad()

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
