"""A hub on this machine alone, that speaks what huggingface_hub asks for.

Repositories are dicts from paths to contents. Faults are set on the hub before a request.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LFS_FROM = 64
"""Files of so many bytes are stored by their SHA-256, as large ones are."""


@dataclass
class Repository:
    """What the hub has, and what is wrong with it.

    files    contents by path
    gated    whether it wants a token
    listing  changes to what is said of a file, by path
    """

    files: Mapping[str, bytes]
    commit: str = COMMIT
    gated: bool = False
    listing: dict[str, dict[str, Any]] = field(default_factory=dict)


class LoopbackHub:
    """Serves on a free port of 127.0.0.1 until it is closed.

    repositories  by "owner/repo"
    served        contents in place of what a path should have
    drops         how often each transfer is broken off, and after how many bytes
    redirects     whether contents come from another address, as from a content delivery network
    ranges        whether a part of a file may be asked for
    shift         how far behind what was asked for a part begins
    requests      method, path and headers of each request
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.served: dict[str, bytes] = {}
        self.drops: list[int] = []
        self.redirects = True
        self.ranges = True
        self.shift = 0
        self.body: bytes | None = None
        self.status = 200
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        # Another name of the same machine: another origin, which may not see the token.
        self.delivery = f"http://localhost:{self._server.server_port}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def add(self, repo: str, files: Mapping[str, bytes], **facts: Any) -> Repository:
        """Have a repository."""
        self.repositories[repo] = made = Repository(files, **facts)
        return made

    def contents_asked_for(self) -> list[str]:
        """The paths of the contents that were sent, in order."""
        return [path for _, path, _ in self.requests if path.startswith("/content/")]

    def _serve(self) -> None:
        self._server.serve_forever(poll_interval=0.01)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    server_hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        hub, path = self.server_hub, unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path, dict(self.headers)))
        if hub.body is not None or hub.status != 200:
            self._answer(hub.status, hub.body or b"")
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
            self._list(found[1])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([0-9a-f]{40}|main)/(.+)", path):
            self._resolve(found[1], found[3])
        elif found := re.fullmatch(r"/content/([^/]+/[^/]+)/(.+)", path):
            self._content(found[1], found[2])
        else:
            self._answer(404, b"no such page")

    do_HEAD = do_GET  # noqa: N815

    def _repository(self, name: str) -> Repository | None:
        found = self.server_hub.repositories.get(name)
        if found is None:
            self._answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        elif found.gated and self.headers.get("Authorization") != "Bearer a-token":
            status = 403 if self.headers.get("Authorization") else 401
            self._answer(status, b"", {"X-Error-Code": "GatedRepo"})
            return None
        return found

    def _list(self, name: str) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        siblings = []
        for path, content in repository.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            facts: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": blob}
            if len(content) >= LFS_FROM:
                digest = hashlib.sha256(content).hexdigest()
                facts["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
            siblings.append(facts | repository.listing.get(path, {}))
        answer = {"id": name, "modelId": name, "sha": repository.commit, "siblings": siblings}
        self._answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _resolve(self, name: str, path: str) -> None:
        repository, hub = self._repository(name), self.server_hub
        if repository is None:
            return
        if path not in repository.files:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        elif hub.redirects:
            self._answer(302, b"", {"Location": f"{hub.delivery}/content/{name}/{path}"})
        else:
            self._content(name, path)

    def _content(self, name: str, path: str) -> None:
        hub = self.server_hub
        content = hub.served.get(path, hub.repositories[name].files[path])
        etag = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is None or not hub.ranges:
            self._answer(200, content, etag)
            return
        start, end = int(asked[1]), int(asked[2] or len(content) - 1)
        if start >= len(content):
            self._answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        if start:
            start += hub.shift
        end = min(end, len(content) - 1)
        etag["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        self._answer(206, content[start : end + 1], etag)

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server_hub.drops and len(body) > self.server_hub.drops[0]:
            body = body[: self.server_hub.drops.pop(0)]
            self.close_connection = True
        try:
            self.wfile.write(body)
        except ConnectionError:  # who asked has enough
            self.close_connection = True
