"""A server that speaks the part of the Hugging Face Hub's protocol with which ``huggingface_hub`` downloads files."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0" * 40


@dataclass
class Hub:
    """What the server has, and what it was asked for.

    Args:
        files: by repository and name.
        gated: repositories whose owners grant access by request.
        break_after: bytes after which the next download's connection breaks, once.
        stall_after: bytes after which the next download receives no more, once, until its process has ended.
        damaged: it sends other bytes than it announces.
        requests: method, path and range of each request.
    """

    url: str = ""
    files: dict[tuple[str, str], bytes] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    break_after: int | None = None
    stall_after: int | None = None
    damaged: bool = False
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    @property
    def downloads(self) -> list[str | None]:
        """The range of each request for content."""
        return [range_ for method, path, range_ in self.requests if method == "GET" and "/resolve/" in path]

    def environment(self, home: Path) -> dict[str, object]:
        """The variables with which another process uses this server, and the cache in a folder."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": home, "HF_HUB_OFFLINE": 0, "HF_HUB_DISABLE_XET": 1}

    def use(self, monkeypatch: pytest.MonkeyPatch, home: Path, *, offline: bool = False) -> None:
        """Makes this process use this server; the library has read the variables when it was imported."""
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{self.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        monkeypatch.setattr(constants, "HF_HOME", str(home))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)


@contextmanager
def serving() -> Iterator[Hub]:
    """Within, a server on a free port of this machine."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        hub, range_ = self.hub, self.headers.get("Range")
        hub.requests.append((self.command, self.path, range_))
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        if match is None or match[1] not in {repository for repository, _ in hub.files}:
            return self._refuse(404, "RepoNotFound")
        if match[1] in hub.gated:
            return self._refuse(403, "GatedRepo")
        if match[2] not in ("main", "v1", COMMIT):
            return self._refuse(404, "RevisionNotFound")
        content = hub.files.get((match[1], match[3]))
        if content is None:
            return self._refuse(404, "EntryNotFound")
        start = 0 if range_ is None else int(range_.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        self._send_common()
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            (end, hub.break_after), (stall, hub.stall_after) = (hub.break_after, None), (hub.stall_after, None)
            sent = content[start:][:end][:stall]
            self.wfile.write(sent[::-1] if hub.damaged else sent)
            if stall is not None:
                with suppress(ConnectionResetError):
                    self.connection.recv(1)

    def _send_common(self) -> None:
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")

    def _refuse(self, status: int, kind: str) -> None:
        self.send_response(status)
        self._send_common()
        self.send_header("X-Error-Code", kind)
        self.send_header("Content-Length", "0")
        self.end_headers()
