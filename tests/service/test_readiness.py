"""An ingress reports that it is not ready while its only model has no replicas, and that it is ready again when
replicas return."""

import time

import httpx
from ray import serve

from tests.service.running import APART, CLIENT_TIMEOUT_S, LLAMA, Service


def test_an_ingress_without_replicas_is_not_ready_until_they_return(service: Service) -> None:
    with httpx.Client(base_url=service.keyed_url, timeout=CLIENT_TIMEOUT_S) as client:
        _wait_for(client, 200)
        try:
            serve.delete(APART)
            gone = _wait_for(client, 503)
        finally:
            service.deploy()
        back = _wait_for(client, 200)

    assert gone["message"] == "Service is not ready; no replica of any model answers"
    assert gone["unreachable"] == [LLAMA]
    assert back["message"] == "Service is ready."


def _wait_for(client: httpx.Client, status: int) -> dict[str, object]:
    deadline = time.monotonic() + CLIENT_TIMEOUT_S
    while (response := client.get("/v1/health/ready")).status_code != status:
        assert time.monotonic() < deadline, response.text
        time.sleep(0.2)
    answer: dict[str, object] = response.json()
    return answer
