"""Logging of a Serve replica: its own log lines go through Serve's handlers, with Serve's format and request ids."""

import logging

from ray import serve as ray_serve
from ray.serve.exceptions import RayServeException

__all__ = ["log_through_serve", "serve_id"]


def log_through_serve() -> None:
    """Call it in a replica's constructor, after Serve has set up its handlers.

    Serve's own line for each call is dropped: the ingress logs one line for each request.
    """
    serve, own = logging.getLogger("ray.serve"), logging.getLogger("rerank_service")
    own.handlers = list(serve.handlers)
    own.setLevel(serve.level)
    own.propagate = False
    serve.addFilter(_is_not_access_log)


def _is_not_access_log(record: logging.LogRecord) -> bool:
    return not getattr(record, "serve_access_log", False)


def serve_id() -> str:
    """Serve's id of the replica this code runs in, as the request routers know it; empty outside Serve."""
    try:
        name: str = ray_serve.get_replica_context().replica_id.unique_id
    except RayServeException:
        return ""
    return name
