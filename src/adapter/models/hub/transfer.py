"""Downloads one file from a hub into the cache, with resumption, and checks its digest."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeAlias

from adapter.errors import ModelDownloadError
from adapter.models.hub.cache import CachedRepository
from adapter.models.hub.listing import HubFile, Listing, translated, transport_errors
from adapter.models.hub.names import HubName
from adapter.wording import reason_of

Digest: TypeAlias = Any
"""A hash object of hashlib."""

Report = Callable[[int], None]
"""Called with the number of bytes that arrived. It is negative if they no longer count."""

Progress = Callable[[int, int], None]
"""Called with the number of bytes so far, and the number of all."""

_CHUNK = 1 << 20

_FRUITLESS = 4
"""How often a transfer is repeated although nothing arrived."""


class WrongDigestError(Exception):
    """The content does not fit its digest."""


def adding_up(total: int, progress: Progress | None) -> Report:
    """A function that adds up the bytes that arrived, and reports their sum and the total."""
    done = 0

    def arrived(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        if progress is not None:
            progress(done, total)

    return arrived


def missing_bytes(cached: CachedRepository, file: HubFile) -> int:
    """How much of a file is still missing, judged by its size alone."""
    if cached.blob(file.digest).is_file():
        return 0
    partial = _partial(cached, file)
    return file.size - min(file.size, partial.stat().st_size if partial.is_file() else 0)


def fetch(
    name: HubName,
    listing: Listing,
    cached: CachedRepository,
    file: HubFile,
    report: Report,
) -> None:
    """Get a file's content among the blobs, complete and checked.

    What other programs downloaded is checked too, and replaced if it is damaged. If another thread
    or process fetches the same file, this waits.

    Raises:
        ModelDownloadError: the part that has arrived stays for the next attempt.
    """
    from filelock import FileLock

    lock, blob = cached.lock(file.digest), cached.blob(file.digest)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        blob.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            if blob.is_file():
                if _is_whole(blob, file, report):
                    return
                blob.unlink()
            try:
                _download(name, listing, file, _partial(cached, file), report)
            except WrongDigestError:
                # An earlier part was damaged, or this transfer: once more from the start.
                _download(name, listing, file, _partial(cached, file), report)
            os.replace(_partial(cached, file), blob)
    except WrongDigestError as error:
        raise ModelDownloadError(
            str(name),
            f"{file.path} arrived twice with other contents than its digest {file.digest} says; "
            "nothing of it was kept. The hub or a proxy damages it: try again later, or through "
            "another network",
        ) from error
    except OSError as error:
        if isinstance(error, ModelDownloadError):
            raise
        if errno.errorcode.get(error.errno or 0) in ("ENOSPC", "EDQUOT"):
            remedy = "the disk is full: make room, and what has arrived need not come again"
        else:
            remedy = "check that the cache folder can be written, or set HF_HOME to another"
        raise ModelDownloadError(str(name), f"{file.path}: {reason_of(error)}; {remedy}") from error


def _download(
    name: HubName, listing: Listing, file: HubFile, partial: Path, report: Report
) -> None:
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    whole = False
    with partial.open("a+b") as stream, translated(name), suppress(WrongDigestError):
        content = Content(stream, file.size, report, new_digest(file))
        if not content.written and file.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
            raise ModelDownloadError(
                str(name),
                f"{file.path} is larger than hubs send in one piece: have it fetched by "
                f"hf download {listing.repo} {file.path!r}, and this finds it in the cache",
            )
        url = hf_hub_url(listing.repo, file.path, revision=listing.commit)
        receive(url, build_hf_headers(library_name="pyllama"), content)
        stream.flush()
        os.fsync(stream.fileno())
        whole = content.digest.hexdigest() == file.digest
    if not whole:
        report(-content.written)
        partial.unlink()
        raise WrongDigestError


def receive(
    url: str, headers: Mapping[str, str], content: Content, version: str | None = None
) -> None:
    """Append the response of a URL to the content until it is complete.

    An interrupted transfer is resumed, of the `version` of the file that is given as an ETag. If
    the server cannot do that, it starts again.

    Raises:
        WrongDigestError: this is not the rest of the file.
        Exception: what the HTTP client raises.
    """
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    failures = 0
    while content.written < content.size:
        # A compressed body has other lengths than the file.
        before, asked = content.written, {"Accept-Encoding": "identity", **headers}
        if before:
            asked["Range"] = f"bytes={before}-"
            if version is not None:
                asked["If-Range"] = version
        try:
            timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
            with get_session().stream("GET", url, headers=asked, timeout=timeout) as response:
                hf_raise_for_status(response)
                if response.status_code != 206:
                    content.restart()
                elif not response.headers.get("Content-Range", "").startswith(f"bytes {before}-"):
                    raise WrongDigestError
                for chunk in response.iter_bytes():
                    content.write(chunk)
            if content.written < content.size:  # the server says that this is all
                raise WrongDigestError
        except transport_errors():
            failures = 0 if content.written > before else failures + 1
            if failures > _FRUITLESS:
                raise
            time.sleep(min(2**failures, 8) / 2)


class Content:
    """A file that is written and hashed at once, and takes no more than its size.

    Args:
        stream: opened for reading and appending.
        size: its size in bytes when it is complete.
        report: called with bytes that arrived, or that do not count any more.
        digest: of what is written; empty.
    """

    def __init__(self, stream: IO[bytes], size: int, report: Report, digest: Digest) -> None:
        self._stream = stream
        self._report = report
        self._empty = digest.copy()
        self.size = size
        self.digest = digest
        self.written = 0
        stream.seek(0)
        while chunk := stream.read(_CHUNK):
            self._take(chunk)
        if self.written > size:
            self.restart()

    def write(self, chunk: bytes) -> None:
        """Append. Raises WrongDigestError if it would exceed the size."""
        if self.written + len(chunk) > self.size:
            raise WrongDigestError
        self._stream.write(chunk)
        self._take(chunk)

    def restart(self) -> None:
        """Empty the file."""
        self._stream.truncate(0)
        self._report(-self.written)
        self.written, self.digest = 0, self._empty.copy()

    def _take(self, chunk: bytes) -> None:
        self.digest.update(chunk)
        self.written += len(chunk)
        self._report(len(chunk))


def _partial(cached: CachedRepository, file: HubFile) -> Path:
    return cached.blob(f"{file.digest}.incomplete")


def _is_whole(path: Path, file: HubFile, report: Report) -> bool:
    if path.stat().st_size != file.size:
        return False
    digest = new_digest(file)
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            report(len(chunk))
    if digest.hexdigest() == file.digest:
        return True
    report(-file.size)
    return False


def new_digest(file: HubFile) -> Digest:
    """An empty hash of the kind that a file has."""
    if len(file.digest) == 64:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)  # git's form
