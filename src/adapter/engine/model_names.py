"""The names that engines answer to. A name contains everything that decides an answer.

DSPy's cache and saved programs know a model only by its name. So two engines have the same name
only if they give the same answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from adapter.engine.config import LlamaCppConfig
from adapter.errors import UnknownModelError
from adapter.generation.settings import settings_of

if TYPE_CHECKING:
    from adapter.models.loaded import LoadedModel


def engine_name(loaded: LoadedModel, config: LlamaCppConfig) -> str:
    """Name a model with a config: by the file's content, what computes it, and the settings.

    The digest comes last, since DSPy would take a name such as "o1" there for OpenAI's.
    """
    return _name(loaded, config, loaded.computation)


def portable_name(loaded: LoadedModel, config: LlamaCppConfig) -> str:
    """The name without what computes the model, by which a saved program finds it on another
    machine.
    """
    return _name(loaded, config, ())


def _name(loaded: LoadedModel, config: LlamaCppConfig, computation: tuple[str, ...]) -> str:
    decisive = {
        name: value
        for name, each in settings_of(type(config)).items()
        if each.is_named(value := getattr(config, name))
    }
    decisive |= {
        "model": loaded.fingerprint,
        "context": loaded.context_length,
        "computation": computation,
    }
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    return f"llamacpp/{loaded.name}/{digest[:16]}"


def require_known(asked: str, names: Iterable[str], others: Iterable[str]) -> None:
    """Refuse a name that is not one of the engine's own.

    An engine's name may end in ``@`` and a number, which stands for a period of time.

    Args:
        others: the names of the other engines in this process.

    Raises:
        UnknownModelError: the name is not one of `own`.
    """
    name, _, span = asked.rpartition("@")
    own = list(names)
    if asked not in own and not (name in own and span.isdecimal()):
        raise UnknownModelError(asked, own, sorted(set(others) - set(own)))
