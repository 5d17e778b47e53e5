"""A server that speaks the part of the Hugging Face Hub's protocol with which ``huggingface_hub`` downloads files and
uploads them: the large ones by Git LFS, the others within a commit.
"""

from __future__ import annotations

import base64
import hashlib
import json
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
        token: that allows to write; None: nobody may.
        private: repositories by whether only their owner may read them, of those that were made here.
        commits: the files of each version, by repository and commit, if it was made here.
        break_after: bytes after which the next download's connection breaks, once.
        stall_after: bytes after which the next download receives no more, once, until its process has ended.
        damaged: it sends other bytes than it announces.
        requests: method, path and range of each request.
    """

    url: str = ""
    files: dict[tuple[str, str], bytes] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    token: str | None = None
    private: dict[str, bool] = field(default_factory=dict)
    commits: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    break_after: int | None = None
    stall_after: int | None = None
    damaged: bool = False
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    @property
    def downloads(self) -> list[str | None]:
        """The range of each request for content."""
        return [range_ for method, path, range_ in self.requests if method == "GET" and "/resolve/" in path]

    def files_of(self, repository: str, revision: str) -> dict[str, bytes] | None:
        """The files of a version by name; None if there is no such version."""
        if revision in ("main", "v1", COMMIT):
            return {name: content for (owner, name), content in self.files.items() if owner == repository}
        return self.commits.get((repository, revision))

    def commit_of(self, repository: str, revision: str) -> str:
        """The newest commit of a repository, or the named one."""
        made = [commit for name, commit in self.commits if name == repository]
        return revision if revision not in ("main", "v1") else (made or [COMMIT])[-1]

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
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


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
    _revision = COMMIT  # that the answer names

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", self.path):
            return self._describe(match[1], match[2] or "main")
        self._answer()

    def do_POST(self) -> None:
        body = self._read()
        for pattern, answer in (
            (r"/api/repos/create", self._create),
            (r"/api/validate-yaml", self._validate),
            (r"/api/models/([^/]+/[^/]+)/preupload/main", self._choose_modes),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._name_uploads),
            (r"/api/models/([^/]+/[^/]+)/commit/main", self._commit),
        ):
            if match := re.fullmatch(pattern, self.path):
                if self.headers.get("Authorization") != f"Bearer {self.hub.token}" and "validate" not in pattern:
                    return self._refuse(401, "")
                return answer(body, *match.groups())
        return self._refuse(404, "RepoNotFound")

    def do_PUT(self) -> None:
        content = self._read()
        assert self.path == f"/lfs/{hashlib.sha256(content).hexdigest()}"
        self.hub.files["lfs", self.path.removeprefix("/lfs/")] = content
        self._say({})

    def log_message(self, *_: object) -> None:
        pass

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _create(self, body: bytes) -> None:
        wanted = json.loads(body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.hub.private:
            error = "You already created this model repo"
            return self._say({"error": error, "url": f"{self.hub.url}/{name}"}, 409)
        self.hub.private[name] = wanted.get("private", False) or wanted.get("visibility") == "private"
        self._say({"url": f"{self.hub.url}/{name}"})

    def _validate(self, body: bytes) -> None:
        assert json.loads(body)["content"].startswith("---\n")
        self._say({"errors": [], "warnings": []})

    def _choose_modes(self, body: bytes, name: str) -> None:
        files = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for one in json.loads(body)["files"]
        ]
        self._say({"files": files})

    def _name_uploads(self, body: bytes, name: str) -> None:
        objects = [
            {
                **{key: one[key] for key in ("oid", "size")},
                "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}},
            }
            for one in json.loads(body)["objects"]
        ]
        self._say({"transfer": "basic", "objects": objects})

    def _commit(self, body: bytes, name: str) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.hub.files[name, value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.files[name, value["path"]] = self.hub.files["lfs", value["oid"]]
        made = f"{len(self.hub.commits) + 1:040x}"
        files = self.hub.files_of(name, "main")
        assert files is not None
        self.hub.commits[name, made] = files
        self._say({"success": True, "commitOid": made, "commitUrl": f"{self.hub.url}/{name}/commit/{made}"})

    def _describe(self, name: str, revision: str) -> None:
        if name not in {repository for repository, _ in self.hub.files}:
            return self._refuse(404, "RepoNotFound")
        if self.hub.files_of(name, revision) is None:
            return self._refuse(404, "RevisionNotFound")
        self._say({"id": name, "sha": self.hub.commit_of(name, revision), "siblings": []})

    def _say(self, content: object, status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _answer(self) -> None:
        hub, range_ = self.hub, self.headers.get("Range")
        hub.requests.append((self.command, self.path, range_))
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        if match is None or match[1] not in {repository for repository, _ in hub.files}:
            return self._refuse(404, "RepoNotFound")
        if match[1] in hub.gated:
            return self._refuse(403, "GatedRepo")
        files = hub.files_of(match[1], match[2])
        if files is None:
            return self._refuse(404, "RevisionNotFound")
        self._revision = hub.commit_of(match[1], match[2])
        content = files.get(match[3])
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
        self.send_header("X-Repo-Commit", self._revision)
        self.send_header("Accept-Ranges", "bytes")

    def _refuse(self, status: int, kind: str) -> None:
        self.send_response(status)
        self._send_common()
        self.send_header("X-Error-Code", kind)
        self.send_header("Content-Length", "0")
        self.end_headers()
