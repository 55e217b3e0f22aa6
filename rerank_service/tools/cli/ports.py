"""Checks that the service's ports are free before it starts, and names the process that holds a port in use.

Serve's proxies listen with SO_REUSEPORT: a second service on the same port would start without an error, and the kernel
would distribute connections between the two. The check therefore binds without SO_REUSEPORT.
"""

import errno
import ipaddress
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

import httpx

__all__ = ["Endpoint", "is_free", "is_loopback", "local_url", "problem_of", "reserve", "url_of"]

_LISTENING = "0A"  # TCP_LISTEN in /proc/net/tcp
_OPTION = socket.SO_REUSEADDR if sys.platform == "linux" else None
"""On Linux, this option permits old connections in TIME_WAIT, but no second listener."""
_PROBE_TIMEOUT_S = 2
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - address to probe instead


class Endpoint(NamedTuple):
    """An address to listen on, and the setting that chooses it."""

    host: str
    port: int
    setting: str


def problem_of(endpoint: Endpoint) -> str | None:
    """The reason why the service cannot listen on `endpoint`, in one line; None if it can."""
    try:
        with closing(_bound(endpoint, _OPTION)):
            return None
    except OSError as error:
        where = f"port {endpoint.port} of {endpoint.host}"
        if error.errno == errno.EADDRINUSE:
            return f"{where} is in use by {_holder(endpoint)}. Stop it, or choose another port: {endpoint.setting}"
        return f"cannot listen on {where}: {error.strerror or error}. See {endpoint.setting}"


def is_free(host: str, port: int) -> bool:
    """Whether the service can listen on a port of `host`."""
    with suppress(OSError), closing(_bound(Endpoint(host, port, ""), _OPTION)):
        return True
    return False


def url_of(host: str, port: int, scheme: str = "http") -> str:
    """The URL of a listener, with brackets around an IPv6 address."""
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def local_url(host: str, port: int, scheme: str = "http") -> str:
    """The URL at which this machine reaches a listener, even if the listener is bound to all addresses."""
    return url_of(_WILDCARDS.get(host, host), port, scheme)


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to a listener on `host`. A host name other than localhost may be public."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def reserve(endpoint: Endpoint) -> None:
    """Makes `problem_of` in other processes report the port as in use even before the proxies listen.

    The reserving socket does not listen, so it receives no connections, and Serve's own socket can share the port. The
    reservation lasts until this process ends. Systems without SO_REUSEPORT reserve nothing.
    """
    with suppress(OSError, AttributeError):
        _bound(endpoint, socket.SO_REUSEPORT).detach()


def _bound(endpoint: Endpoint, option: int | None) -> socket.socket:
    """A bound socket. Raises `OSError`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except UnicodeError as error:  # a part of the name is empty or has more than 63 characters
        raise OSError("not a host name") from error
    bound = socket.socket(family, kind, protocol)
    try:
        if option is not None:
            bound.setsockopt(socket.SOL_SOCKET, option, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def _holder(endpoint: Endpoint) -> str:
    processes = sorted(set(_listening_processes(endpoint.port)))
    named = f" ({'; '.join(processes)})" if processes else ""
    url = f"{local_url(endpoint.host, endpoint.port)}/v1/health/live"
    with suppress(httpx.HTTPError, ValueError, TypeError, KeyError):
        answer = httpx.get(url, timeout=_PROBE_TIMEOUT_S, trust_env=False).json()
        if answer["object"] == "health.response":
            return f"another rerank service{named}"
    return f"another program{named}" if processes else "another program, or a service that is just starting"


def _listening_processes(port: int) -> Iterator[str]:
    """Processes of this user that listen on `port`, or the commands that have started them. Works only on Linux."""
    links = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for folder in Path("/proc").glob("[0-9]*") if links else ():
        with suppress(OSError):  # the process has ended or belongs to another user
            if any(_link(path) in links for path in (folder / "fd").iterdir()):
                holder = _starter(folder)
                yield f"process {holder.name}: {re.sub(r'[^ -~]', '?', ' '.join(_arguments(holder))).strip()[:100]}"


def _starter(process: Path) -> Path:
    """The `rerank-service` command that has started a process, such as HAProxy, or else the process itself: Serve would
    replace an HAProxy that is stopped."""
    ancestor = process
    with suppress(OSError):
        while ancestor.name != "0":
            if any(Path(argument).name == "rerank-service" for argument in _arguments(ancestor)[:2]):
                return ancestor
            parent = re.search(r"^PPid:\s+(\d+)", (ancestor / "status").read_text(), re.MULTILINE)
            ancestor = ancestor.with_name(parent[1] if parent else "0")
    return process


def _arguments(process: Path) -> list[str]:
    return (process / "cmdline").read_bytes().decode(errors="replace").split("\0")


def _link(path: Path) -> str:
    with suppress(OSError):
        return os.readlink(path)
    return ""


def _listening_inodes(port: int) -> Iterator[str]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                local_port, state, inode = fields[1].rpartition(":")[2], fields[3], fields[9]
                if state == _LISTENING and int(local_port, 16) == port:
                    yield inode
