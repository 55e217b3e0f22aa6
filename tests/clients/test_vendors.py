"""Cohere's, Voyage's, LiteLLM's and Haystack's own clients, unchanged."""

from typing import Any

import cohere
import litellm
import pytest
import voyageai
from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.rankers.cohere import CohereRanker
from haystack_integrations.components.rankers.nvidia import NvidiaRanker

BEST_FIRST = [1, 2, 0]
TOLERANCE = 1e-3
"""Largest difference between two logits of a pair: in int8, the other pairs of a batch may change a logit slightly."""


def assert_ranked(results: list[tuple[int, float]], expected: list[float]) -> None:
    """Checks the index and the score of every result, best first."""
    assert [index for index, _ in results] == BEST_FIRST[: len(results)]
    assert [score for _, score in results] == pytest.approx([expected[index] for index, _ in results], abs=TOLERANCE)


@pytest.mark.client("cohere 7.3.1, Client", "Cohere v1")
def test_cohere_v1(url: str, query: str, texts: list[str], probabilities: list[float]) -> None:
    client = cohere.Client(api_key="junk", base_url=url)

    answer = client.rerank(query=query, documents=texts, model="rerank-v3.5", top_n=2, return_documents=True)

    assert_ranked([(one.index, one.relevance_score) for one in answer.results], probabilities)
    assert [one.document.text for one in answer.results] == [texts[1], texts[2]]
    assert answer.id
    assert answer.meta.billed_units.search_units == 1


@pytest.mark.client("cohere 7.3.1, Client", "Cohere v1")
def test_cohere_v1_ranks_objects_by_fields(url: str, query: str, texts: list[str], probabilities: list[float]) -> None:
    client = cohere.Client(api_key="junk", base_url=url)
    documents: Any = [{"title": text} for text in texts]

    answer = client.rerank(query=query, documents=documents, rank_fields=["title"])

    assert_ranked([(one.index, one.relevance_score) for one in answer.results], probabilities)


@pytest.mark.client("cohere 7.3.1, ClientV2", "Cohere v2")
def test_cohere_v2(url: str, query: str, texts: list[str], probabilities: list[float]) -> None:
    client = cohere.ClientV2(api_key="junk", base_url=url)

    answer = client.rerank(model="rerank-v3.5", query=query, documents=texts, max_tokens_per_doc=100)

    assert_ranked([(one.index, one.relevance_score) for one in answer.results], probabilities)


@pytest.mark.client("cohere 7.3.1, ClientV2", "Cohere v2")
def test_cohere_v2_reads_our_errors(url: str, query: str, texts: list[str]) -> None:
    client = cohere.ClientV2(api_key="junk", base_url=url)
    with pytest.raises(cohere.NotFoundError) as unknown:
        client.rerank(model="rerank-v9", query=query, documents=texts)
    with pytest.raises(cohere.BadRequestError) as blank:
        client.rerank(model="rerank-v3.5", query=" ", documents=texts)

    assert unknown.value.body["message"].startswith("Unknown model 'rerank-v9'; this service has:")
    assert blank.value.body == {"message": "query is blank; send a text"}


@pytest.mark.client("voyageai 0.5.0", "Voyage")
def test_voyage(url: str, query: str, texts: list[str], model: str, probabilities: list[float]) -> None:
    client = voyageai.Client(api_key="junk", base_url=f"{url}/v1")

    answer = client.rerank(query, texts, model=model, top_k=2)

    assert_ranked([(one.index, one.relevance_score) for one in answer.results], probabilities)
    assert [one.document for one in answer.results] == [texts[1], texts[2]]
    assert answer.total_tokens > 0


@pytest.mark.client("voyageai 0.5.0", "Voyage")
def test_voyage_reads_our_errors(url: str, query: str, texts: list[str], model: str) -> None:
    client = voyageai.Client(api_key="junk", base_url=f"{url}/v1")
    with pytest.raises(voyageai.error.VoyageError, match=r"Unknown model 'rerank-2\.5'"):
        client.rerank(query, texts, model="rerank-2.5")
    with pytest.raises(voyageai.error.InvalidRequestError, match="exceeds maximum allowed token size 256"):
        client.rerank(query, ["word " * 1000], model=model, truncation=False)


LITELLM = [
    pytest.param("cohere", "", marks=pytest.mark.client("litellm 1.106.0, cohere", "Cohere v2")),
    pytest.param("cohere", "/v1/rerank", marks=pytest.mark.client("litellm 1.106.0, cohere", "Cohere v1")),
    pytest.param("jina_ai", "", marks=pytest.mark.client("litellm 1.106.0, jina_ai", "Jina")),
    pytest.param("infinity", "", marks=pytest.mark.client("litellm 1.106.0, infinity", "Infinity")),
    pytest.param("huggingface", "", marks=pytest.mark.client("litellm 1.106.0, huggingface", "TEI")),
    pytest.param("voyage", "", marks=pytest.mark.client("litellm 1.106.0, voyage", "Voyage")),
]


@pytest.mark.parametrize(("provider", "path"), LITELLM)
def test_litellm(
    url: str, query: str, texts: list[str], model: str, probabilities: list[float],
    provider: str, path: str,
) -> None:  # fmt: skip
    answer = litellm.rerank(
        model=f"{provider}/{model}", query=query, documents=texts, top_n=2, api_base=f"{url}{path}", api_key="junk"
    )
    assert_ranked([(one["index"], one["relevance_score"]) for one in answer.results], probabilities)
    assert [one["document"]["text"] for one in answer.results] == [texts[1], texts[2]]


@pytest.mark.client("litellm 1.106.0, hosted_vllm", "vLLM")
def test_litellm_vllm(url: str, query: str, texts: list[str], model: str, probabilities: list[float]) -> None:
    answer = litellm.rerank(
        model=f"hosted_vllm/{model}", query=query, documents=texts, top_n=2, return_documents=None, api_base=url
    )
    assert_ranked([(one["index"], one["relevance_score"]) for one in answer.results], probabilities)
    assert [one["document"]["text"] for one in answer.results] == [texts[1], texts[2]]


@pytest.mark.client("litellm 1.106.0, nvidia_nim", "NVIDIA")
def test_litellm_nvidia(url: str, query: str, texts: list[str], logits: list[float]) -> None:
    model = "nvidia_nim/nvidia/llama-3.2-nv-rerankqa-1b-v2"
    answer = litellm.rerank(model=model, query=query, documents=texts, api_base=url, api_key="junk")
    assert_ranked([(one["index"], one["relevance_score"]) for one in answer.results], logits)


@pytest.fixture
def documents(texts: list[str]) -> list[Document]:
    return [Document(content=text, meta={"index": index}) for index, text in enumerate(texts)]


def ranked(answer: dict[str, list[Document]]) -> list[tuple[int, float]]:
    return [(document.meta["index"], document.score or 0.0) for document in answer["documents"]]


@pytest.mark.client("nvidia-haystack 3.0.0", "NVIDIA")
def test_haystack_nvidia(url: str, query: str, documents: list[Document], logits: list[float], model: str) -> None:
    ranker = NvidiaRanker(model=model, api_url=f"{url}/v1", api_key=Secret.from_token("junk"))
    assert_ranked(ranked(ranker.run(query, documents)), logits)


@pytest.mark.client("cohere-haystack 11.0.0", "Cohere v2")
def test_haystack_cohere(url: str, query: str, documents: list[Document], probabilities: list[float]) -> None:
    ranker = CohereRanker(model="rerank-v3.5", api_key=Secret.from_token("junk"), api_base_url=url)
    assert_ranked(ranked(ranker.run(query, documents)), probabilities)
