"""On real Ray: one of two replicas fails every forward pass, and a model has no replica at all."""

import asyncio
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray import serve
from ray.serve.api import RunTarget, _run_many
from tests.load.poison import FragileEngine

from rerank_service.app import bind_app
from rerank_service.config import RerankConfig
from rerank_service.engine import EncodedPair, Engine
from rerank_service.replica import Replica
from tests.service.running import CLIENT_TIMEOUT_S, Service, assert_error, ranking_body

APPLICATION = "broken"
HALF_BROKEN, NOWHERE = "half/broken", "no/where"


class _BrokenEngine(FragileEngine):
    def launch(self, pairs: Sequence[EncodedPair]) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


class HalfBroken(Replica):
    """The first replica that starts is the broken one."""

    def load(self) -> Engine[Any]:
        try:
            os.close(os.open(f"{self._model.checkpoint.source}/broken", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return FragileEngine()
        return _BrokenEngine()


@pytest.fixture(scope="module")
def url(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("half_broken")
    checkpoint = {"source": str(folder)}
    models = [
        {
            "id": HALF_BROKEN,
            "checkpoint": checkpoint,
            "replica": {"num_cpus": 0.01},
            "autoscaling": {"min_replicas": 2, "max_replicas": 2},
        },
        {"id": NOWHERE, "checkpoint": checkpoint, "replica": {"num_cpus": 0.01, "resources": {"missing": 1}}},
    ]
    config = RerankConfig.model_validate({"models": models, "service": {"ingress": {"num_cpus": 0.01}}})
    target = RunTarget(bind_app(config, HalfBroken), name=APPLICATION, route_prefix=f"/{APPLICATION}")
    _run_many([target], wait_for_ingress_deployment_creation=True, wait_for_applications_running=False)
    yield f"{service.url}/{APPLICATION}"
    serve.delete(APPLICATION)


async def test_no_request_sees_the_broken_replica(service: Service, url: str) -> None:
    async with asyncio.timeout(CLIENT_TIMEOUT_S):
        while len(service.pids(APPLICATION, "half_broken")) < 2 or not service.pids(APPLICATION, "ingress"):
            await asyncio.sleep(0.2)
    statuses: Counter[int] = Counter()
    async with httpx.AsyncClient(timeout=CLIENT_TIMEOUT_S) as client:
        for _ in range(20):
            bodies = [ranking_body(HALF_BROKEN, "which?", [f"{number}"]) for number in range(10)]
            answers = await asyncio.gather(*(client.post(f"{url}/v1/ranking", json=body) for body in bodies))
            statuses.update(answer.status_code for answer in answers)
        metrics = (await client.get(f"{url}/v1/metrics")).text

    assert statuses == {200: 200}
    assert "rerank_retried_shards_total" in metrics  # the broken one was asked, and not often


async def test_a_model_without_a_replica_is_refused_and_not_hung(service: Service, url: str) -> None:
    async with asyncio.timeout(CLIENT_TIMEOUT_S):
        while not service.pids(APPLICATION, "ingress"):
            await asyncio.sleep(0.2)
    async with httpx.AsyncClient(timeout=CLIENT_TIMEOUT_S) as client:
        answer = await client.post(f"{url}/v1/ranking", json=ranking_body(NOWHERE, "which?", ["this"]))

    assert_error(answer, 503)  # after the limit of the request, which is 60 s, it would be 504
    assert answer.headers["retry-after"] == "1"
