"""Rerankers of frameworks and vector databases, unchanged: rerankers, Haystack for Jina, LanceDB, Agno and pymilvus."""

import asyncio
from pathlib import Path
from typing import Any

import cohere
import lancedb
import pytest
import voyageai
from agno.knowledge.document import Document as AgnoDocument
from agno.knowledge.reranker.cohere import CohereReranker as AgnoCohere
from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.rankers.jina import JinaRanker
from lancedb.rerankers import CohereReranker, JinaReranker, VoyageAIReranker, jinaai
from pymilvus.model.reranker import JinaRerankFunction, TEIRerankFunction, VoyageRerankFunction
from pymilvus.model.reranker import jinaai as pymilvus_jina
from rerankers import Reranker

RERANKERS = [
    pytest.param("cohere", "/v1/rerank", marks=pytest.mark.client("rerankers 0.10.0, cohere", "Cohere v1")),
    pytest.param("cohere", "/v2/rerank", marks=pytest.mark.client("rerankers 0.10.0, cohere", "Cohere v2")),
    pytest.param("jina", "/v1/rerank", marks=pytest.mark.client("rerankers 0.10.0, jina", "Jina")),
    pytest.param("voyage", "/v1/rerank", marks=pytest.mark.client("rerankers 0.10.0, voyage", "Voyage")),
    pytest.param(
        "text-embeddings-inference",
        "/rerank",
        marks=pytest.mark.client("rerankers 0.10.0, text-embeddings-inference", "TEI"),
    ),
]


@pytest.mark.parametrize(("provider", "path"), RERANKERS)
def test_rerankers(
    url: str, query: str, texts: list[str], best_first: list[tuple[str, Any]], model: str,
    provider: str, path: str,
) -> None:  # fmt: skip
    ranker = Reranker(model, model_type=provider, api_key="junk", url=f"{url}{path}", verbose=0)

    answer = ranker.rank(query, texts, doc_ids=["a", "b", "c"])

    assert [(one.text, one.score) for one in answer] == best_first
    assert [one.doc_id for one in answer] == ["b", "c", "a"]


@pytest.mark.client("rerankers 0.10.0, jina", "Jina")
def test_rerankers_hides_our_errors_behind_a_key_error(url: str, query: str, texts: list[str]) -> None:
    ranker = Reranker("unknown", model_type="jina", api_key="junk", url=f"{url}/v1/rerank", verbose=0)
    with pytest.raises(KeyError, match="results"):
        ranker.rank(query, texts)


def haystack_jina(url: str, model: str) -> JinaRanker:
    return JinaRanker(model=model, top_k=2, base_url=f"{url}/v1/rerank", api_key=Secret.from_token("junk"))


@pytest.mark.client("jina-haystack 2.0.1", "Jina")
def test_haystack_jina(url: str, query: str, texts: list[str], best_first: list[tuple[str, Any]], model: str) -> None:
    ranker = haystack_jina(url, model)
    documents = [Document(content=text) for text in texts]

    answer = ranker.run(query, documents)
    answer_async = asyncio.run(ranker.run_async(query, documents))

    for found in (answer, answer_async):
        assert [(one.content, one.score) for one in found["documents"]] == best_first[:2]
        assert found["meta"]["usage"]["total_tokens"] > 0


@pytest.mark.client("jina-haystack 2.0.1", "Jina")
def test_haystack_jina_reads_our_errors(url: str, query: str, texts: list[str]) -> None:
    with pytest.raises(RuntimeError, match="Unknown model 'unknown'; this service has"):
        haystack_jina(url, "unknown").run(query, [Document(content=text) for text in texts])


@pytest.fixture
def table(tmp_path: Path, texts: list[str]) -> Any:
    rows = [{"vector": [float(index), 1.0], "text": text} for index, text in enumerate(texts)]
    return lancedb.connect(tmp_path).create_table("passages", rows)


def searched(table: Any, reranker: Any, query: str) -> list[tuple[str, float]]:
    """Returns texts and scores of a vector search that LanceDB reranks."""
    found = table.search([0.0, 1.0]).limit(3).rerank(reranker=reranker, query_string=query).to_list()
    return [(row["text"], row["_relevance_score"]) for row in found]


@pytest.mark.client("lancedb 0.40.0, CohereReranker, cohere 7.3.1", "Cohere v1")
def test_lancedb_cohere(table: Any, query: str, best_first: list[tuple[str, Any]]) -> None:
    """The address is the environment variable CO_API_URL, which `make clients` sets."""
    assert searched(table, CohereReranker("rerank-v3.5", api_key="junk"), query) == best_first
    assert searched(table, CohereReranker("rerank-v3.5", top_n=1, api_key="junk"), query) == best_first[:1]


