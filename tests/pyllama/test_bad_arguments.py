"""Whatever a public function is given: a Python exception that names it, or it works."""

from __future__ import annotations

import inspect
import random
import threading

import pytest
from bad_arguments import NOT_FOR_USERS, OPTIONS, World, parameters, public_callables
from bad_arguments_table import REFUSED, ROWS

import pyllama

# An exception of pyllama's says what is wrong in its own words; these name the argument.
PLAIN = (TypeError, ValueError)


@pytest.fixture
def world(tmp_path, write_tiny_model, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where paths such as "nonsense" lead
    made = World(tmp_path, write_tiny_model)
    yield made
    made.close()


def test_every_public_callable_has_a_row():
    """A new name needs a row in bad_arguments_table."""
    assert set(public_callables()) - NOT_FOR_USERS == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_what_it_is_meant_for(world, name):
    """The table is right: only one argument at a time is wrong below."""
    if name in REFUSED:
        with pytest.raises(REFUSED[name]):
            _drop(_valid_call(world, name))
    else:
        _drop(_valid_call(world, name))


@pytest.mark.parametrize("name", ROWS)
def test_hostile_values(world, name):
    try:
        function, arguments = ROWS[name](world)
    except REFUSED.get(name, ()):
        return
    wrong = []
    known = parameters(name, function)
    for parameter in known:
        for what, value in world.hostile():
            error = _raised_by(function, {**arguments, parameter: value})
            # A foreign object may be fine by itself, and another argument not fit it.
            named = any(argument in str(error) for argument in known)
            fine = (
                isinstance(error, (type(None), pyllama.LlamaError, IndexError, OSError))
                or (isinstance(error, ZeroDivisionError) and what == "what raises")
                or (isinstance(error, PLAIN) and (named or _is_flag(name, function, parameter)))
            )
            if not fine:
                wrong.append(f"{parameter}={what}: {error!r:.200}")
    assert not wrong


def _raised_by(function, arguments):
    try:
        _drop(function(**arguments))
    except BaseException as error:
        return error


def _drop(result):
    if hasattr(result, "close"):
        result.close()


def _valid_call(world, name):
    function, arguments = ROWS[name](world)
    return function(**arguments)


def _is_flag(name, function, parameter):
    """Python itself says that an array is neither true nor false."""
    known = {key: known.annotation for key, known in inspect.signature(function).parameters.items()}
    if name in OPTIONS:
        known |= inspect.get_annotations(OPTIONS[name])
    return "bool" in str(known[parameter]) and "Mapping" not in str(known[parameter])


CLOSED = {"Model": "model", "Context": "context", "SamplerChain": "chain"}
CLOSED.update({"Vocab": "model", "Memory": "context", "State": "context"})
MAKE_THEIR_OWN = {"warmup", "embeddings_seq", "add"}  # context or chain, in their rows
WORKS_WHEN_CLOSED = {"close", "cancel"}


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in ROWS
        if name.partition(".")[0] in CLOSED
        and not name.startswith("Model.from_")
        and name.partition(".")[2] not in ("", *MAKE_THEIR_OWN, *WORKS_WHEN_CLOSED)
    ],
)
def test_after_close(world, name):
    function, arguments = ROWS[name](world)
    getattr(world, CLOSED[name.partition(".")[0]]).close()
    with pytest.raises((pyllama.ClosedError, REFUSED.get(name, pyllama.ClosedError))):
        function(**arguments)


CLOSING = {name for name in ROWS if name.endswith(".close")}
ALONE = {"quantize", "memory_use", "memory_fit", "RpcServer", "State.set_data", "State.load_file"}


def test_from_several_threads_at_once(world):
    """In whatever order they come: each works, or raises an exception of its kind."""
    unexpected = []
    names = sorted(set(ROWS) - CLOSING - ALONE)
    prepared = {name: ROWS[name](world) for name in names}
    start = threading.Barrier(4)

    def work(seed):
        order = names * 3
        random.Random(seed).shuffle(order)
        start.wait()
        for name in order:
            function, arguments = prepared[name]
            try:
                _drop(function(**arguments))
            except (pyllama.LlamaError, IndexError, *PLAIN):
                pass
            except BaseException as error:
                unexpected.append((name, repr(error)))

    threads = [threading.Thread(target=work, args=[seed]) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not unexpected
