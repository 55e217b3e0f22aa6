"""The Python client against the running service: cases that need Serve's proxy and replicas."""

import pytest

from rerank_service.client import AsyncClient, AuthenticationError, Client, ModelNotFoundError
from tests.service.running import KEY, LLAMA, LOGIT_TOLERANCE, MISTRAL, Reference, Service

PASSAGES = [f"{number} of {number % 50} and more" for number in range(600)]


@pytest.fixture(scope="module")
def expected(references: dict[str, Reference]) -> list[float]:
    return references[LLAMA].logits("which number?", PASSAGES)


def test_more_passages_than_a_request_allows_are_ranked(service: Service, expected: list[float]) -> None:
    with Client(service.url, model=LLAMA, timeout_s=200) as client:
        ranking = client.rank("which number?", PASSAGES)

    assert sorted(passage.index for passage in ranking) == list(range(600))
    assert [p.logit for p in ranking] == pytest.approx([expected[p.index] for p in ranking], abs=LOGIT_TOLERANCE)
    assert [p.logit for p in ranking] == sorted((p.logit for p in ranking), reverse=True)
    assert ranking.timings_ms["forward"] > 0


async def test_the_asynchronous_client_ranks_the_same(service: Service, expected: list[float]) -> None:
    async with AsyncClient(service.url, model=LLAMA, timeout_s=200) as client:
        ranking = await client.rank("which number?", PASSAGES, top_n=10)

    best = sorted(expected, reverse=True)[:10]
    assert [passage.logit for passage in ranking] == pytest.approx(best, abs=LOGIT_TOLERANCE)


def test_keys_and_models(service: Service) -> None:
    with Client(service.keyed_url, api_key=KEY) as client:
        assert len(client.rank("q", PASSAGES[:3])) == 3
        with pytest.raises(ModelNotFoundError, match=LLAMA):
            client.rank("q", PASSAGES[:3], model=MISTRAL)
    with Client(service.keyed_url, api_key="wrong") as client, pytest.raises(AuthenticationError):
        client.rank("q", PASSAGES[:3])
