from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest

import pyllama
from adapter import errors

EXAMPLES = [
    (errors.ConfigurationError("does not fit"), ValueError, {}),
    (
        errors.InvalidParameterError("top_p", 3, "a number from 0 to 1"),
        ValueError,
        {"name": "top_p", "value": 3, "allowed": "a number from 0 to 1"},
    ),
    (
        errors.InvalidModelNameError("../x", "leaves the folder"),
        ValueError,
        {"name": "../x", "reason": "leaves the folder"},
    ),
    (
        errors.ModelNotFoundError("tiny", Path("models/tiny.gguf")),
        FileNotFoundError,
        {"name": "tiny", "path": Path("models/tiny.gguf")},
    ),
    (
        errors.ModelFileError("tiny", Path("models/tiny.gguf"), "no GGUF file"),
        RuntimeError,
        {"name": "tiny", "path": Path("models/tiny.gguf"), "reason": "no GGUF file"},
    ),
    (
        errors.ModelChangedError("tiny", Path("models/tiny.gguf")),
        RuntimeError,
        {"name": "tiny", "path": Path("models/tiny.gguf")},
    ),
    (errors.ModelInUseError("tiny"), RuntimeError, {"name": "tiny"}),
    (
        errors.ModelNotLoadedError("tiny", "load it first"),
        LookupError,
        {"name": "tiny", "remedy": "load it first"},
    ),
    (errors.ContextTooLongError(5000, 4096), ValueError, {"actual": 5000, "max": 4096}),
    (
        errors.TextTooLongError("texts[3]", 600, 512),
        errors.ContextTooLongError,
        {"argument": "texts[3]", "actual": 600, "max": 512},
    ),
    (errors.PromptError("no tokens"), ValueError, {}),
    (errors.InferenceError("decoding failed"), RuntimeError, {}),
    (errors.ResourceError("out of memory"), RuntimeError, {}),
    (errors.TransientError("no thread"), errors.ResourceError, {}),
    (
        errors.PoolFullError(
            "tiny", needed=5, held=3, limit=7, unit="bytes", memory="the pool", holders="none"
        ),
        MemoryError,
        {"name": "tiny", "needed": 5, "held": 3, "limit": 7, "unit": "bytes", "memory": "the pool"},
    ),
]


@pytest.mark.parametrize(("error", "builtin", "data"), EXAMPLES)
def test_an_error_is_ours_and_a_builtin_and_keeps_its_data(error, builtin, data):
    assert isinstance(error, errors.LlamaCppError)
    assert isinstance(error, builtin)
    assert {name: getattr(error, name) for name in data} == data
    for value in data.values():
        assert str(value) in str(error)


@pytest.mark.parametrize("error", [example[0] for example in EXAMPLES])
@pytest.mark.parametrize("duplicate", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_an_error_survives_copying_and_pickling(error, duplicate):
    twin = duplicate(error)
    assert type(twin) is type(error)
    assert str(twin) == str(error)
    assert vars(twin) == vars(error)


def test_every_class_of_the_drawing_exists_and_no_other():
    drawn = {word for word in errors.__doc__.split() if word.endswith("Error")}
    builtins = {"(ValueError)", "(RuntimeError)", "(LookupError)", "(FileNotFoundError)"}
    assert not drawn & builtins
    defined = {
        value.__name__
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.LlamaCppError)
    }
    assert drawn == defined


def test_no_error_is_called_like_one_of_the_bindings():
    binding = {value.__name__ for value in vars(pyllama.errors).values() if isinstance(value, type)}
    own = [value for value in vars(errors).values() if isinstance(value, type)]
    assert not binding & {value.__name__ for value in own if value.__module__ == errors.__name__}
