from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from adapter.generation.stop import StopMatcher

TEXTS = st.text(alphabet="abX\n é", max_size=30)
STOPS = st.lists(st.text(alphabet="abX\n", min_size=1, max_size=4), max_size=3).map(tuple)


def matched(text: str, stops: tuple[str, ...], borders: list[int]) -> tuple[str, bool]:
    """What a matcher shows of a text that comes in pieces cut at the borders."""
    matcher = StopMatcher(stops)
    cuts = [0, *sorted(border % (len(text) + 1) for border in borders), len(text)]
    shown = "".join(matcher.push(text[a:b]) for a, b in itertools.pairwise(cuts))
    return shown + matcher.flush(), matcher.stopped


@given(TEXTS, STOPS, st.lists(st.integers(min_value=0), max_size=8))
def test_where_the_pieces_end_changes_nothing(text, stops, borders):
    ends = [text.index(stop) for stop in stops if stop in text]
    shown, stopped = matched(text, stops, borders)

    assert stopped == bool(ends)
    if not ends:
        assert shown == text
    elif borders == []:
        assert shown == text[: min(ends)]
    else:
        # Cut into pieces, the stop that is complete first wins.
        assert text.startswith(shown)
        assert not any(stop in shown for stop in stops)


def test_a_stop_that_spans_pieces_is_kept_back():
    matcher = StopMatcher(("\nQ:",))
    assert matcher.push("Paris.\n") == "Paris."
    assert matcher.push("Q") == ""
    assert matcher.push(": next") == ""
    assert matcher.stopped
    assert matcher.flush() == ""


def test_what_only_began_like_a_stop_is_shown():
    matcher = StopMatcher(("\nQ:",))
    assert matcher.push("a\nQ") == "a"
    assert matcher.push("uick") == "\nQuick"
    assert not matcher.stopped


def test_the_end_shows_what_was_kept_back():
    matcher = StopMatcher(("###",))
    assert matcher.push("a##") == "a"
    assert matcher.flush() == "##"


def test_without_stops_everything_passes_at_once():
    matcher = StopMatcher(())
    assert matcher.push("anything") == "anything"
    assert not matcher.stopped


def test_a_turns_stop_ends_nothing_that_is_no_whole_answer():
    matcher = StopMatcher(("<end>",), ("\n\nUser:",), may_end=False)
    shown = matcher.push("city: Rome\n\nUser: me\n", may_end=False)
    shown += matcher.push("mood:", may_end=False)
    assert shown == "city: Rome\n\nUser: me\nmood:"
    assert matcher.push(" fine\n\nUs") == " fine"
    assert matcher.push("er: hello") == ""
    assert matcher.stopped


def test_what_stands_before_a_turns_stop_is_a_whole_answer():
    matcher = StopMatcher((), ("User:",), may_end=False)
    assert matcher.push("User:", may_end=False) == "User:"
    assert matcher.push("1", may_end=True) == "1"
    assert matcher.push("Us", may_end=False) == ""
    assert matcher.push("er:", may_end=False) == ""
    assert matcher.stopped


def test_a_stop_of_ones_own_ends_any_text():
    matcher = StopMatcher(("User:",), ("User:",), may_end=False)
    assert matcher.push("a User: b", may_end=False) == "a "
    assert matcher.stopped
