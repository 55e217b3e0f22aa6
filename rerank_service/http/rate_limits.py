"""Requests and passages a minute, for each key: a moving window, in this process's memory or in Redis for all.

Counted by the library `limits`. Without keys a caller is an address.
"""

import hashlib
import logging
import math
import time
from typing import Any, NamedTuple

from limits import RateLimitItemPerMinute
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import ConfigurationError
from limits.storage import storage_from_string

from rerank_service.config import RateLimitConfig
from rerank_service.errors import ConfigError, RateLimited
from rerank_service.http.envelope import rate_limit_headers

__all__ = ["RateLimits", "caller_of"]

logger = logging.getLogger(__name__)


class _Counted(NamedTuple):
    what: str
    per_minute: int

    @property
    def item(self) -> RateLimitItemPerMinute:
        return RateLimitItemPerMinute(self.per_minute, namespace="rerank")


class RateLimits:
    """What a caller may still send this minute."""

    def __init__(self, config: RateLimitConfig) -> None:
        """Raises `ConfigError` where the storage's own package is missing or its address is wrong."""
        self._requests = _counted("requests", config.requests_per_minute)
        self._passages = _counted("passages", config.passages_per_minute)
        self._limiter = SlidingWindowCounterRateLimiter(_storage(config.storage))

    async def close(self) -> None:
        """Hangs up on Redis."""
        bridge = getattr(self._limiter.storage, "bridge", None)
        if bridge is not None:
            await bridge.storage.aclose()

    async def take_request(self, caller: str) -> dict[str, str]:
        """Counts one request; the headers to answer with. Raises `RateLimited`."""
        return await self._take(self._requests, caller, 1)

    async def take_passages(self, caller: str, num_passages: int) -> dict[str, str]:
        """Counts a request's passages; the headers to answer with. Raises `RateLimited`."""
        return await self._take(self._passages, caller, num_passages)

    async def _take(self, counted: _Counted | None, caller: str, cost: int) -> dict[str, str]:
        if counted is None:
            return {}
        try:
            is_allowed = await self._limiter.hit(counted.item, counted.what, caller, cost=cost)
            window = await self._limiter.get_window_stats(counted.item, counted.what, caller)
        except Exception as error:
            logger.warning("rate limits do not count: their storage failed (%s)", type(error).__name__)
            return {}
        seconds = max(1, math.ceil(window.reset_time - time.time()))
        if not is_allowed:
            raise RateLimited(counted.what, counted.per_minute, seconds)
        return rate_limit_headers(counted.what, counted.per_minute, max(0, window.remaining), seconds)


def _storage(address: str) -> Any:
    options = {} if address.startswith("memory:") else {"implementation": "redispy"}
    try:
        return storage_from_string(f"async+{address}", wrap_exceptions=True, **options)
    except (ConfigurationError, ValueError) as error:
        raise ConfigError(f"rate_limits.storage {address}: {error}; for Redis install rerank-service[redis]") from None


def caller_of(authorization: str | None, address: str | None) -> str:
    """Whose requests are counted together: those of one key, or of one address where none is required."""
    _, _, key = (authorization or "").partition(" ")
    if key.strip():
        return hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return f"address {address or 'unknown'}"


def _counted(what: str, per_minute: int | None) -> _Counted | None:
    return None if per_minute is None else _Counted(what, per_minute)
