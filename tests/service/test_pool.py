"""Two models on a replica that holds one at a time: each model is loaded for its requests and answers as if it were
alone."""

import asyncio

import httpx

from tests.service.running import (
    CLIENT_TIMEOUT_S,
    POOLED,
    Reference,
    Service,
    assert_ranked,
    long_text,
    ranking_body,
)

PASSAGES = [f"{number} {long_text(20)}" for number in range(12)]


async def test_models_of_a_pool_take_turns(service: Service, references: dict[str, Reference]) -> None:
    logits = {name: references[name].logits("which?", PASSAGES) for name in POOLED}
    assert logits[POOLED[0]] != logits[POOLED[1]]
    async with httpx.AsyncClient(base_url=service.url, timeout=CLIENT_TIMEOUT_S) as client:
        for name in (*POOLED, *POOLED):
            assert_ranked(await client.post("/v1/ranking", json=ranking_body(name, "which?", PASSAGES)), logits[name])


async def test_a_model_answers_its_requests_before_it_is_unloaded(
    service: Service, references: dict[str, Reference]
) -> None:
    logits = {name: references[name].logits("which?", PASSAGES) for name in POOLED}
    names = [POOLED[number % 2] for number in range(8)]
    async with httpx.AsyncClient(base_url=service.url, timeout=CLIENT_TIMEOUT_S) as client:
        bodies = [ranking_body(name, "which?", PASSAGES) for name in names]
        responses = await asyncio.gather(*(client.post("/v1/ranking", json=body) for body in bodies))

    for name, response in zip(names, responses, strict=True):
        assert_ranked(response, logits[name])
    (pid,) = service.pids("rerank", "pool_small")
    assert pid
