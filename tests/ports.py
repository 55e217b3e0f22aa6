"""Free TCP ports of this machine."""

import socket

__all__ = ["free_port"]


def free_port() -> int:
    """Returns a port of 127.0.0.1 on which nothing listened a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
