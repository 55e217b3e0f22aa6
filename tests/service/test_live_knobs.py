"""Batching settings change under a running replica: same process, new behaviour."""

import time
from typing import Any

import httpx

from tests.service.running import (
    CLIENT_TIMEOUT_S,
    KEY,
    LLAMA,
    Service,
    assert_error,
    long_text,
    ranking_body,
    serve_client,
)

_LIMIT_S = 120
_POLL_S = 0.1


def test_a_knob_is_turned_without_a_restart(service: Service) -> None:
    deployment = service.keyed_config.models[0].deployment_name
    batching = service.keyed_config.models[0].batching.model_dump(mode="json")
    pids = _pids(deployment)
    assert len(pids) == 1
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=service.keyed_url, headers=headers, timeout=CLIENT_TIMEOUT_S) as client:
        assert _rank(client).status_code == 200
        service.deploy([{"name": deployment, "user_config": batching | {"max_queued_tokens": 1}}])
        refused = _rank_until(client, 413)  # more tokens than the queue would ever hold
        assert assert_error(refused, 413)["detail"][0]["loc"] == ["body", "passages"]
        service.deploy()
        _rank_until(client, 200)
    assert _pids(deployment) == pids


def _rank(client: httpx.Client) -> httpx.Response:
    passages = [f"{number} {long_text(100)}" for number in range(200)]
    return client.post("/v1/ranking", json=ranking_body(LLAMA, "which?", passages))


def _rank_until(client: httpx.Client, status: int) -> httpx.Response:
    deadline = time.monotonic() + _LIMIT_S
    while (response := _rank(client)).status_code != status:
        assert time.monotonic() < deadline, response.text[:200]
        time.sleep(_POLL_S)
    return response


def _pids(deployment: str) -> set[int]:
    details: dict[str, Any] = serve_client().get_serve_details()
    return {replica["pid"] for replica in details["applications"]["keyed"]["deployments"][deployment]["replicas"]}
