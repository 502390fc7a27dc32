"""The names that engines answer to. Each says all that decides an answer.

DSPy's cache, and programs that were saved, know a model by its name alone. So two engines have the
same name only where they give the same answers.
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

    The digest stands last: a name there, such as "o1", would be taken for OpenAI's.
    """
    return _name(loaded, config, loaded.computation)


def portable_name(loaded: LoadedModel, config: LlamaCppConfig) -> str:
    """Name the same without what computes it: a saved program goes on with it on other machines."""
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
    """Refuse a name that is none of an engine's own, which it gives no other answers to.

    An own name may end in ``@`` and a number, which tells apart what was asked in different spans
    of time. `others` are the names of the other engines in this process.

    Raises UnknownModelError.
    """
    name, _, span = asked.rpartition("@")
    own = list(names)
    if asked not in own and not (name in own and span.isdecimal()):
        raise UnknownModelError(asked, own, sorted(set(others) - set(own)))
