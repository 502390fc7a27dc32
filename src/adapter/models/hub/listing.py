"""A hub's listing of a repository, and the errors of asking for it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from adapter.errors import ModelDownloadError
from adapter.models.hub.choice import is_safe
from adapter.models.hub.names import HubName

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

_SHA1 = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_FILES = 100_000
_TIMEOUT = 30.0
_ERRNO = re.compile(r"\[Errno -?\d+\] ")


@dataclass(frozen=True)
class HubFile:
    """A file of a repository.

    Attributes:
        path: inside the repository, with /.
        size: bytes.
        digest: SHA-256 in hexadecimal; for a small file that of git, which is a SHA-1.
    """

    path: str
    size: int
    digest: str


@dataclass(frozen=True)
class Listing:
    """The files of a repository at one commit, by their paths."""

    repo: str
    commit: str
    files: Mapping[str, HubFile]


def list_repository(name: HubName) -> Listing:
    """Ask the hub. HF_ENDPOINT, the token and offline mode are huggingface_hub's own.

    Files without a size or a digest are left out, and those whose path leads outside.

    Raises:
        ModelDownloadError: the message says what to do.
    """
    from huggingface_hub import HfApi, constants

    with translated(name):
        try:
            info = HfApi(library_name="pyllama").model_info(
                name.repo, files_metadata=True, timeout=_TIMEOUT
            )
            return _checked(name, info)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ModelDownloadError(
                str(name),
                f"what {constants.ENDPOINT} answered is no listing of a repository "
                f"({one_line(error)}): check HF_ENDPOINT",
            ) from error


def _checked(name: HubName, info: ModelInfo) -> Listing:
    commit, siblings = info.sha, info.siblings
    if not isinstance(commit, str) or not _SHA1.fullmatch(commit):
        raise ValueError(f"its commit is {commit!r:.80}")
    if not isinstance(siblings, list) or len(siblings) > _MAX_FILES:
        raise ValueError("its list of files is missing or too long")
    files = {}
    for sibling in siblings:
        path, size, lfs = sibling.rfilename, sibling.size, sibling.lfs
        digest = lfs.sha256 if lfs is not None else sibling.blob_id
        pattern = _SHA1 if lfs is None else _SHA256
        if (
            isinstance(path, str)
            and is_safe(path)
            and isinstance(size, int)
            and 0 <= size < 2**53
            and isinstance(digest, str)
            and pattern.fullmatch(digest)
        ):
            files[path] = HubFile(path, size, digest)
    return Listing(name.repo, commit, MappingProxyType(files))


@contextmanager
def translated(name: HubName) -> Iterator[None]:
    """Translate huggingface_hub's errors into ModelDownloadErrors that say what to do."""
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelDownloadError(
            str(name),
            f"{name.repo} is gated: accept its terms on its page, and set HF_TOKEN to a token of "
            "that account, or log in once with: hf auth login",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelDownloadError(
            str(name),
            f"there is no {name.repo} on the hub, or it is private: check the spelling, or set "
            "HF_TOKEN",
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise ModelDownloadError(
            str(name),
            "it is not in the cache, and offline mode is on: unset HF_HUB_OFFLINE to download it",
        ) from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "no status")
        raise ModelDownloadError(
            str(name), f"the hub answered {status}: {one_line(error)}"
        ) from error
    except transport_errors() as error:
        raise ModelDownloadError(
            str(name),
            f"the hub at {constants.ENDPOINT} cannot be reached ({one_line(error)}): check the "
            "network, HF_ENDPOINT and proxies; models in the cache load without a network",
        ) from error


def transport_errors() -> tuple[type[Exception], ...]:
    """Errors of the HTTP client that huggingface_hub uses: httpx2, or httpx before 2.0."""
    modules = [sys.modules[name] for name in ("httpx2", "httpx") if name in sys.modules]
    return tuple(kind for module in modules for kind in (module.HTTPError, module.InvalidURL))


def one_line(error: BaseException) -> str:
    """What an error says, in at most 300 characters."""
    text = " ".join(_ERRNO.sub("", str(error)).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}…"
