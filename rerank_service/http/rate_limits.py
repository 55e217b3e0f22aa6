"""Requests and passages per minute for each caller: a sliding window, in this process's memory or shared in Redis."""

import logging
import math
import time
from typing import Any, Literal

from limits import RateLimitItemPerMinute
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import ConfigurationError
from limits.storage import storage_from_string

from rerank_service.config import RateLimitConfig
from rerank_service.errors import ConfigError, RateLimited
from rerank_service.http.envelope import rate_limit_headers

__all__ = ["RateLimits"]

logger = logging.getLogger(__name__)


class RateLimits:
    """Counts what each caller sends, with the library `limits`."""

    def __init__(self, config: RateLimitConfig) -> None:
        """Raises `ConfigError` if the storage's package is missing or its address is malformed."""
        per_minute = {"requests": config.requests_per_minute, "passages": config.passages_per_minute}
        self._limits = {
            what: RateLimitItemPerMinute(limit, namespace="rerank")
            for what, limit in per_minute.items()
            if limit is not None
        }
        self._limiter = SlidingWindowCounterRateLimiter(_storage(config.storage))

    async def close(self) -> None:
        """Closes the connection to Redis."""
        bridge = getattr(self._limiter.storage, "bridge", None)
        if bridge is not None:
            await bridge.storage.aclose()

    async def take(self, what: Literal["requests", "passages"], caller: str, count: int) -> dict[str, str]:
        """Counts `count` requests or passages of a caller. Returns headers for the answer; raises `RateLimited`."""
        limit = self._limits.get(what)
        if limit is None:
            return {}
        try:
            is_allowed = await self._limiter.hit(limit, what, caller, cost=count)
            window = await self._limiter.get_window_stats(limit, what, caller)
        except Exception as error:  # a broken storage must not stop the service
            logger.warning("rate limits are not enforced: their storage failed (%s)", type(error).__name__)
            return {}
        seconds = max(1, math.ceil(window.reset_time - time.time()))
        if not is_allowed:
            raise RateLimited(what, limit.amount, seconds)
        return rate_limit_headers(what, limit.amount, max(0, window.remaining), seconds)


def _storage(address: str) -> Any:
    options = {} if address.startswith("memory:") else {"implementation": "redispy"}
    try:
        return storage_from_string(f"async+{address}", wrap_exceptions=True, **options)
    except (ConfigurationError, ValueError) as error:
        raise ConfigError(f"rate_limits.storage {address}: {error}; for Redis install rerank-service[redis]") from None
