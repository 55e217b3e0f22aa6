"""A pool's replica, less the engines and Serve's cache of models."""

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rerank_service.config import CheckpointConfig, ModelConfig, PoolConfig
from rerank_service.errors import CheckpointError, DeviceFailed, EngineFailed, UnknownModel
from rerank_service.messages import Fitting, Shard
from rerank_service.replica import pool as pool_replica
from rerank_service.replica.pool import PoolReplica
from tests.fetching import contents, hub_with, isolated_environment


class SlowlyLoading(PoolReplica):
    """Loads when the test says so; remembers what was loaded."""

    def __init__(self) -> None:
        model = ModelConfig.model_validate({"id": "small", "checkpoint": {"source": "/small"}, "pool": "p"})
        super().__init__(PoolConfig(name="p"), [model])
        self.may_load = asyncio.Event()
        self.placed: list[str] = []

    async def _place(self, model_id: str) -> Any:
        await self.may_load.wait()
        self.placed.append(model_id)


@pytest.fixture(autouse=True)
def _own_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_replica, "log_through_serve", lambda **_: None)


def shard(model: str) -> Shard:
    return Shard("r", model, "q", ("p",), (0,), Fitting(), 10, 10)


async def test_a_caller_that_leaves_does_not_take_back_the_load() -> None:
    pool = SlowlyLoading()
    call = asyncio.ensure_future(pool.score(shard("small")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    pool.may_load.set()
    await asyncio.sleep(0.01)

    assert pool.placed == ["small"]


def test_files_are_fetched_at_the_start_and_never_during_a_request(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with hub_with(contents(checkpoints["bert"])) as (hub, commit):
        isolated_environment(monkeypatch, tmp_path, hub.url)
        models = [
            ModelConfig(id=name, checkpoint=CheckpointConfig(source=source, revision=revision), pool="p")
            for name, source, revision in (("there", "org/tiny", commit), ("gone", "org/gone", "0" * 40))
        ]
        pool = PoolReplica(PoolConfig(name="p"), models)
        hub.put("org/gone", contents(checkpoints["bert"]))
        hub.seen.clear()

        pool._load_in_own_thread(pool._models["there"])
        with pytest.raises(CheckpointError, match="downloading is off here"):
            pool._load_in_own_thread(pool._models["gone"])
        assert not hub.seen
    assert "cannot fetch model=gone" in caplog.text


async def test_a_model_of_another_pool_is_not_loaded() -> None:
    pool = SlowlyLoading()
    with pytest.raises(UnknownModel):
        await pool.score(shard("other"))
    assert pool.placed == []


async def test_a_model_that_cannot_be_loaded_leaves_the_replica_well(tmp_path: Path) -> None:
    model = ModelConfig.model_validate({"id": "gone", "checkpoint": {"source": str(tmp_path)}, "pool": "p"})
    pool = PoolReplica(PoolConfig(name="p"), [model])

    with pytest.raises(EngineFailed, match="CheckpointError"):
        await pool._load("gone")
    await pool.check_health()


async def test_a_device_that_one_model_loses_is_lost_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = SlowlyLoading()

    def lose_device(*_: Any) -> Any:
        raise DeviceFailed("an illegal memory access was encountered")

    monkeypatch.setattr(pool_replica, "load_engine", lose_device)
    with pytest.raises(DeviceFailed):
        await pool._load("small")

    with pytest.raises(DeviceFailed):
        await pool.check_health()
    with pytest.raises(DeviceFailed):
        await pool.score(shard("small"))


async def test_a_load_that_never_ends_is_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, now, may_go_on = SlowlyLoading(), [1000.0], threading.Event()

    def never(*_: Any) -> Any:
        assert may_go_on.wait(60)
        raise CheckpointError("in the end")

    monkeypatch.setattr(pool_replica, "load_engine", never)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    load = asyncio.ensure_future(pool._load("small"))
    await asyncio.sleep(0)

    for _ in range(900):
        await pool.check_health()
        now[0] += 1.0
    now[0] += 1.0
    with pytest.raises(EngineFailed, match="does not end"):
        await pool.check_health()
    may_go_on.set()
    with pytest.raises(EngineFailed):
        await load
    await pool.check_health()
