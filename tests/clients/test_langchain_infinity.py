"""Infinity's own generated client, unchanged."""

import math

import pytest
from infinity_client import Client
from infinity_client.api.default import rerank
from infinity_client.models import HTTPValidationError, RerankInput, ReRankResult

TOLERANCE = 1e-3


@pytest.mark.client("infinity-client 0.0.78", "Infinity")
def test_documents_come_back_best_first(url: str, query: str, texts: list[str], logits: list[float]) -> None:
    answer = rerank.sync(
        client=Client(base_url=url), body=RerankInput(query=query, documents=texts, return_documents=True, top_n=2)
    )

    assert isinstance(answer, ReRankResult)
    assert [one.index for one in answer.results] == [1, 2]
    assert [one.document for one in answer.results] == [texts[1], texts[2]]
    expected = [1 / (1 + math.exp(-logits[index])) for index in (1, 2)]
    assert [one.relevance_score for one in answer.results] == pytest.approx(expected, abs=TOLERANCE)
    assert answer.usage.total_tokens > 0


@pytest.mark.client("infinity-client 0.0.78", "Infinity")
def test_logits_are_returned_on_request_by_infinity(
    url: str, query: str, texts: list[str], logits: list[float]
) -> None:
    answer = rerank.sync(client=Client(base_url=url), body=RerankInput(query=query, documents=texts, raw_scores=True))

    assert isinstance(answer, ReRankResult)
    assert [one.relevance_score for one in answer.results] == pytest.approx(sorted(logits)[::-1], abs=TOLERANCE)


@pytest.mark.client("infinity-client 0.0.78", "Infinity")
def test_infinitys_client_reads_our_errors(url: str, query: str) -> None:
    answer = rerank.sync(client=Client(base_url=url), body=RerankInput(query=query, documents=[]))

    assert isinstance(answer, HTTPValidationError)
    assert [one.msg for one in answer.detail] == ["documents is empty; send at least one text"]
