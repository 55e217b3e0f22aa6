"""On real Ray: a replica that cannot compute like the others of its deployment does not start."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray import serve
from ray.serve.api import RunTarget, _run_many

from rerank_service.config import RerankConfig
from tests.load.mixed import build_app
from tests.service.running import CLIENT_TIMEOUT_S, Service, ranking_body

APPLICATION, MODEL, DEPLOYMENT = "mixed", "mixed/model", "mixed_model"


@pytest.fixture
async def folder(service: Service, config: RerankConfig, tmp_path: Path) -> AsyncIterator[Path]:
    model = config.models[0].model_dump(mode="json")
    own = {
        "id": MODEL,
        "aliases": [],
        "engine": {**model["engine"], "dtype": "auto"},
        "replica": {"num_cpus": 0.01, "graceful_shutdown_timeout_s": 1},
        "autoscaling": {"min_replicas": 2, "max_replicas": 2},
    }
    settings = {"models": [model | own], "service": {"ingress": {"num_cpus": 0.01}}}
    application = build_app({"settings": settings, "folder": str(tmp_path)})
    target = RunTarget(application, name=APPLICATION, route_prefix=f"/{APPLICATION}")
    await asyncio.to_thread(
        _run_many, [target], wait_for_ingress_deployment_creation=True, wait_for_applications_running=False
    )
    yield tmp_path
    await asyncio.to_thread(serve.delete, APPLICATION)


async def test_all_replicas_of_a_deployment_compute_alike(service: Service, folder: Path) -> None:
    async with asyncio.timeout(CLIENT_TIMEOUT_S), httpx.AsyncClient(base_url=f"{service.url}/{APPLICATION}") as client:
        while "set engine.dtype" not in (message := _message()):
            await asyncio.sleep(0.2)
        while not (running := service.pids(APPLICATION, DEPLOYMENT)):  # the first replica may still be loading
            await asyncio.sleep(0.2)
        refused = await _described(client)
        (folder / "all-are-strong").touch()
        while len(service.pids(APPLICATION, DEPLOYMENT)) < 2:
            await asyncio.sleep(0.2)
        for _ in range(5):
            assert await _described(client) == refused

    assert f"model {MODEL}, deployment {DEPLOYMENT} of application {APPLICATION}: " in message
    assert "can compute in float32 on cpu, but all of them compute in bfloat16 on cpu" in message
    assert len(running) == 1
    assert running < service.pids(APPLICATION, DEPLOYMENT)
    assert refused["precision"] == "bfloat16"
    assert refused["numerics"] == "bfloat16 on cpu"
    assert "milliseconds for one layer: float32 3, bfloat16 2" in refused["numerics_reason"]


def _message() -> str:
    """What `serve status` says about the deployment."""
    application = serve.status().applications[APPLICATION]
    deployment = application.deployments.get(DEPLOYMENT)
    return "" if deployment is None else deployment.message


async def _described(client: httpx.AsyncClient) -> dict[str, Any]:
    """What `/v1/metadata` says about the model after a ranking."""
    body = ranking_body(MODEL, "which?", ["this", "that"])
    while (await client.post("/v1/ranking", json=body, timeout=CLIENT_TIMEOUT_S)).status_code != 200:
        await asyncio.sleep(0.2)
    (model,) = (await client.get("/v1/metadata")).json()["modelInfo"]
    del model["start_seconds"]
    return dict(model)
