"""Names such as hf:owner/repo:Q4_K_M."""

from __future__ import annotations

import re
from dataclasses import dataclass

from adapter.errors import InvalidModelNameError

PREFIX = "hf:"

_PART = r"(?=.{1,96}(?:/|\Z))[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?"
_REPO = re.compile(rf"{_PART}/{_PART}", re.ASCII)


@dataclass(frozen=True)
class HubName:
    """A model of a repository.

    Attributes:
        repo: the repository, "owner/repo".
        tag: a quantization, such as "Q4_K_M", or the path of a file in the repository; None for the
            only model there.
    """

    repo: str
    tag: str | None = None

    @classmethod
    def parse(cls, name: str) -> HubName:
        """Read owner/repo or owner/repo:tag, with or without "hf:" before it.

        Raises:
            InvalidModelNameError: the name has another form.
        """
        repo, colon, tag = name.removeprefix(PREFIX).partition(":")
        if not is_repo(repo):
            raise InvalidModelNameError(name, "has no owner/repo of a hub")
        if colon and (not tag.strip() or not tag.isprintable() or len(tag) > 512):
            raise InvalidModelNameError(name, "has no quantization or file name behind the colon")
        return cls(repo, tag or None)

    @property
    def owner(self) -> str:
        return self.repo.partition("/")[0]

    def __str__(self) -> str:
        return f"{PREFIX}{self.repo}" + (f":{self.tag}" if self.tag else "")


def is_repo(text: str) -> bool:
    """Whether a text has the form owner/repo of hubs."""
    return _REPO.fullmatch(text) is not None and "--" not in text and ".." not in text
