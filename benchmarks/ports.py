"""Free TCP ports of this machine, for servers that benchmarks and tests start."""

import random
import socket
from contextlib import closing, suppress

__all__ = ["free_port"]

_UNUSED = iter(random.SystemRandom().sample(range(20_000, 30_000), 10_000))
"""Below the ports that Linux gives to outgoing connections (from 32,768) and Serve to its replicas (from 30,000), and
above those that Ray gives to its workers (up to 19,999): between the choice and the use of a port, no connection takes
it."""


def free_port() -> int:
    """Returns a port of 127.0.0.1 that is not in use, and that this process has not returned before."""
    for port in _UNUSED:
        with suppress(OSError), closing(socket.create_server(("127.0.0.1", port))):
            return port
    raise RuntimeError("no port is free")
