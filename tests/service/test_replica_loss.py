"""No request is lost when a replica is killed during its work."""

import asyncio
import os
import signal

import httpx

from tests.service.running import (
    APART,
    CLIENT_TIMEOUT_S,
    KEY,
    LLAMA,
    Reference,
    Service,
    assert_ranked,
    long_text,
    ranking_body,
)

NUM_REQUESTS = 12
PASSAGES = [f"{number} {long_text(60)}" for number in range(80)]


async def test_requests_of_a_killed_replica_are_answered(service: Service, references: dict[str, Reference]) -> None:
    logits = references[LLAMA].logits("which?", PASSAGES)
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=service.keyed_url, headers=headers, timeout=CLIENT_TIMEOUT_S) as client:
        body = ranking_body(LLAMA, "which?", PASSAGES)
        requests = [asyncio.ensure_future(client.post("/v1/ranking", json=body)) for _ in range(NUM_REQUESTS)]
        await asyncio.wait(requests, return_when=asyncio.FIRST_COMPLETED)  # the others are queued or in transit
        (pid,) = service.pids(APART, service.keyed_config.models[0].deployment_name)
        assert sum(request.done() for request in requests) < NUM_REQUESTS
        os.kill(pid, signal.SIGKILL)
        responses = await asyncio.gather(*requests)

    for response in responses:
        assert_ranked(response, logits)
    async with asyncio.timeout(CLIENT_TIMEOUT_S):  # the controller notices the loss by a health check
        while pid in service.pids(APART, service.keyed_config.models[0].deployment_name):
            await asyncio.sleep(0.1)
