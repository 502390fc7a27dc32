"""Candidates: what they hold, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from pyllama import Candidates

NAN, INF = float("nan"), float("inf")


def test_logits_alone_are_the_whole_vocabulary():
    candidates = Candidates([0.5, -1.0, 2.0])
    assert candidates.id.tolist() == [0, 1, 2]
    assert candidates.logit.tolist() == [0.5, -1.0, 2.0]
    assert candidates.p.tolist() == [0, 0, 0]
    assert candidates.selected is None
    assert candidates.token is None
    assert len(candidates) == 3
    assert candidates.id.dtype == np.int32
    assert candidates.logit.dtype == candidates.p.dtype == np.float32


def test_ids_of_ones_own():
    candidates = Candidates([1.0, -INF], ids=[7, 2**31 - 1])
    assert candidates.id.tolist() == [7, 2**31 - 1]
    assert candidates.logit.tolist() == [1.0, -INF]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_logits_of_any_number(dtype):
    assert Candidates(np.array([1, 2], dtype=dtype)).logit.tolist() == [1, 2]


def test_they_cannot_be_changed_and_do_not_follow_their_source():
    logits = np.ones(3)
    candidates = Candidates(logits)
    logits[:] = 5
    assert candidates.logit.tolist() == [1, 1, 1]
    for array in (candidates.id, candidates.logit, candidates.p):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_new_ones_are_made_from_them():
    candidates = Candidates([3.0, 2.0, 1.0], ids=[10, 20, 30])
    assert candidates.with_logits([0.0, 1.0, 2.0]).logit.tolist() == [0, 1, 2]
    assert candidates.with_logits([0.0, 1.0, 2.0]).id.tolist() == [10, 20, 30]
    assert candidates.keep([True, False, True]).id.tolist() == [10, 30]
    assert candidates.keep([2, 0]).id.tolist() == [30, 10]
    chosen = candidates.select(1)
    assert (chosen.selected, chosen.token) == (1, 20)
    assert candidates.selected is None
    assert "3, token 20 selected" in repr(chosen)
    assert repr(candidates) == "<pyllama.Candidates: 3>"


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        (([],), ValueError, "logits"),
        (([1.0, NAN],), ValueError, "logits"),
        (([1.0, INF],), ValueError, "logits"),
        (([1e300],), ValueError, "logits"),
        (([[1.0]],), TypeError, "logits"),
        (([[1.0], [1.0, 2.0]],), TypeError, "logits"),
        ((["a"],), TypeError, "logits"),
        (([True],), TypeError, "logits"),
        ((None,), TypeError, "logits"),
        ((1.0,), TypeError, "logits"),
        (([1.0], [1, 2]), ValueError, "ids"),
        (([1.0], []), ValueError, "ids"),
        (([1.0], [-1]), ValueError, "ids"),
        (([1.0], [2**31]), ValueError, "ids"),
        (([1.0], [2**63]), ValueError, "ids"),
        (([1.0], [1.5]), TypeError, "ids"),
        (([1.0], ["a"]), TypeError, "ids"),
    ],
)
def test_what_is_refused(arguments, error, name):
    with pytest.raises(error, match=name):
        Candidates(*arguments)


@pytest.mark.parametrize("which", [[False, False], np.array([], dtype=bool)])
def test_one_must_be_left(which):
    candidates = Candidates([1.0] * max(len(which), 1))
    with pytest.raises((ValueError, IndexError)):
        candidates.keep(which)


@pytest.mark.parametrize("which", [[[0]], ["a"], [0.5], 0])
def test_what_to_keep_is_checked(which):
    with pytest.raises(TypeError, match="which"):
        Candidates([1.0]).keep(which)


@pytest.mark.parametrize(("index", "error"), [(-1, ValueError), (1, ValueError), ("a", TypeError)])
def test_what_to_select_is_checked(index, error):
    with pytest.raises(error, match="index"):
        Candidates([1.0]).select(index)
