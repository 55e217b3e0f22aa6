"""Limits of requests and passages per minute: callers, headers, shared storage, and failing storage."""

import asyncio
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.ports import free_port
from rerank_service.config import RateLimitConfig, RerankConfig
from rerank_service.errors import ConfigError, RateLimited
from rerank_service.http.access import RateLimits
from tests.programs import needs_program


async def test_counts_requests_of_each_caller() -> None:
    limits = RateLimits(RateLimitConfig(requests_per_minute=2))
    first = await limits.take("requests", "a", 1)
    assert first["X-RateLimit-Limit-Requests"] == "2"
    assert first["X-RateLimit-Remaining-Requests"] == "1"
    assert 1 <= int(first["X-RateLimit-Reset-Requests"]) <= 60
    await limits.take("requests", "a", 1)
    with pytest.raises(RateLimited, match="quota of 2 requests per minute is exhausted; retry after") as caught:
        await limits.take("requests", "a", 1)
    assert 1 <= caught.value.retry_after_s <= 60
    assert (await limits.take("requests", "b", 1))["X-RateLimit-Remaining-Requests"] == "1"


async def test_passages_of_a_refused_request_do_not_count() -> None:
    limits = RateLimits(RateLimitConfig(passages_per_minute=1000))
    await limits.take("passages", "a", 512)
    with pytest.raises(RateLimited, match="1000 passages"):
        await limits.take("passages", "a", 512)
    assert (await limits.take("passages", "a", 400))["X-RateLimit-Remaining-Passages"] == "88"


async def test_without_limits_there_are_no_headers() -> None:
    limits = RateLimits(RateLimitConfig())
    assert await limits.take("requests", "a", 1) == {}
    assert await limits.take("passages", "a", 512) == {}


async def test_requests_pass_while_the_storage_fails(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("redis")
    limits = RateLimits(RateLimitConfig(requests_per_minute=1, storage="redis://127.0.0.1:1/0"))
    for _ in range(3):
        assert await limits.take("requests", "a", 1) == {}
    assert "rate limits are not enforced" in caplog.text


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """URL of a real Redis."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            _wait_for_port(port)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert time.monotonic() < deadline
        time.sleep(0.05)


@needs_program("redis-server", "redis-server")
async def test_ingresses_share_their_counts_in_redis(redis_url: str) -> None:
    config = RateLimitConfig(requests_per_minute=3, passages_per_minute=600, storage=redis_url)
    one, other = RateLimits(config), RateLimits(config)

    for ingress in (one, other, one):
        await ingress.take("requests", "a", 1)
    with pytest.raises(RateLimited):
        await other.take("requests", "a", 1)
    assert (await other.take("requests", "b", 1))["X-RateLimit-Remaining-Requests"] == "2"
    await one.take("passages", "a", 512)
    with pytest.raises(RateLimited):
        await other.take("passages", "a", 100)
    await asyncio.gather(one.close(), other.close())


@needs_program("redis-server", "redis-server")
async def test_the_password_of_redis_comes_from_the_environment(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    redis = pytest.importorskip("redis")
    redis.from_url(redis_url).config_set("requirepass", "a secret")
    config = RateLimitConfig(requests_per_minute=3, storage=redis_url)

    without = RateLimits(config)
    assert await without.take("requests", "a", 1) == {}
    assert "rate limits are not enforced" in caplog.text

    monkeypatch.setenv("RERANK_SERVICE_REDIS_PASSWORD", "a secret")
    limits = RateLimits(config)
    assert (await limits.take("requests", "a", 1))["X-RateLimit-Remaining-Requests"] == "2"
    await asyncio.gather(without.close(), limits.close())


def test_redis_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "redis", None)
    with pytest.raises(ConfigError, match=r"rerank-service\[redis\]"):
        RateLimits(RateLimitConfig(requests_per_minute=1, storage="redis://127.0.0.1:6379/0"))


def test_a_limit_below_the_largest_request_is_refused() -> None:
    model = {"id": "m", "checkpoint": {"source": "/nowhere"}}
    with pytest.raises(ValueError, match=r"passages_per_minute 100 is less than limits\.max_passages 512"):
        RerankConfig.model_validate({"models": [model], "rate_limits": {"passages_per_minute": 100}})
