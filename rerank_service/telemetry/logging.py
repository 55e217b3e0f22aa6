"""What a replica takes from Serve around it: its log's files, format and request ids, and its own id."""

import logging

from ray import serve as ray_serve
from ray.serve.exceptions import RayServeException

__all__ = ["log_through_serve", "serve_id"]


def log_through_serve(*, keep_access_log: bool = True) -> None:
    """Call it in a replica's constructor; Serve has set its handlers up by then.

    `keep_access_log=False` drops Serve's own line a call: of a shard, which the ingress tells of with its request.
    """
    serve, own = logging.getLogger("ray.serve"), logging.getLogger("rerank_service")
    own.handlers = list(serve.handlers)
    own.setLevel(serve.level)
    own.propagate = False
    if not keep_access_log:
        serve.addFilter(_is_not_of_a_call)


def _is_not_of_a_call(record: logging.LogRecord) -> bool:
    return not getattr(record, "serve_access_log", False)


def serve_id() -> str:
    """Serve's id of the replica this runs in, as the callers' routers have it; empty outside Serve."""
    try:
        name: str = ray_serve.get_replica_context().replica_id.unique_id
    except RayServeException:
        return ""
    return name
