"""Some of the cases of tests/finished_answers.py."""

from __future__ import annotations

from finished_answers import Trial, run


def test_random_answers_are_complete_whatever_the_budget(tiny):
    trial = Trial(tiny)
    try:
        run(trial, 16)
    finally:
        trial.close()
    assert trial.counts.total() >= 8
    assert any("shortened" in outcome for outcome in trial.counts)
