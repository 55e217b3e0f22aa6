"""Many requests at once: each receives its own ranking, whatever other clients do."""

import asyncio
import json
import random
from typing import Any, NamedTuple

import httpx
import pytest

from tests.service.running import (
    CLIENT_TIMEOUT_S,
    LLAMA,
    MINILM,
    Reference,
    Service,
    assert_error,
    assert_ranked,
    long_text,
    ranking_body,
)

QUERIES = ["how can I open a door?", "Was ist die Hauptstadt von Japan?", "x"]
PASSAGES = [f"{number}. {'Push the handle. ' * (number % 8)}" for number in range(56)]
PASSAGES += [long_text(words) for words in (100, 150, 200, 700)]
NUM_REQUESTS = 200


class _Call(NamedTuple):
    """A request, and its expected logits or its expected status."""

    body: dict[str, Any]
    logits: list[float] | None = None
    status: int = 200

    def check(self, response: httpx.Response) -> None:
        if self.logits is None:
            assert_error(response, self.status)
        else:
            assert_ranked(response, self.logits)


@pytest.fixture(scope="module")
def calls(references: dict[str, Reference]) -> list[_Call]:
    """Mixed calls in a fixed random order; about one in six is invalid."""
    logits = {
        (model, query): reference.logits(query, PASSAGES)
        for model, reference in references.items()
        for query in QUERIES
    }
    return [_random_call(random.Random(seed), logits) for seed in range(NUM_REQUESTS)]


async def test_two_hundred_mixed_requests_at_once(service: Service, calls: list[_Call]) -> None:
    async with _client(service) as client:
        responses = await asyncio.gather(*(client.post("/v1/ranking", json=call.body) for call in calls))
    for call, response in zip(calls, responses, strict=True):
        call.check(response)


async def test_clients_that_disconnect_do_not_affect_others(service: Service, calls: list[_Call]) -> None:
    stayers = calls[:40]
    body = ranking_body(LLAMA, QUERIES[0], PASSAGES * 8)
    async with _client(service) as client:
        leavers = asyncio.gather(*(_leave(client, service.port, body, sent) for sent in (0.0, 0.5, 1.0, 1.0) * 5))
        responses = await asyncio.gather(*(client.post("/v1/ranking", json=call.body) for call in stayers))
        await leavers
        for call, response in zip(stayers, responses, strict=True):
            call.check(response)
        for call in stayers:
            call.check(await client.post("/v1/ranking", json=call.body))


async def test_a_small_request_overtakes_a_large_one(service: Service) -> None:
    large = ranking_body(MINILM, QUERIES[0], [f"{number} {long_text(20)}" for number in range(512)])
    small = ranking_body(MINILM, QUERIES[0], PASSAGES[:3])
    is_sent = asyncio.Event()

    async def trace(event: str, _: object) -> None:
        if event == "http11.send_request_body.complete":
            is_sent.set()

    async with _client(service) as client, asyncio.TaskGroup() as tasks:
        request = client.post("/v1/ranking", json=large, extensions={"trace": trace})
        running = tasks.create_task(request)
        await is_sent.wait()
        for _ in range(3):  # one after another, while the large request runs
            response = await client.post("/v1/ranking", json=small)
            assert response.status_code == 200
            assert not running.done()
        assert (await running).status_code == 200


def _random_call(rng: random.Random, logits: dict[tuple[str, str], list[float]]) -> _Call:
    model, query = rng.choice(sorted(logits))
    indices = rng.choices(range(len(PASSAGES)), k=rng.choice([1, 1, 2, 5, 10, 30, 60]))
    body = ranking_body(model, query, [PASSAGES[index] for index in indices])
    wrong = {
        "query": _Call(body | {"query": {"text": " "}}, status=400),
        "passages": _Call(body | {"passages": []}, status=400),
        "model": _Call(body | {"model": "nobody"}, status=404),
        "length": _Call(
            body | {"passages": [*body["passages"], {"text": PASSAGES[-1]}], "truncate": "NONE"}, status=400
        ),
    }
    if rng.random() < 1 / 6:
        return wrong[rng.choice(list(wrong))]
    return _Call(body, [logits[model, query][index] for index in indices])


async def _leave(client: httpx.AsyncClient, port: int, body: dict[str, Any], sent: float) -> None:
    """Sends this share of a request, waits until another request is answered, and closes the connection."""
    payload = json.dumps(body).encode()
    head = f"POST /v1/ranking HTTP/1.1\r\nHost: x\r\nContent-Length: {len(payload)}\r\n\r\n"
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + payload[: int(sent * len(payload))])
    await writer.drain()
    meanwhile = await client.post("/v1/ranking", json=body | {"passages": body["passages"][:1]})
    assert meanwhile.status_code == 200
    writer.close()
    await writer.wait_closed()


def _client(service: Service) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=service.url, timeout=CLIENT_TIMEOUT_S, limits=limits)
