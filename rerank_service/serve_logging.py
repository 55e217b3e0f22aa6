"""Sends this package's log lines the way Ray Serve's own go: its files, its format, its request ids."""

import logging

__all__ = ["log_through_serve"]


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
