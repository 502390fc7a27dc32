"""A fuzzer of pyllama's public API: sequences of calls from several threads, in children.

What must hold: no call ends the process or hangs, only documented exceptions leave, and a context
made afterwards computes what it always did. A batch of cases shares a child. One that fails is
repeated alone, and made as short as it can be.
"""

from __future__ import annotations

import itertools
import json
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import binding_more_calls  # noqa: F401  (registers its calls)
from binding_calls import WEIGHTS
from binding_world import write_files
from instruments import (
    Asked,
    Ended,
    Failure,
    Told,
    checking_allocator,
    command,
    environment,
    is_ended_by_others,
    run_child,
    side_by_side,
)

BATCH = 50
SHRINK_SECONDS = 60
Case = dict[str, Any]


def make_case(seed: int, number: int) -> Case:
    """The calls of a case, which depend on nothing else."""
    draw = random.Random(f"{seed}/{number}")
    names, weights = zip(*sorted(WEIGHTS.items()), strict=True)

    def calls(count: int) -> list[tuple[str, int]]:
        drawn = draw.choices(names, weights, k=count)
        return [(name, draw.randrange(2**32)) for name in drawn]

    begin = ["load_model", "make_context", "make_chain", "decode_next"]
    n_threads = draw.choice([1, 1, 1, 2, 2, 3, 4])
    return {
        "number": number,
        "begin": [(name, draw.randrange(2**32)) for name in begin if draw.random() < 0.95],
        "threads": [calls(draw.randint(5, 40) // n_threads + 1) for _ in range(n_threads)],
        "short": draw.random() < 0.08,
        "interrupted": draw.random() < 0.1,
        "stack": draw.choice([0, 0, 768]),
    }


def run(asked: Asked) -> Told:
    write_files(asked.folder)
    fuzzer = Fuzzer(asked)
    told = side_by_side(asked, fuzzer.run, BATCH)
    told.notes = fuzzer.notes
    return told


class Fuzzer:
    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._lock = threading.Lock()
        self._seen: set[str] = set()
        self.notes: Counter[str] = Counter()

    def run(self, numbers: range) -> list[Failure]:
        """Run a batch; after a death the rest of it, in another child."""
        failures = []
        # Half of the batches look for damage to the heap.
        checked = numbers[0] // BATCH % 2 == 1
        left = [make_case(self._asked.seed, number) for number in numbers]
        while left:
            answers, ended = self.child(left, checked)
            for answer in answers:
                with self._lock:
                    self.notes.update(answer["notes"])
                failures += [
                    self._failure(left[0], wrong, "", checked) for wrong in answer["wrong"]
                ]
                del left[0]
            if left:
                case = left.pop(0)
                how = _how(ended)
                if case["short"] and is_ended_by_others(how, ended.ended.err):
                    with self._lock:
                        self.notes["ended by others, without memory"] += 1
                    continue
                what = f"{how} in {ended.doing}"
                said = f"{ended.strays[-3000:]}\n{ended.ended.err[-4000:]}"
                failures.append(self._failure(case, what, said, checked))
            elif ended.strays:
                what = "something wrote to stdout"
                failures.append(Failure(numbers[0], what, ended.strays[-3000:]))
        return failures

    def _failure(self, case: Case, what: str, detail: str, checked: bool) -> Failure:
        with self._lock:
            seen = what in self._seen
            self._seen.add(what)
        if not seen:
            shrunk = Shrinking(lambda case: self._fails(case, checked)).shrink(case)
            if shrunk is None:
                detail += "\nIt did not fail when it was repeated alone."
            else:
                _, traced = self.child([shrunk], checked, PYLLAMA_CHAOS_TRACE="1")
                detail = f"{json.dumps(shrunk)}\n{traced.ended.err[-6000:]}"
        return Failure(case["number"], what, detail)

    def _fails(self, case: Case, checked: bool) -> bool:
        answers, _ = self.child([case], checked)
        return not answers or bool(answers[0]["wrong"])

    def child(self, cases: list[Case], checked: bool, **env: str) -> tuple[list[Any], Death]:
        """Run cases in a child; what it said of each, and how it ended."""
        with tempfile.NamedTemporaryFile(dir=self._asked.folder) as log:
            ended = run_child(
                command("binding_child.py", self._asked.folder, log.name),
                60 + 120 * len(cases),
                stdin="".join(json.dumps(case) + "\n" for case in cases),
                env=environment(**(checking_allocator() if checked else {}), **env),
            )
            answers, strays = _answers(ended.out)
            return answers, Death(ended, _last_calls(log.name), strays)


class Death:
    """How a child ended, the calls that its threads were in, and what else it wrote to stdout."""

    def __init__(self, ended: Ended, doing: str, strays: str) -> None:
        self.ended = ended
        self.doing = doing
        self.strays = strays


def _answers(out: str) -> tuple[list[Any], str]:
    """What a child said of its cases, and the lines that something else wrote to its stdout."""
    answers, strays = [], []
    for line in out.splitlines():
        try:
            answers.append(json.loads(line))
        except json.JSONDecodeError:
            strays.append(line)
    return answers, "\n".join(strays)


def _how(death: Death) -> str:
    # A case that takes too long has the child end with 1, after a traceback of all threads.
    if "Timeout (" in death.ended.err:
        return "hung"
    return death.ended.words


def _last_calls(log: str) -> str:
    """The last call that each thread of the last case began."""
    lines = [line.split() for line in Path(log).read_text().splitlines()]
    begun = {thread: name for case, thread, _, name in lines if case == lines[-1][0]}
    return ", ".join(sorted(name for name in begun.values() if name != "end"))


class Shrinking:
    """Leaves calls out of a case for as long as it still fails."""

    def __init__(self, fails: Any) -> None:
        self._fails = fails
        self._end = time.monotonic() + SHRINK_SECONDS

    def shrink(self, case: Case) -> Case | None:
        """The case with what it needs alone; None for one that does not fail every time."""
        if not all(self._fails(case) for _ in range(2)):
            return None
        size = max(1, _n_calls(case) // 2)
        while time.monotonic() < self._end:
            shorter = next(filter(self._fails, self._shorter(case, size)), None)
            if shorter is not None:
                case = shorter
            elif size == 1:
                break
            else:
                size //= 2
        return case

    def _shorter(self, case: Case, size: int) -> Iterator[Case]:
        for first in range(0, _n_calls(case), size):
            if time.monotonic() > self._end:
                return
            numbers = itertools.count()
            kept = [
                [call for call in calls if not first <= next(numbers) < first + size]
                for calls in (case["begin"], *case["threads"])
            ]
            threads = [calls for calls in kept[2:] if calls]
            yield {**case, "begin": kept[0], "threads": [kept[1], *threads]}


def _n_calls(case: Case) -> int:
    return len(case["begin"]) + sum(map(len, case["threads"]))
