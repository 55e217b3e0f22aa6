"""Settings and models change while replicas keep running."""

import time
from collections import Counter
from collections.abc import Callable

import httpx

from rerank_service.config import ModelConfig
from tests.service.running import (
    APART,
    CLIENT_TIMEOUT_S,
    KEY,
    LLAMA,
    MISTRAL,
    Reference,
    Service,
    assert_error,
    assert_ranked,
    long_text,
    ranking_body,
)

_LIMIT_S = 120
_POLL_S = 0.1
RARE = "rare"
"""Application of a model that has no replicas while idle."""
PASSAGES = [f"{number} {long_text(20)}" for number in range(12)]


def test_a_live_knob_changes_without_a_restart(service: Service) -> None:
    (model,) = service.keyed_config.models
    batching = model.batching.model_dump(mode="json")
    _wait_until(lambda: len(service.pids(APART, model.deployment_name)) == 1)
    pids = service.pids(APART, model.deployment_name)
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=service.keyed_url, headers=headers, timeout=CLIENT_TIMEOUT_S) as client:
        assert _rank(client).status_code == 200
        service.deploy(knobs=batching | {"max_queued_tokens": 1})
        refused = _rank_until(client, 413)  # the request has more tokens than the queue can hold
        assert assert_error(refused, 413)["detail"][0]["loc"] == ["body", "passages"]
        service.deploy()
        _rank_until(client, 200)
    assert service.pids(APART, model.deployment_name) == pids


def test_a_model_is_added_and_scales_from_zero(service: Service, references: dict[str, Reference]) -> None:
    """Requests to the existing model succeed throughout: its replica keeps running, and the new ingress starts before
    the old one stops. The added model has a replica only while it receives requests.
    """
    (model,) = service.keyed_config.models
    replicas, ingresses = service.pids(APART, model.deployment_name), service.pids("keyed", "ingress")
    rare = _rarely_used(service.config.models[1])
    headers = {"authorization": f"Bearer {KEY}"}
    statuses: Counter[int] = Counter()
    with httpx.Client(base_url=service.keyed_url, headers=headers, timeout=CLIENT_TIMEOUT_S) as client:
        service.deploy(more_models=[rare])

        def is_replaced() -> bool:
            statuses[client.post("/v1/ranking", json=ranking_body(LLAMA, "which?", ["this"])).status_code] += 1
            return bool(now := service.pids("keyed", "ingress")) and not now & ingresses

        _wait_until(is_replaced)
        for _ in range(2):
            _wait_until(lambda: not service.pids(RARE, rare.deployment_name))
            response = client.post("/v1/ranking", json=ranking_body(rare.id, "which?", PASSAGES))
            assert_ranked(response, references[MISTRAL].logits("which?", PASSAGES))
            assert service.pids(RARE, rare.deployment_name)
        service.deploy()
    assert set(statuses) == {200}
    assert service.pids(APART, model.deployment_name) == replicas


def _rarely_used(model: ModelConfig) -> ModelConfig:
    settings = model.model_dump(exclude_unset=True) | {
        "id": "rare/model",
        "aliases": (),
        "application": RARE,
        "autoscaling": {"min_replicas": 0, "downscale_delay_s": 4},  # longer than a look at the replicas takes
    }
    return ModelConfig.model_validate(settings)


def _wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LIMIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(_POLL_S)


def _rank(client: httpx.Client) -> httpx.Response:
    passages = [f"{number} {long_text(100)}" for number in range(200)]
    return client.post("/v1/ranking", json=ranking_body(LLAMA, "which?", passages))


def _rank_until(client: httpx.Client, status: int) -> httpx.Response:
    deadline = time.monotonic() + _LIMIT_S
    while (response := _rank(client)).status_code != status:
        assert time.monotonic() < deadline, response.text[:200]
        time.sleep(_POLL_S)
    return response
