"""What pyllama raises, as this package's own errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyllama
from adapter.errors import BackendError, InferenceError, TokenizationError


@contextmanager
def translated() -> Iterator[None]:
    """Raise what pyllama raises as this package's own errors."""
    try:
        yield
    except pyllama.TokenizationError as error:
        raise TokenizationError(str(error)) from error
    except (pyllama.ContextError, pyllama.BackendError, pyllama.NativeMemoryError) as error:
        raise BackendError(str(error)) from error
    except pyllama.LlamaError as error:
        raise InferenceError(str(error)) from error
