"""Sends this package's log lines the way Ray Serve's own go: its files, its format, its request ids."""

import logging

__all__ = ["log_through_serve"]


def log_through_serve() -> None:
    """Call it in a replica's constructor; Serve has set its handlers up by then."""
    serve, own = logging.getLogger("ray.serve"), logging.getLogger("rerank_service")
    own.handlers = list(serve.handlers)
    own.setLevel(serve.level)
    own.propagate = False
