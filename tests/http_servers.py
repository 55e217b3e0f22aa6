"""Real HTTP servers on loopback for client tests: the application, and a server with scripted replies."""

import gzip
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import uvicorn
from fastapi import FastAPI

__all__ = ["BREAK_OFF", "HANG", "Reply", "ScriptedServer", "Seen", "error", "ranking", "running", "scripted"]


@dataclass(frozen=True)
class Reply:
    """One reply of the scripted server."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)


BREAK_OFF = Reply(status=0)
"""Closes the connection without a reply."""
HANG = Reply(status=-1)
"""Sends nothing until the server is stopped."""


@dataclass(frozen=True)
class Seen:
    """A request that the server received."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class ScriptedServer(ThreadingHTTPServer):
    """Sends the scripted replies, one per request, and then ranks: a passage's logit is the length of its text."""

    daemon_threads = True
    request_queue_size = 32

    def __init__(self, script: Sequence[Reply]) -> None:
        super().__init__(("127.0.0.1", 0), _Scripted)
        self.script = iter(script)
        self.seen: list[Seen] = []
        self.num_connections = 0
        self.stopped = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Scripted(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ScriptedServer

    def setup(self) -> None:
        super().setup()
        self.server.num_connections += 1

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(gzip.decompress(raw) if self.headers["Content-Encoding"] == "gzip" else raw)
        self.server.seen.append(Seen(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        reply = next(self.server.script, None) or ranking([float(len(entry["text"])) for entry in body["passages"]])
        if reply is HANG:
            self.server.stopped.wait()
        if reply in (BREAK_OFF, HANG):
            self.close_connection = True
            return
        content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Logs nothing."""


def ranking(logits: Sequence[float], **headers: str) -> Reply:
    """A correct answer with these logits, in the passages' order."""
    order = sorted(range(len(logits)), key=lambda index: -logits[index])
    rankings = [{"index": index, "logit": logits[index]} for index in order]
    usage = {"prompt_tokens": 10 * len(logits), "total_tokens": 10 * len(logits)}
    return Reply(200, {"rankings": rankings, "usage": usage}, headers)


def error(status: int, message: str, **headers: str) -> Reply:
    """An error reply with the error envelope."""
    return Reply(status, {"object": "error", "message": message, "detail": [], "type": "an_error"}, headers)


@contextmanager
def scripted(*script: Reply) -> Iterator[ScriptedServer]:
    with ScriptedServer(script) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.stopped.set()
            server.shutdown()
            thread.join()


@contextmanager
def running(api: FastAPI) -> Iterator[str]:
    """Yields the application's URL. The application runs in the event loop of another thread."""
    listening = socket.create_server(("127.0.0.1", 0))  # connections queue on this socket until the application is up
    server = uvicorn.Server(uvicorn.Config(api, log_config=None, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
