"""A fake model hub on loopback, with the routes that huggingface_hub 2.4 uses and with faults on demand. The hub serves
small files itself and redirects to a storage host for large files. Both servers support ranges. The hub sends no Xet
headers, so that clients use plain HTTP.
"""

import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

__all__ = ["FakeHub", "Fault", "Repository", "Request", "commit_of", "fake_hub", "git_sha1"]

_LARGE_BYTES = 50_000
"""Files of at least this size are stored as LFS objects, like weights on the real hub."""


@dataclass(frozen=True)
class Fault:
    """A fault that occurs in the next `times` requests whose path contains `where`."""

    where: str
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after_bytes: int | None = None
    """Bytes of the body after which the connection is closed."""
    hang_after_bytes: int | None = None
    """Bytes of the body after which the hub sends nothing until it is stopped."""
    corrupts: bool = False
    ignores_range: bool = False
    times: int = 1


@dataclass
class Repository:
    """The files of each commit, by path."""

    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str]
    token: str | None = None
    is_gated: bool = False


@dataclass(frozen=True)
class Request:
    """A request that the hub or the storage host received."""

    method: str
    path: str
    headers: dict[str, str]
    is_storage: bool


class FakeHub:
    """The servers of the hub and the storage host, with their repositories."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.faults: list[Fault] = []
        self.seen: list[Request] = []
        self.page_size = 1000
        self.stopped = threading.Event()
        self.hanging = threading.Event()
        self._lock = threading.Lock()
        self.servers = [_Server(self, is_storage=False), _Server(self, is_storage=True)]

    @property
    def url(self) -> str:
        return self.servers[0].url

    @property
    def storage_url(self) -> str:
        return self.servers[1].url

    def put(self, hub_id: str, files: dict[str, bytes], *, branch: str = "main", **settings: Any) -> str:
        """Adds a commit to a branch and returns its id."""
        commit = commit_of(files)
        repository = self.repositories.setdefault(hub_id, Repository({}, {}, **settings))
        repository.commits[commit] = dict(files)
        repository.branches[branch] = commit
        return commit

    def asked_for(self, part: str) -> list[Request]:
        return [request for request in self.seen if part in request.path]

    def fault_for(self, path: str) -> Fault | None:
        with self._lock:
            for place, fault in enumerate(self.faults):
                if fault.where in path:
                    left = [Fault(**{**vars(fault), "times": fault.times - 1})] if fault.times > 1 else []
                    self.faults[place : place + 1] = left
                    return fault
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: FakeHub, *, is_storage: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Storage if is_storage else _Hub)
        self.hub = hub
        self.is_storage = is_storage

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # tests kill clients during a transfer
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        hub = self.server.hub
        headers = {name.lower(): value for name, value in self.headers.items()}
        hub.seen.append(Request(self.command, self.path, headers, self.server.is_storage))
        self.fault = hub.fault_for(self.path)
        if self.fault is not None and self.fault.status is not None:
            self.reply(self.fault.status, b'{"error": "as the test wants it"}', self.fault.headers)
            return
        self.answer()

    def do_HEAD(self) -> None:
        self.do_GET()

    def answer(self) -> None:
        raise NotImplementedError

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        fault = self.fault or Fault("")
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault.corrupts:
            body = body[:-1] + bytes([body[-1] ^ 1])
        stop = fault.cut_after_bytes if fault.cut_after_bytes is not None else fault.hang_after_bytes
        self.wfile.write(body[:stop])
        if stop is not None:
            self.wfile.flush()
            if fault.hang_after_bytes is not None:
                self.server.hub.hanging.set()
                self.server.hub.stopped.wait()
            self.close_connection = True

    def reply_with_range(self, content: bytes, headers: dict[str, str]) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted is None or (self.fault and self.fault.ignores_range):
            self.reply(200, content, headers)
            return
        start = int(wanted[1])
        if start >= len(content):
            self.reply(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        total = len(content)
        self.reply(206, content[start:], {**headers, "Content-Range": f"bytes {start}-{total - 1}/{total}"})

    def refuse(self, status: int, code: str) -> None:
        self.reply(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def log_message(self, format: str, *arguments: Any) -> None:
        """Logs nothing."""


class _Hub(_Handler):
    def answer(self) -> None:
        url = urlsplit(self.path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)(?:/(.+))?", url.path):
            hub_id, what, revision = match[1], match[2], unquote(match[3])
            found = self._commit(hub_id, revision, is_file=False)
            if found and what == "revision":
                siblings = [{"rfilename": path} for path in found[1]]
                self._reply_json({"id": hub_id, "modelId": hub_id, "sha": found[0], "siblings": siblings})
            elif found:
                below = f"{match[4]}/" if match[4] else ""
                files = {path: content for path, content in found[1].items() if path.startswith(below)}
                self._reply_tree(files, url.path, parse_qs(url.query), below)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", url.path):
            self._reply_file(match[1], unquote(match[2]), unquote(match[3]))
        else:
            self.refuse(404, "NotFound")

    def _commit(self, hub_id: str, revision: str, *, is_file: bool) -> tuple[str, dict[str, bytes]] | None:
        repository = self.server.hub.repositories.get(hub_id)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        is_closed = repository is not None and repository.token not in (None, token)
        if repository is None or (is_closed and not repository.is_gated):
            self.refuse(401 if not token else 404, "RepoNotFound")
            return None
        if is_closed and is_file:  # the description of a gated repository is public
            self.refuse(403 if token else 401, "GatedRepo")
            return None
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            self.refuse(404, "RevisionNotFound")
            return None
        return commit, repository.commits[commit]

    def _reply_json(self, answer: Any, headers: dict[str, str] | None = None) -> None:
        self.reply(200, json.dumps(answer).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _reply_tree(self, files: dict[str, bytes], path: str, query: dict[str, list[str]], below: str) -> None:
        is_recursive = query.get("recursive", ["false"])[0].lower() == "true"
        top = {name for name in files if "/" not in name.removeprefix(below)}
        entries = [_entry(name, content) for name, content in files.items() if is_recursive or name in top]
        folders = sorted({below + name.removeprefix(below).partition("/")[0] for name in files.keys() - top})
        entries += [{"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in folders]
        start, size = int(query.get("cursor", ["0"])[0]), self.server.hub.page_size
        following = f'<{self.server.url}{path}?cursor={start + size}>; rel="next"'
        headers = {"Link": following} if start + size < len(entries) else {}
        self._reply_json(entries[start : start + size], headers)

    def _reply_file(self, hub_id: str, revision: str, path: str) -> None:
        found = self._commit(hub_id, revision, is_file=True)
        if found is None:
            return
        commit, files = found
        if path not in files:
            self.refuse(404, "EntryNotFound")
            return
        content = files[path]
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if len(content) < _LARGE_BYTES:
            self.reply_with_range(content, headers | {"ETag": f'"{git_sha1(content)}"'})
            return
        sha256 = hashlib.sha256(content).hexdigest()
        headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{sha256}"'}
        headers |= {"Location": f"{self.server.hub.storage_url}/{hub_id}/{sha256}?name={path}&signature=secret"}
        self.reply(302, b"", headers)


class _Storage(_Handler):
    def answer(self) -> None:
        sha256 = urlsplit(self.path).path.rpartition("/")[2]
        contents = (
            content
            for repository in self.server.hub.repositories.values()
            for files in repository.commits.values()
            for content in files.values()
        )
        content = next(content for content in contents if hashlib.sha256(content).hexdigest() == sha256)
        self.reply_with_range(content, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})


def _entry(name: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": git_sha1(content)}
    if len(content) >= _LARGE_BYTES:
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 135}
    return entry


def git_sha1(content: bytes) -> str:
    """The digest that `git hash-object` prints."""
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).hexdigest()


def commit_of(files: dict[str, bytes]) -> str:
    """A commit id of forty digits, which changes with any file."""
    lines = "".join(f"{git_sha1(content)} {name}\n" for name, content in sorted(files.items()))
    return hashlib.sha1(lines.encode(), usedforsecurity=False).hexdigest()


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    threads = [threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}) for server in hub.servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        hub.stopped.set()
        for server, thread in zip(hub.servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()
