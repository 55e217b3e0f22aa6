"""How the shares of versions are kept, which ingresses follow them, and what ends a change."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from rerank_service.config import RerankConfig, VersionConfig
from rerank_service.routing import traffic_store
from rerank_service.routing.traffic import TrafficSplit
from rerank_service.routing.traffic_store import StoredTraffic, TrafficStore, follow
from rerank_service.telemetry.metrics import NoMetrics
from tests.fake_gcs import FakeGcs

CANARY = "canary"
_LIMIT_S = 30


@pytest.fixture(autouse=True)
def gcs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(traffic_store, "GcsClient", FakeGcs)
    monkeypatch.setattr(traffic_store, "_POLL_S", 0.001)
    FakeGcs.clusters.clear()
    yield
    FakeGcs.clusters.clear()


def shares(traffic_percent: float, name: str = CANARY) -> dict[str, VersionConfig]:
    return {name: VersionConfig(of="model", traffic_percent=traffic_percent)}


def split_of(traffic_percent: float) -> TrafficSplit:
    models = [
        {"id": "model", "checkpoint": {"source": "/a"}},
        {
            "id": CANARY,
            "checkpoint": {"source": "/b"},
            "version": {"of": "model", "traffic_percent": traffic_percent},
        },
    ]
    return TrafficSplit(RerankConfig.model_validate({"models": models}), lambda _: True, NoMetrics())


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(_LIMIT_S):
        while not holds():
            await asyncio.sleep(0.001)


class Following:
    """An ingress that follows the stored shares of the application `app`."""

    def __init__(self, traffic_percent: float) -> None:
        self.split, self.store = split_of(traffic_percent), TrafficStore("cluster")
        self._follower: asyncio.Future[None] | None = None

    @property
    def percent(self) -> float:
        return self.split.shares[CANARY].traffic_percent

    async def __aenter__(self) -> "Following":
        self._follower = asyncio.ensure_future(follow(self.split, self.store, "app"))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._follower is not None
        self._follower.cancel()
        with suppress(asyncio.CancelledError):
            await self._follower


def test_shares_are_kept_by_application() -> None:
    store, traffic = TrafficStore("cluster"), StoredTraffic(configured=shares(5), current=shares(20))
    assert store.read("app") is None

    store.write("app", traffic)
    store.write("other", StoredTraffic(configured={}, current={}))

    assert TrafficStore("cluster").read("app") == traffic
    assert store.applications() == ["app", "other"]
    assert TrafficStore("another cluster").applications() == []


def test_a_deployment_keeps_a_change_until_its_own_shares_change() -> None:
    store = TrafficStore("cluster")
    store.register("app", shares(5))
    store.write("app", StoredTraffic(configured=shares(5), current=shares(0)))  # a rollback

    store.register("app", shares(5))
    assert store.read("app") == StoredTraffic(configured=shares(5), current=shares(0))

    store.register("app", shares(10))
    assert store.read("app") == StoredTraffic(configured=shares(10), current=shares(10))


def test_what_another_release_stored_is_replaced() -> None:
    store = TrafficStore("cluster")
    FakeGcs.clusters["cluster"][b"rerank_service", b"traffic:app"] = b'{"shares": {}}'
    assert store.read("app") is None

    store.register("app", shares(5))
    assert store.read("app") == StoredTraffic(configured=shares(5), current=shares(5))


async def test_an_ingress_follows_changes() -> None:
    async with Following(5) as ingress:
        await until(lambda: ingress.store.read("app") is not None)
        assert ingress.percent == 5
        for percent in (50, 0):
            ingress.store.write("app", StoredTraffic(configured=shares(5), current=shares(percent)))
            await until(lambda expected=percent: ingress.percent == expected)


async def test_a_new_ingress_starts_with_the_current_shares() -> None:
    TrafficStore("cluster").write("app", StoredTraffic(configured=shares(5), current=shares(50)))
    async with Following(5) as ingress:
        await until(lambda: ingress.percent == 50)


async def test_an_old_ingress_ignores_the_shares_of_its_successor() -> None:
    async with Following(5) as old:
        await until(lambda: old.store.read("app") is not None)
        async with Following(30) as new:
            await until(lambda: (stored := new.store.read("app")) is not None and stored.configured == shares(30))
            new.store.write("app", StoredTraffic(configured=shares(30), current=shares(40)))
            await until(lambda: new.percent == 40)
            assert old.percent == 5


async def test_shares_stay_while_the_store_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    async with Following(5) as ingress:
        await until(lambda: ingress.store.read("app") is not None)
        ingress.store._gcs.is_down = True
        await until(lambda: "cannot read the shares of versions" in caplog.text)
        assert ingress.percent == 5
        ingress.store._gcs.is_down = False
        ingress.store.write("app", StoredTraffic(configured=shares(5), current=shares(50)))
        await until(lambda: ingress.percent == 50)
    assert caplog.text.count("cannot read the shares of versions") == 1