@pytest.mark.client("lancedb 0.40.0, CohereReranker, cohere 7.3.1", "Cohere v1")
def test_lancedb_cohere_reads_our_errors(table: Any, query: str) -> None:
    with pytest.raises(cohere.NotFoundError, match="Unknown model 'rerank-v9'; this service has"):
        searched(table, CohereReranker("rerank-v9", api_key="junk"), query)


@pytest.fixture
def jina_addresses(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces constants, since these classes have no parameter for the address."""
    monkeypatch.setattr(jinaai, "API_URL", f"{url}/v1/rerank")
    monkeypatch.setattr(pymilvus_jina, "API_URL", f"{url}/v1/rerank")


@pytest.mark.client("lancedb 0.40.0, JinaReranker", "Jina")
@pytest.mark.usefixtures("jina_addresses")
def test_lancedb_jina(table: Any, query: str, best_first: list[tuple[str, Any]], model: str) -> None:
    assert searched(table, JinaReranker(model, api_key="junk"), query) == best_first
    with pytest.raises(RuntimeError, match="Unknown model 'jina-reranker-v2-base-multilingual'; this service has"):
        searched(table, JinaReranker(api_key="junk"), query)


@pytest.mark.client("lancedb 0.40.0, VoyageAIReranker, voyageai 0.5.0", "Voyage")
def test_lancedb_voyage(table: Any, url: str, query: str, best_first: list[tuple[str, Any]], model: str) -> None:
    """The class has no parameter for the address; it uses the client that it holds."""
    reranker = VoyageAIReranker(model, api_key="junk")
    reranker._client = voyageai.Client(api_key="junk", base_url=f"{url}/v1")
    assert searched(table, reranker, query) == best_first


def agno_documents(texts: list[str]) -> list[AgnoDocument]:
    return [AgnoDocument(content=text) for text in texts]


@pytest.mark.client("agno 3.1.10, CohereReranker, cohere 7.3.1", "Cohere v1")
def test_agno(url: str, query: str, texts: list[str], best_first: list[tuple[str, Any]]) -> None:
    client = cohere.Client(api_key="junk", base_url=url)

    best = AgnoCohere(model="rerank-v3.5", cohere_client=client, top_n=2).rerank(query, agno_documents(texts))

    assert [(one.content, one.reranking_score) for one in best] == best_first[:2]


@pytest.mark.client("agno 3.1.10, CohereReranker, cohere 7.3.1", "Cohere v1")
def test_agno_logs_our_errors_and_keeps_the_order(
    url: str, query: str, texts: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agno.knowledge.reranker.cohere.logger.propagate", True)
    reranker = AgnoCohere(model="rerank-v9", cohere_client=cohere.Client(api_key="junk", base_url=url))

    kept = reranker.rerank(query, agno_documents(texts))

    assert [(one.content, one.reranking_score) for one in kept] == [(text, None) for text in texts]
    assert "Unknown model 'rerank-v9'; this service has" in caplog.text


PYMILVUS = "pymilvus.model 0.3.4"


@pytest.mark.client(f"{PYMILVUS}, TEIRerankFunction", "TEI")
def test_pymilvus_tei(url: str, query: str, texts: list[str], best_first: list[tuple[str, Any]]) -> None:
    ranker = TEIRerankFunction(url)
    assert [(one.text, one.score) for one in ranker(query, texts)] == best_first
    assert [one.index for one in ranker(query, texts)] == [1, 2, 0]
    with pytest.raises(RuntimeError, match="query is blank; send a text"):
        ranker(" ", texts)


@pytest.mark.client(f"{PYMILVUS}, VoyageRerankFunction, voyageai 0.5.0", "Voyage")
def test_pymilvus_voyage(url: str, query: str, texts: list[str], best_first: list[tuple[str, Any]], model: str) -> None:
    """The function has no parameter for the address; it uses the client that it holds."""
    ranker = VoyageRerankFunction(model, api_key="junk")
    ranker.client = voyageai.Client(api_key="junk", base_url=f"{url}/v1")

    assert [(one.text, one.score) for one in ranker(query, texts, top_k=2)] == best_first[:2]
    ranker.model_name = "rerank-2"
    with pytest.raises(voyageai.error.VoyageError, match="Unknown model 'rerank-2'; this service has"):
        ranker(query, texts)


@pytest.mark.client(f"{PYMILVUS}, JinaRerankFunction", "Jina")
@pytest.mark.usefixtures("jina_addresses")
def test_pymilvus_jina(query: str, texts: list[str], best_first: list[tuple[str, Any]], model: str) -> None:
    """The function reads the returned documents without asking for them."""
    ranker = JinaRerankFunction(model, api_key="junk")
    assert [(one.text, one.score) for one in ranker(query, texts, top_k=2)] == best_first[:2]
    ranker.model_name = "unknown"
    with pytest.raises(RuntimeError, match="Unknown model 'unknown'; this service has"):
        ranker(query, texts)
