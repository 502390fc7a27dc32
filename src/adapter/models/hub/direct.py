"""Fetches model files into a folder, from any server by their URL or from a path."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from adapter.errors import ModelDownloadError
from adapter.models.disk_space import too_little_room
from adapter.models.hub.choice import is_safe
from adapter.models.hub.completeness import problem_of
from adapter.models.hub.listing import one_line, transport_errors
from adapter.models.hub.names import HubName, is_repo
from adapter.models.hub.transfer import Content, Progress, WrongDigestError, adding_up, receive
from adapter.models.parts import parts
from adapter.wording import file_size, reason_of
from pyllama.scratch_folder import scratch_folder

_NO_DIGEST_OF_PARTS = "a split model has several files, and no SHA-256 of its own"
_CHUNK = 1 << 20
_TOTAL = re.compile(r"bytes 0-0/(\d{1,16})", re.ASCII)
_HUB_PATH = re.compile(r"/([^/]+/[^/]+)/(?:resolve|blob)/main/(.+)")


def hub_name(url: str) -> HubName | None:
    """What a URL stands for, if it is that of a file on the hub itself."""
    from huggingface_hub import constants

    split = urlsplit(url)
    found = _HUB_PATH.fullmatch(unquote(split.path))
    if found is None or split.netloc != urlsplit(constants.ENDPOINT).netloc:
        return None
    return HubName(found[1], found[2]) if is_repo(found[1]) and is_safe(found[2]) else None


def download(
    url: str, folder: Path, *, sha256: str | None = None, report: Progress | None = None
) -> tuple[Path, ...]:
    """Download a model, and the other parts of a split one, into a folder.

    An interrupted download is resumed if the server identifies the version of the file. The file
    appears when it is complete.

    Args:
        sha256: what the file must have, in hexadecimal; not for a split model.
        report: see Progress; called for one part after the other.

    Raises:
        ModelDownloadError: the message says what to do.
    """
    split = urlsplit(url)
    folder_path, _, name = split.path.rpartition("/")
    targets = parts(_target(url, unquote(name), folder))
    if len(targets) == 1:
        _download(url, targets[0], sha256, report)
        return targets
    if sha256 is not None:
        raise ModelDownloadError(url, _NO_DIGEST_OF_PARTS)
    for target in reversed(targets):  # the first part comes last, so all are there
        path = f"{folder_path}/{target.name}"
        part = urlunsplit((split.scheme, split.netloc, path, split.query, ""))
        _download(part, target, None, report)
    return targets


def copy(
    source: Path, folder: Path, *, sha256: str | None = None, report: Progress | None = None
) -> tuple[Path, ...]:
    """Copy a model, and the other parts of a split one, into a folder.

    Args:
        sha256: as for ``download``.

    Raises:
        ModelDownloadError: the message says what to do.
    """
    with _translated(str(source)):
        targets = parts(_target(str(source), source.name, folder))
        sources = parts(source)
        if sha256 is not None and len(sources) > 1:
            raise ModelDownloadError(str(source), _NO_DIGEST_OF_PARTS)
        for part in sources:
            _require_complete(str(part), part)
        digest = hashlib.sha256()
        total = sum(part.stat().st_size for part in sources)
        arrived = adding_up(total, report)
        folder.mkdir(parents=True, exist_ok=True)
        _require_room(str(source), folder, total)
        with scratch_folder(folder, ".fetching-") as scratch:
            for part in sources:
                with part.open("rb") as read, (scratch / part.name).open("wb") as write:
                    while chunk := read.read(_CHUNK):
                        write.write(chunk)
                        digest.update(chunk)
                        arrived(len(chunk))
            _require_digest(str(source), digest.hexdigest(), sha256)
            for target in reversed(targets):
                os.replace(scratch / target.name, target)
    return targets


def _target(what: str, name: str, folder: Path) -> Path:
    if not name.casefold().endswith(".gguf") or not is_safe(name) or name.startswith("."):
        raise ModelDownloadError(what, f"{name!r} is not the name of a .gguf file")
    target = folder / name
    if target.exists():
        raise ModelDownloadError(
            what, f"{target} is there already; to replace it: pyllama rm {target.stem}"
        )
    return target


def _download(url: str, target: Path, sha256: str | None, report: Progress | None) -> None:
    from filelock import FileLock

    with _translated(url):
        size, version = _probe(url)
        key = hashlib.sha256(f"{url} {size} {version}".encode()).hexdigest()[:16]
        partial = target.with_name(".incomplete") / f"{key}-{target.name}"
        partial.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(partial.with_name(f"{key}.lock")):
            if target.exists():
                return  # another process had the lock before
            if version is None:  # it may be another file by now
                partial.unlink(missing_ok=True)
            with partial.open("a+b") as stream:
                content = Content(stream, size, adding_up(size, report), hashlib.sha256())
                _require_room(url, target.parent, size - content.written)
                receive(url, {}, content, version if version and version[0] == '"' else None)
                stream.flush()
                os.fsync(stream.fileno())
            try:
                _require_digest(url, content.digest.hexdigest(), sha256)
                _require_complete(url, partial)
            except ModelDownloadError:
                partial.unlink()
                raise
            os.replace(partial, target)


def _probe(url: str) -> tuple[int, str | None]:
    """The size of a file, and the identifier of this version of it, if the server sends one."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    asked = {"Range": "bytes=0-0", "Accept-Encoding": "identity"}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    # No HEAD request: a signed URL is valid for one method only.
    with get_session().stream("GET", url, headers=asked, timeout=timeout) as response:
        hf_raise_for_status(response)
        headers = response.headers
        if response.status_code == 206:
            total = _TOTAL.fullmatch(headers.get("Content-Range", ""))
            size = total[1] if total else ""
        else:
            size = "" if headers.get("Content-Encoding") else headers.get("Content-Length", "")
        etag = headers.get("ETag", "")
    if not re.fullmatch(r"\d{1,16}", size, re.ASCII):
        raise ModelDownloadError(url, "the server does not say how large the file is")
    version = None if not etag or etag.startswith("W/") else etag
    return int(size), version or headers.get("Last-Modified")


def _require_room(what: str, folder: Path, needed: int) -> None:
    free = too_little_room(folder, needed)
    if free is not None:
        raise ModelDownloadError(
            what, f"{file_size(needed)} are still to come, but {folder} has {free}"
        )


def _require_digest(what: str, found: str, sha256: str | None) -> None:
    if sha256 is not None and found != sha256.casefold():
        raise ModelDownloadError(
            what,
            f"its SHA-256 is {found}, and not {sha256}; nothing of it was kept. Compare the digest "
            "with the one that the file's publisher gives",
        )


def _require_complete(what: str, path: Path) -> None:
    """Refuse what is not a GGUF file, or one that was cut before it came here."""
    problem = problem_of(path, "the file")
    if problem is not None:
        raise ModelDownloadError(what, problem)


@contextmanager
def _translated(what: str) -> Iterator[None]:
    from huggingface_hub import errors

    try:
        yield
    except ModelDownloadError:
        raise
    except errors.OfflineModeIsEnabled as error:
        raise ModelDownloadError(what, "offline mode is on: unset HF_HUB_OFFLINE") from error
    except WrongDigestError as error:
        raise ModelDownloadError(what, "the file changed while it was read; try again") from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "no status")
        raise ModelDownloadError(what, f"the server answered {status}") from error
    except transport_errors() as error:
        reason = f"no connection, or it broke off ({one_line(error)})"
        raise ModelDownloadError(what, f"{reason}; what has arrived is kept") from error
    except OSError as error:
        raise ModelDownloadError(what, reason_of(error)) from error
