"""LangChain's document compressors for Cohere's, Jina's and Infinity's APIs, unchanged."""

from typing import Any

import pytest
from cohere.errors import NotFoundError
from infinity_client import Client
from langchain_cohere import CohereRerank
from langchain_community.document_compressors import InfinityRerank, JinaRerank, jina_rerank
from langchain_core.documents import Document

COHERE = "langchain-cohere 0.6.0, cohere 5.21.1"
JINA = "langchain-community 0.4.2, JinaRerank"
INFINITY = "langchain-community 0.4.2, InfinityRerank"


@pytest.fixture
def documents(texts: list[str]) -> list[Document]:
    return [Document(text, metadata={"kept": index}) for index, text in enumerate(texts)]


def assert_best(found: Any, documents: list[Document], best_first: list[tuple[str, Any]]) -> None:
    """Checks the best two of three documents, in order, with scores and metadata."""
    assert [(one.page_content, one.metadata["relevance_score"]) for one in found] == best_first[:2]
    assert [one.metadata["kept"] for one in found] == [1, 2]
    assert documents[1].metadata == {"kept": 1}


@pytest.mark.client(COHERE, "Cohere v2")
def test_cohere(url: str, query: str, documents: list[Document], best_first: list[tuple[str, Any]]) -> None:
    compressor = CohereRerank(base_url=url, model="rerank-v3.5", top_n=2, cohere_api_key="junk")
    assert_best(compressor.compress_documents(documents, query), documents, best_first)


@pytest.mark.client(COHERE, "Cohere v2")
def test_cohere_reads_our_errors(url: str, query: str, documents: list[Document]) -> None:
    compressor = CohereRerank(base_url=url, model="rerank-v9", cohere_api_key="junk")
    with pytest.raises(NotFoundError) as unknown:
        compressor.compress_documents(documents, query)
    assert unknown.value.body["message"].startswith("Unknown model 'rerank-v9'; this service has:")


@pytest.fixture
def jina_address(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces a constant, since the class has no parameter for the address."""
    monkeypatch.setattr(jina_rerank, "JINA_API_URL", f"{url}/v1/rerank")


@pytest.mark.client(JINA, "Jina")
@pytest.mark.usefixtures("jina_address")
def test_jina(query: str, documents: list[Document], best_first: list[tuple[str, Any]], model: str) -> None:
    compressor = JinaRerank(model=model, top_n=2, jina_api_key="junk")
    assert_best(compressor.compress_documents(documents, query), documents, best_first)


@pytest.mark.client(JINA, "Jina")
@pytest.mark.usefixtures("jina_address")
def test_jina_reads_our_errors(query: str, documents: list[Document], model: str) -> None:
    unknown = JinaRerank(jina_api_key="junk")
    with pytest.raises(RuntimeError, match="Unknown model 'jina-reranker-v1-base-en'; this service has"):
        unknown.compress_documents(documents, query)
    with pytest.raises(RuntimeError, match="query is blank; send a text"):
        JinaRerank(model=model, jina_api_key="junk").compress_documents(documents, " ")


@pytest.mark.client(INFINITY, "Infinity")
def test_infinity(
    url: str, query: str, documents: list[Document], best_first: list[tuple[str, Any]], model: str
) -> None:
    compressor = InfinityRerank(client=Client(base_url=url), model=model, top_n=2)
    assert_best(compressor.compress_documents(documents, query), documents, best_first)


@pytest.mark.client(INFINITY, "Infinity")
def test_infinity_ends_with_a_type_error_for_every_error(url: str, query: str, documents: list[Document]) -> None:
    """The compressor does not check the answer's type, so the user does not see the message."""
    compressor = InfinityRerank(client=Client(base_url=url), model="unknown")
    with pytest.raises(TypeError, match="'NoneType' object is not iterable"):
        compressor.compress_documents(documents, query)
    raising = InfinityRerank(client=Client(base_url=url, raise_on_unexpected_status=True), model="unknown")
    with pytest.raises(Exception, match="Unknown model 'unknown'; this service has"):
        raising.compress_documents(documents, query)
