"""Chat templates that the user gives in place of those in the model files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import pyllama
from adapter.errors import ConfigurationError, TransientError
from adapter.models.hub.cache import template_beside
from adapter.models.local_path import local_path

Template: TypeAlias = "str | os.PathLike[str]"


class ChatTemplates:
    """The templates that a pool's models are loaded with.

    Args:
        given: Jinja as text, or the path of a file with it; either for all models, or in a mapping
            by their names. A str with a brace or a line break is text.
        find: finds a model's file by its name.

    Raises:
        ConfigurationError: a template that cannot be read or does not parse, or two for one model.
    """

    def __init__(
        self, given: Template | Mapping[str, Template] | None, find: Callable[[str], Path]
    ) -> None:
        self._for_all: str | None = None
        self._sources: dict[Path, str] = {}
        if isinstance(given, Mapping):
            for name, template in given.items():
                path, source = find(name), _source(template)
                if self._sources.setdefault(path, source) != source:
                    raise ConfigurationError(
                        f"chat_template has two templates for one model: {name!r} is another name "
                        f"of {path.name}"
                    )
        elif given is not None:
            self._for_all = _source(given)

    def source_for(self, path: Path) -> str | None:
        """The template for the model in a file; None for the file's own."""
        return self._for_all or self._sources.get(path)


def _source(template: Template) -> str:
    if isinstance(template, str) and any(mark in template for mark in "{}\n"):
        source, where = template, "chat_template"
    else:
        source, where = _read(template), f"the chat template in {os.fspath(template)!r}"
    try:
        pyllama.ChatTemplate(source=source, isolated=True)
    except pyllama.ChatProcessError as error:
        raise TransientError(f"{where} cannot be read at the moment: {error}") from error
    except pyllama.ChatTemplateError as error:
        raise ConfigurationError(f"{where} cannot be used: {error}") from error
    return source


def of_the_hub(path: Path) -> str | None:
    """The template beside a hub's model file that has none of its own.

    Raises:
        ConfigurationError: it cannot be read.
    """
    beside = template_beside(path)
    return None if beside is None else _read(beside)


_MAX_BYTES = 2**20


def _read(path: Template) -> str:
    try:
        with local_path(path).open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ConfigurationError(f"{path} is no chat template: it has more than 1 MiB")
        return data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError, TypeError, ValueError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(
            f"chat_template must be Jinja, or the path of a file that holds it; {path!r} cannot be "
            f"read: {error}"
        ) from error
