"""Measures how long a small request waits behind a large one.

The small request is sent while the large one is being processed. A server that handles requests one after another
delays the small request by nearly the whole time of the large one; a fair server does not.
"""

import asyncio
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from rerank_service.tools.bench.apis import PreparedRequest
from rerank_service.tools.bench.load import Reply, post

__all__ = ["BIG_PASSAGES", "SmallBehindBig", "probe_small_behind_big"]

BIG_PASSAGES = 300
_HEAD_START_S = 0.2
_IDLE_REPEATS = 3
_TIMEOUT_S = 600


@dataclass(frozen=True)
class SmallBehindBig:
    """Latencies of one probe, in seconds."""

    small_alone_s: float
    """Median latency of the small request on an idle server."""

    small_s: float
    big_s: float

    @property
    def wait_share(self) -> float | None:
        """Wait of the small request as a share of the large request's time; null if the large request ended first."""
        if self.big_s <= _HEAD_START_S:
            return None
        return max(0.0, self.small_s - self.small_alone_s) / self.big_s


async def probe_small_behind_big(
    url: str, big: PreparedRequest, small: PreparedRequest, headers: Mapping[str, str] | None = None
) -> SmallBehindBig:
    """Sends `small` 0.2 s after `big`. Raises `RuntimeError` if either request fails."""
    async with httpx.AsyncClient(headers=headers, timeout=_TIMEOUT_S) as client:
        alone = [_latency_s(await post(client, url, small)) for _ in range(_IDLE_REPEATS)]
        running = asyncio.create_task(post(client, url, big))
        await asyncio.sleep(_HEAD_START_S)
        small_s = _latency_s(await post(client, url, small))
        big_s = _latency_s(await running)
    return SmallBehindBig(statistics.median(alone), small_s, big_s)


def _latency_s(answer: Reply) -> float:
    if not answer.is_ok:
        raise RuntimeError(
            f"the probe's request with {answer.num_passages} passages failed: {answer.status or 'no connection'}"
        )
    return answer.latency_s
