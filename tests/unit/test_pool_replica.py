"""A pool's replica, less the engines and Serve's cache of models."""

import asyncio
from typing import Any

import pytest

from rerank_service import pool_replica
from rerank_service.config import ModelConfig, PoolConfig
from rerank_service.errors import UnknownModel
from rerank_service.fitting import Fitting
from rerank_service.pool_replica import PoolReplica
from rerank_service.shards import Shard


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


async def test_a_model_of_another_pool_is_not_loaded() -> None:
    pool = SlowlyLoading()
    with pytest.raises(UnknownModel):
        await pool.score(shard("other"))
    assert pool.placed == []
