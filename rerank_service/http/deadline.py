"""How long a client is willing to wait: a header that can shorten the service's own limit, never lengthen it."""

import math
from collections.abc import Mapping

from rerank_service.errors import FieldProblem, InvalidRequest

__all__ = ["FORWARDED_TIMEOUT_HEADER", "TIMEOUT_HEADER", "client_timeout_s"]

TIMEOUT_HEADER = "x-request-timeout-seconds"
FORWARDED_TIMEOUT_HEADER = "x-rerank-timeout-seconds"
"""What `proxy` makes of it, so that Serve's own proxy does not act on it."""


def client_timeout_s(headers: Mapping[str, str]) -> float | None:
    """Seconds, or null if the client does not say. Raises `InvalidRequest` unless it is a positive number."""
    value = headers.get(FORWARDED_TIMEOUT_HEADER, headers.get(TIMEOUT_HEADER))
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        message = f"{TIMEOUT_HEADER} must be a positive number of seconds; leave it out for the service's own limit"
        raise InvalidRequest([FieldProblem(("header", TIMEOUT_HEADER), message, "invalid_timeout")])
    return seconds
