"""Request headers on which Serve's proxy would otherwise act."""

import httpx
import pytest

from tests.service.running import LLAMA, assert_error, long_text, ranking_body

BODY = ranking_body(LLAMA, "which?", [f"{number} {long_text(60)}" for number in range(200)])


def test_a_clients_time_limit_ends_in_our_envelope(client: httpx.Client) -> None:
    response = client.post("/v1/ranking", json=BODY, headers={"x-request-timeout-seconds": "0.01"})
    assert "within 0.01 s" in assert_error(response, 504)["message"]


@pytest.mark.parametrize("value", ["0", "-1"])
def test_a_client_cannot_turn_the_time_limit_off(client: httpx.Client, value: str) -> None:
    response = client.post("/v1/ranking", json=BODY, headers={"x-request-timeout-seconds": value})
    assert assert_error(response, 400)["detail"][0]["loc"] == ["header", "x-request-timeout-seconds"]


def test_a_request_id_is_returned_unless_it_is_too_long(client: httpx.Client) -> None:
    assert client.get("/v1/models", headers={"x-request-id": "mine-7"}).headers["x-request-id"] == "mine-7"
    assert len(client.get("/v1/models", headers={"x-request-id": "x" * 5000}).headers["x-request-id"]) < 129
