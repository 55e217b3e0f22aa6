"""On real Ray: one of two replicas loses its device, and another model has no replica at all."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from ray import serve
from ray.serve.api import RunTarget, _run_many

from rerank_service.config import RerankConfig
from tests.load.faulty import Fault, break_one, broken_pid, build_app
from tests.service.running import (
    CLIENT_TIMEOUT_S,
    Reference,
    Service,
    assert_error,
    assert_ranked,
    ranking_body,
)

APPLICATION = "broken"
PAIRED, NOWHERE = "broken/paired", "no/where"


@dataclass(frozen=True)
class Broken:
    """An application whose replicas can be broken."""

    url: str
    faults: Path
    source: str
    """Id of the model with the expected logits."""


@pytest.fixture(scope="module")
def broken(service: Service, config: RerankConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broken]:
    faults, model = tmp_path_factory.mktemp("faults"), config.models[0].model_dump(mode="json")
    replica = {"num_cpus": 0.01, "graceful_shutdown_timeout_s": 1}
    models = [
        model
        | {"id": PAIRED, "aliases": [], "replica": replica, "autoscaling": {"min_replicas": 2, "max_replicas": 2}},
        model | {"id": NOWHERE, "aliases": [], "replica": replica | {"resources": {"missing": 1}}},
    ]
    settings = {"models": models, "service": {"ingress": {"num_cpus": 0.01}}}
    application = build_app({"settings": settings, "faults": str(faults), "tokens_per_s": None})
    target = RunTarget(application, name=APPLICATION, route_prefix=f"/{APPLICATION}")
    _run_many([target], wait_for_ingress_deployment_creation=True, wait_for_applications_running=False)
    yield Broken(f"{service.url}/{APPLICATION}", faults, config.models[0].id)
    serve.delete(APPLICATION)


async def test_no_request_fails_when_a_replica_loses_its_device(
    service: Service, broken: Broken, references: dict[str, Reference]
) -> None:
    await _until_running(service, "broken_paired", 2)
    statuses: Counter[int] = Counter()
    passages = ["the bread", "the river"]
    logits = references[broken.source].logits("which?", passages)

    async with httpx.AsyncClient(timeout=CLIENT_TIMEOUT_S) as client:

        async def ask() -> None:
            answer = await client.post(f"{broken.url}/v1/ranking", json=ranking_body(PAIRED, "which?", passages))
            statuses[answer.status_code] += 1
            if answer.status_code == 200:
                assert_ranked(answer, logits)

        break_one(broken.faults, Fault.STICKY)
        async with asyncio.timeout(CLIENT_TIMEOUT_S):
            while broken_pid(broken.faults, Fault.STICKY) is None:
                await asyncio.gather(*(ask() for _ in range(10)))
        for _ in range(20):
            await asyncio.gather(*(ask() for _ in range(10)))
        metrics = (await client.get(f"{broken.url}/v1/metrics")).text

    assert statuses.keys() == {200}, statuses
    (retried,) = [line for line in metrics.splitlines() if line.startswith("rerank_retried_shards_total{")]
    assert float(retried.split()[-1]) >= 1


async def test_a_model_without_a_replica_is_refused(service: Service, broken: Broken) -> None:
    await _until_running(service, "ingress", 1)
    async with httpx.AsyncClient(timeout=CLIENT_TIMEOUT_S) as client:
        answer = await client.post(f"{broken.url}/v1/ranking", json=ranking_body(NOWHERE, "which?", ["this"]))

    assert_error(answer, 503)  # at the request's time limit of 60 s the status would be 504
    assert answer.headers["retry-after"] == "1"


async def _until_running(service: Service, deployment: str, count: int) -> None:
    async with asyncio.timeout(CLIENT_TIMEOUT_S):
        while len(service.pids(APPLICATION, deployment)) < count:
            await asyncio.sleep(0.2)
