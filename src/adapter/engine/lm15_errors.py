"""Translates this package's errors into the lm15 errors that DSPy understands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dspy import lm15

import pyllama
from adapter.errors import (
    ConfigurationError,
    ContextTooLongError,
    InvalidModelNameError,
    InvalidParameterError,
    LlamaCppError,
    ModelChangedError,
    ModelDownloadError,
    ModelFileError,
    ModelNotFoundError,
    ModelNotLoadedError,
    PoolFullError,
    PromptError,
    QueueFullError,
    RateLimitExceededError,
    RequestTimeoutError,
    TransientError,
    UnknownModelError,
)

PROVIDER = "llamacpp"


@contextmanager
def lm15_errors(*, initial_backoff: float = 0.0, max_backoff: float = 60.0) -> Iterator[None]:
    """Turn every error into one of lm15's. Ctrl-C and the like pass.

    DSPy retries only what may pass by itself: too many requests; a pool whose models are all in
    use; a killed process of a chat template; a machine that lacks threads, descriptors or memory.
    Any other request would fail again.

    Args:
        initial_backoff: the least that DSPy is told to wait after too many requests, in seconds.
        max_backoff: the most.
    """
    try:
        yield
    except (QueueFullError, RateLimitExceededError) as error:
        wait = min(max(error.retry_after, initial_backoff), max_backoff)
        raise lm15.RateLimitError(str(error), provider=PROVIDER, retry_after=wait) from error
    except RequestTimeoutError as error:
        raise lm15.TimeoutError(str(error), provider=PROVIDER) from error
    except ContextTooLongError as error:
        raise lm15.ContextLengthError(str(error), provider=PROVIDER) from error
    except (InvalidParameterError, PromptError) as error:
        raise lm15.InvalidRequestError(str(error), provider=PROVIDER) from error
    except (
        ConfigurationError,
        InvalidModelNameError,
        ModelChangedError,
        ModelDownloadError,
        ModelFileError,
        ModelNotFoundError,
        ModelNotLoadedError,
    ) as error:
        raise lm15.ConfigurationError(str(error), provider=PROVIDER) from error
    except UnknownModelError as error:
        raise lm15.UnknownModelError(str(error), provider=PROVIDER) from error
    except PoolFullError as error:
        fails_again = error.needed > error.limit
        kind = lm15.ProviderError if fails_again else lm15.ServerError
        raise kind(str(error), provider=PROVIDER) from error
    except (pyllama.ChatProcessError, pyllama.NativeMemoryError, TransientError) as error:
        raise lm15.ServerError(str(error), provider=PROVIDER) from error
    except (LlamaCppError, pyllama.LlamaError) as error:
        raise lm15.ProviderError(str(error), provider=PROVIDER) from error
    except RecursionError as error:
        raise lm15.InvalidRequestError(
            f"the request nests too deep ({error}); flatten its schema, messages or metadata",
            provider=PROVIDER,
        ) from error
    except MemoryError as error:
        raise lm15.ServerError(
            f"out of memory: {error!r}; ask for less at once", provider=PROVIDER
        ) from error
    except lm15.LM15Error:
        raise
    except Exception as error:
        raise lm15.ProviderError(
            f"the engine failed: {type(error).__name__}: {error}", provider=PROVIDER
        ) from error
