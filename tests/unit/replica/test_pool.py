"""A pool's replica, without Serve's cache of models."""

import asyncio
import gc
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest

from rerank_service.config import CheckpointConfig, ModelConfig, PoolConfig
from rerank_service.engine.protocol import RunAlone
from rerank_service.errors import CheckpointError, DeviceFailed, EngineFailed, UnknownModel
from rerank_service.messages import Fitting, Shard, ShardScores
from rerank_service.replica import base, pool
from rerank_service.replica.pool import LoadedModel, PoolReplica
from tests.fetching import contents, hub_with, isolated_environment
from tests.models import local_model

SMALL = ModelConfig.model_validate({"id": "small", "checkpoint": {"source": "/small"}, "pool": "p"})


class OnePool(PoolReplica):
    """Replaces Serve's cache and keeps all models. Loads models when the test allows it."""

    def __init__(self, *models: ModelConfig) -> None:
        super().__init__(PoolConfig(name="p"), models or [SMALL])
        self.may_load = asyncio.Event()
        self.is_asked = asyncio.Event()
        self.has_loaded = asyncio.Event()
        self.cache: dict[str, LoadedModel] = {}

    async def loaded(self, model_id: str) -> LoadedModel:
        self.is_asked.set()
        await self.may_load.wait()
        if model_id not in self.cache:
            self.cache[model_id] = await self.load(model_id)
            self.has_loaded.set()
        return self.cache[model_id]


@pytest.fixture(autouse=True)
def _own_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "log_through_serve", lambda **_: None)


def shard(model: str) -> Shard:
    return Shard("r", model, "q", ("p",), (0,), Fitting(), 10, 10)


async def test_a_caller_that_disconnects_does_not_cancel_the_load(
    checkpoints: dict[str, Path], serve_context: None
) -> None:
    replica = OnePool(local_model(checkpoints["bert"], pool="p"))
    call = asyncio.ensure_future(replica.score(shard("bert")))
    await replica.is_asked.wait()

    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    replica.may_load.set()
    await replica.has_loaded.wait()

    assert isinstance(await replica.score(shard("bert")), ShardScores)
    assert len(replica.cache) == 1


async def test_an_unloaded_model_stays_in_the_count_of_offered_tokens(
    checkpoints: dict[str, Path], serve_context: None
) -> None:
    replica = OnePool(local_model(checkpoints["bert"], pool="p"))
    replica.may_load.set()
    await replica.score(shard("bert"))
    before = await replica.record_autoscaling_stats()

    await asyncio.to_thread(replica.cache.pop("bert").__del__)  # as Serve does

    after = await replica.record_autoscaling_stats()
    assert before["offered_tokens"] == after["offered_tokens"] > 0
    assert after["tokens_per_s"] == 0  # nothing is loaded


async def test_files_are_fetched_at_the_start_and_never_during_a_request(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with hub_with(contents(checkpoints["bert"])) as (hub, commit):
        isolated_environment(monkeypatch, tmp_path, hub.url)
        models = [
            ModelConfig(id=name, checkpoint=CheckpointConfig(source=source, revision=revision), pool="p")
            for name, source, revision in (("there", "org/tiny", commit), ("gone", "org/gone", "0" * 40))
        ]
        replica = PoolReplica(PoolConfig(name="p"), models)
        assert "cannot fetch model=gone" in caplog.text
        hub.put("org/gone", contents(checkpoints["bert"]))
        hub.seen.clear()

        await replica.load("there")
        with pytest.raises(EngineFailed, match="CheckpointError"):
            await replica.load("gone")
        assert not hub.seen
    assert "checkpoint.download is false" in caplog.text


async def test_a_model_of_another_pool_is_not_loaded() -> None:
    replica = OnePool()
    with pytest.raises(UnknownModel):
        await replica.score(shard("other"))
    assert not replica.is_asked.is_set()


async def test_a_model_that_cannot_be_loaded_leaves_the_replica_healthy(tmp_path: Path) -> None:
    model = ModelConfig.model_validate({"id": "gone", "checkpoint": {"source": str(tmp_path)}, "pool": "p"})
    replica = PoolReplica(PoolConfig(name="p"), [model])

    with pytest.raises(EngineFailed, match="CheckpointError"):
        await replica.load("gone")
    await replica.check_health()


async def test_a_device_lost_by_one_model_is_lost_for_all_models(monkeypatch: pytest.MonkeyPatch) -> None:
    replica = OnePool()

    def lose_device(*_: Any, **__: Any) -> Any:
        raise DeviceFailed("an illegal memory access was encountered")

    monkeypatch.setattr(pool, "load_engine", lose_device)
    with pytest.raises(DeviceFailed):
        await replica.load("small")

    with pytest.raises(DeviceFailed):
        await replica.check_health()
    with pytest.raises(DeviceFailed):
        await replica.score(shard("small"))


async def test_a_load_that_never_ends_makes_the_replica_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    replica, now, may_go_on = OnePool(), [1000.0], threading.Event()

    def never(*_: Any, **__: Any) -> Any:
        assert may_go_on.wait(60)
        raise CheckpointError("in the end")

    monkeypatch.setattr(pool, "load_engine", never)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    load = asyncio.ensure_future(replica.load("small"))
    await asyncio.sleep(0)

    for _ in range(900):
        await replica.check_health()
        now[0] += 1.0
    now[0] += 1.0
    with pytest.raises(EngineFailed, match="takes too long"):
        await replica.check_health()
    may_go_on.set()
    with pytest.raises(EngineFailed):
        await load
    await replica.check_health()


async def test_steps_that_need_the_gpu_alone_run_between_the_batches_of_other_models(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replica, threads = OnePool(), []

    def load(*_: Any, run_alone: RunAlone, **__: Any) -> Any:
        threads.append(threading.current_thread().name)
        for _ in range(2):  # such as the captures of two graphs
            run_alone(lambda: threads.append(threading.current_thread().name))
        raise CheckpointError("seen enough")

    monkeypatch.setattr(pool, "load_engine", load)
    with pytest.raises(EngineFailed):
        await replica.load("small")

    launching = replica._launch_thread.submit(lambda: threading.current_thread().name).result()
    assert threads[0].startswith("load")
    assert threads[1:] == [launching, launching]


class _RefersToItself:
    def __init__(self) -> None:
        self.itself = self


async def test_a_gpu_is_free_of_unloaded_models_before_the_next_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """As compiled layers do, the unloaded model refers to itself."""
    replica, in_memory = OnePool(), []
    replica._resources = replica._resources.model_copy(update={"num_gpus": 1})
    unloaded = _RefersToItself()
    weights = weakref.ref(unloaded)

    def load(*_: Any, **__: Any) -> Any:
        in_memory.append(weights() is not None)
        raise CheckpointError("seen enough")

    monkeypatch.setattr(pool, "load_engine", load)
    gc.disable()
    try:
        del unloaded
        assert weights() is not None
        with pytest.raises(EngineFailed):
            await replica.load("small")
    finally:
        gc.enable()
    assert in_memory == [False]
