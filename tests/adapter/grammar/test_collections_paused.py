"""Grammars are made without collections, and these go on afterwards, whatever happened."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from adapter.grammar.collections_paused import collections_paused
from adapter.grammar.schema.json_schema import json_schema_grammar


@pytest.fixture
def collecting():
    gc.enable()
    yield
    gc.enable()


@collections_paused
def is_collecting() -> bool:
    return gc.isenabled()


@pytest.mark.usefixtures("collecting")
def test_no_collection_runs_while_a_grammar_is_made():
    seen = []
    gc.callbacks.append(lambda phase, _: seen.append(phase))
    try:
        gc.collect()
        seen.clear()
        properties = ",".join(f'"k{i}": {{"type": "string", "minLength": {i}}}' for i in range(60))
        json_schema_grammar(f'{{"type": "object", "properties": {{{properties}}}}}')
    finally:
        gc.callbacks.pop()
    assert seen == []
    assert gc.isenabled()


@pytest.mark.usefixtures("collecting")
def test_collections_go_on_after_an_error():
    @collections_paused
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert gc.isenabled()
    assert not is_collecting()


def test_who_collects_nothing_is_left_alone():
    gc.disable()
    try:
        assert not is_collecting()
        assert not gc.isenabled()
    finally:
        gc.enable()


@contextmanager
def another_thread_inside() -> Iterator[Callable[[], None]]:
    """Have another thread be in such a function. What is given has it come out."""
    inside, release = threading.Event(), threading.Event()

    @collections_paused
    def wait() -> None:
        inside.set()
        release.wait(10)

    thread = threading.Thread(target=wait)

    def come_out() -> None:
        release.set()
        thread.join(10)

    thread.start()
    inside.wait(10)
    try:
        yield come_out
    finally:
        come_out()


@pytest.mark.usefixtures("collecting")
def test_threads_do_not_prolong_the_pause():
    with another_thread_inside() as come_out:

        @collections_paused
        def end_the_first() -> bool:
            come_out()
            return gc.isenabled()

        assert end_the_first()


@pytest.mark.usefixtures("collecting")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork() here")
def test_a_child_collects_though_its_parent_paused():
    with another_thread_inside():
        child = os.fork()
        if child == 0:
            os._exit(0 if gc.isenabled() and not is_collecting() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
