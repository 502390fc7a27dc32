from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from dspy import lm15

import pyllama
from adapter import errors
from adapter.engine.lm15_errors import lm15_errors


def pool_full(*, needed):
    return errors.PoolFullError(
        "a", needed=needed, held=5, limit=7, unit="bytes", memory="the pool", holders="'b'"
    )


MAPPED = [
    (errors.ContextTooLongError(10, 5), lm15.ContextLengthError),
    (errors.InvalidParameterError("seed", -1, "0 or more"), lm15.InvalidRequestError),
    (errors.PromptError("no"), lm15.InvalidRequestError),
    (errors.ConfigurationError("no"), lm15.ConfigurationError),
    (errors.InvalidModelNameError("a/b", "no"), lm15.ConfigurationError),
    (errors.ModelNotFoundError("a", Path("a.gguf")), lm15.ConfigurationError),
    (errors.ModelNotLoadedError("a", "load it"), lm15.ConfigurationError),
    (errors.ModelFileError("a", Path("a.gguf"), "no"), lm15.ConfigurationError),
    (errors.ConversionError("no torch"), lm15.ProviderError),
    (errors.ImatrixError("no text"), lm15.ProviderError),
    (errors.ModelDownloadError("a", "no network", ["b"]), lm15.ConfigurationError),
    (errors.ModelChangedError("a", Path("a.gguf")), lm15.ConfigurationError),
    (errors.UnknownModelError("a", ["b"], []), lm15.UnknownModelError),
    (errors.ModelInUseError("a"), lm15.ProviderError),
    (errors.TextTooLongError("texts[0]", 10, 5), lm15.ContextLengthError),
    (pool_full(needed=4), lm15.ServerError),
    (pool_full(needed=9), lm15.ProviderError),
    (errors.TokenBudgetExhaustedError(5, 5), lm15.ProviderError),
    (errors.InferenceError("no"), lm15.ProviderError),
    (errors.ResourceError("no"), lm15.ProviderError),
    (errors.TransientError("no"), lm15.ServerError),
    (errors.RateLimitExceededError(1.0, 5), lm15.RateLimitError),
    (errors.QueueFullError(9, 1.0), lm15.RateLimitError),
    (errors.RequestTimeoutError(2.0, 7), lm15.TimeoutError),
    (errors.RequestCancelledError(), lm15.ProviderError),
    (pyllama.ContextError("no"), lm15.ProviderError),
    (RecursionError("no"), lm15.InvalidRequestError),
    (pyllama.ChatProcessError("killed"), lm15.ServerError),
    (errors.TemplateAbortedError("it took too long"), lm15.InvalidRequestError),
    (pyllama.NativeMemoryError("no"), lm15.ServerError),
    (MemoryError("no"), lm15.ServerError),
    (KeyError("mine"), lm15.ProviderError),
]


@pytest.mark.parametrize(("error", "mapped"), MAPPED, ids=lambda value: type(value).__name__)
def test_each_error_arrives_as_dspy_knows_it(error, mapped):
    with pytest.raises(lm15.LM15Error) as caught, lm15_errors():
        raise error
    assert type(caught.value) is mapped
    assert str(error) in str(caught.value)
    assert caught.value.__cause__ is error


def test_every_error_of_the_package_has_its_row():
    tested = {type(error) for error, _ in MAPPED}
    mine = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.LlamaCppError)
    }
    assert mine - tested == {errors.LlamaCppError}


@pytest.mark.parametrize(("wait", "told"), [(0.1, 0.5), (3.0, 3.0), (59.0, 8.0)])
def test_dspy_learns_how_long_to_wait(wait, told):
    with (
        pytest.raises(lm15.RateLimitError) as caught,
        lm15_errors(initial_backoff=0.5, max_backoff=8),
    ):
        raise errors.RateLimitExceededError(wait, 5)
    assert caught.value.retry_after == told


@pytest.mark.parametrize(
    "kind", [KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, lm15.UnsupportedFeatureError]
)
def test_what_is_no_error_passes_and_what_is_lm15s_already(kind):
    with pytest.raises(kind), lm15_errors():
        raise kind
