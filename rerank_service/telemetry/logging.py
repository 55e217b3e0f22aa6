"""Sends this package's log lines through the handlers of a Serve replica, with Serve's format and request ids."""

import logging

from ray import serve as ray_serve
from ray.serve.exceptions import RayServeException

__all__ = ["log_through_serve", "serve_id"]


def log_through_serve() -> None:
    """Sends this package's log lines through Serve's handlers. Call this in a replica's constructor, once Serve's
    handlers exist.

    Serve's own line per call is dropped, because the ingress logs one line per request.
    """
    serve, own = logging.getLogger("ray.serve"), logging.getLogger("rerank_service")
    own.handlers = list(serve.handlers)
    own.setLevel(serve.level)
    own.propagate = False
    serve.addFilter(_is_not_access_log)


def _is_not_access_log(record: logging.LogRecord) -> bool:
    return not getattr(record, "serve_access_log", False)


def serve_id() -> str:
    """Serve's id of the replica in which this code runs, as used by the request routers; empty outside Serve."""
    try:
        name: str = ray_serve.get_replica_context().replica_id.unique_id
    except RayServeException:
        return ""
    return name
