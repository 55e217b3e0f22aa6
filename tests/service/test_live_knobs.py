"""Settings change under running replicas: same process, new behaviour."""

import time
from collections import Counter

import httpx

from tests.service.running import (
    APART,
    CLIENT_TIMEOUT_S,
    KEY,
    LLAMA,
    Service,
    assert_error,
    long_text,
    ranking_body,
)

_LIMIT_S = 120
_POLL_S = 0.1


def test_a_knob_is_turned_without_a_restart(service: Service) -> None:
    (model,) = service.keyed_config.models
    batching = model.batching.model_dump(mode="json")
    pids = service.pids(APART, model.deployment_name)
    assert len(pids) == 1
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=service.keyed_url, headers=headers, timeout=CLIENT_TIMEOUT_S) as client:
        assert _rank(client).status_code == 200
        service.deploy(knobs=batching | {"max_queued_tokens": 1})
        refused = _rank_until(client, 413)  # more tokens than the queue would ever hold
        assert assert_error(refused, 413)["detail"][0]["loc"] == ["body", "passages"]
        service.deploy()
        _rank_until(client, 200)
    assert service.pids(APART, model.deployment_name) == pids


def test_a_model_with_an_application_of_its_own_outlives_a_change_of_the_others(service: Service) -> None:
    """And no request notices: the new ingress is there before the old one goes."""
    (model,) = service.keyed_config.models
    replicas, ingresses = service.pids(APART, model.deployment_name), service.pids("keyed", "ingress")
    headers = {"authorization": f"Bearer {KEY}"}
    statuses: Counter[int] = Counter()
    with httpx.Client(base_url=service.keyed_url, headers=headers, timeout=CLIENT_TIMEOUT_S) as client:
        service.deploy(keyed_aliases=["another-name"])
        deadline = time.monotonic() + _LIMIT_S
        while service.pids("keyed", "ingress") & ingresses or not service.pids("keyed", "ingress"):
            assert time.monotonic() < deadline
            statuses[client.post("/v1/ranking", json=ranking_body(LLAMA, "which?", ["this"])).status_code] += 1
        assert client.post("/v1/ranking", json=ranking_body("another-name", "which?", ["this"])).status_code == 200
    assert set(statuses) == {200}
    assert service.pids(APART, model.deployment_name) == replicas


def _rank(client: httpx.Client) -> httpx.Response:
    passages = [f"{number} {long_text(100)}" for number in range(200)]
    return client.post("/v1/ranking", json=ranking_body(LLAMA, "which?", passages))


def _rank_until(client: httpx.Client, status: int) -> httpx.Response:
    deadline = time.monotonic() + _LIMIT_S
    while (response := _rank(client)).status_code != status:
        assert time.monotonic() < deadline, response.text[:200]
        time.sleep(_POLL_S)
    return response
