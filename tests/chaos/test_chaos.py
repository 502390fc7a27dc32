"""Each instrument at work for a few seconds, and that it tells what it sees."""

from __future__ import annotations

import importlib

import binding
import exits
import pytest
import soak_child
from binding_calls import CALLS
from binding_world import write_files
from instruments import Asked, Ended


@pytest.mark.parametrize(
    ("name", "count", "case"),
    [
        ("exits", 3, None),
        ("binding", 10, None),
        ("pool", None, 3),
        ("soak", 60, None),
        ("shortage", 50, None),
        ("caches", 75, None),
    ],
)
def test_nothing_is_found_in_a_few_cases(name, count, case, tmp_path):
    asked = Asked(seed=3, seconds=60, count=count, case=case, folder=tmp_path)
    told = importlib.import_module(name).run(asked)
    assert told.failures == []
    assert told.done


@pytest.mark.parametrize(
    ("ended", "ending", "wrong"),
    [
        (Ended(0, "", ""), "end", ""),
        (Ended(-11, "", ""), "end", "died of SIGSEGV"),
        (Ended(None, "", ""), "sys.exit", "hung"),
        (Ended(1, "", "Traceback (most …\n  File …\nPlanned"), "exception", ""),
        (Ended(1, "", "Traceback (most …\n  File …\nKeyError"), "exception", "no Planned"),
        (Ended(3, "", "Traceback (most …\n  File …\nPlanned"), "sys.exit", "a traceback"),
        (
            Ended(-2, "", "Exception ignored in: x\nKeyboardInterrupt"),
            "SIGINT",
            "Exception ignored",
        ),
    ],
)
def test_an_exit_is_judged(ended, ending, wrong):
    found = exits.judged(ended, ending)
    assert found.startswith(wrong)
    assert bool(found) == bool(wrong)


def test_growth_is_measured_after_the_warm_up():
    flat = [(number, 100 + (50 if number < 10 else 0)) for number in range(200)]
    assert soak_child.grown(flat, 20)[0] == 0
    leaking = [(number, 100 + number) for number in range(200)]
    assert soak_child.grown(leaking, 20)[0] > 1
    assert soak_child.grown(flat[:25], 20) is None


def test_a_case_is_made_again_from_its_seed_and_number():
    assert binding.make_case(5, 7) == binding.make_case(5, 7)
    assert binding.make_case(5, 7) != binding.make_case(5, 8)


def test_a_failing_case_becomes_as_short_as_it_can_be():
    case = binding.make_case(1, 2)
    needed = case["threads"][0][-1]
    shrunk = binding.Shrinking(lambda case: needed in case["threads"][0]).shrink(case)
    assert (shrunk["begin"], shrunk["threads"]) == ([], [[needed]])
    assert binding.Shrinking(lambda _: False).shrink(case) is None


def test_every_call_can_be_made(tmp_path):
    """The fuzzer does not make bad calls alone: of each kind some are no error."""
    write_files(tmp_path)
    fuzzer = binding.Fuzzer(Asked(seed=0, seconds=0, count=None, case=None, folder=tmp_path))
    begin = [(f, n) for f in ("load_model", "make_context", "make_chain") for n in range(12)]
    quiet = {"begin": begin, "short": False, "interrupted": False, "stack": 0}
    names = sorted(set(CALLS) - {"copy_object", "shorten_memory"})
    cases = [
        {**quiet, "number": number, "threads": [[(name, seed) for seed in range(60)]]}
        for number, name in enumerate(names)
    ]
    answers, death = fuzzer.child(cases, checked=False)
    assert death.ended.status == 0, death.ended.err[-3000:]
    counts = [told["notes"].get(f"{name} done") for name, told in zip(names, answers, strict=True)]
    assert [name for name, count in zip(names, counts, strict=True) if not count] == []
    assert [told["wrong"] for told in answers if told["wrong"]] == []
