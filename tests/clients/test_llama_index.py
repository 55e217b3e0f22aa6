"""LlamaIndex's own rerankers, unchanged."""

import pytest
import voyageai
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.postprocessor.cohere_rerank import CohereRerank
from llama_index.postprocessor.jinaai_rerank import JinaRerank
from llama_index.postprocessor.nvidia_rerank import NVIDIARerank
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference
from llama_index.postprocessor.voyageai_rerank import VoyageAIRerank

TOLERANCE = 1e-3


@pytest.fixture
def nodes(texts: list[str]) -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=text)) for text in texts]


def assert_best(found: list[NodeWithScore], texts: list[str], scores: list[float]) -> None:
    """Checks for the best two of three passages, in order."""
    assert [node.node.get_content() for node in found] == [texts[1], texts[2]]
    assert [node.score for node in found] == pytest.approx([scores[1], scores[2]], abs=TOLERANCE)


@pytest.mark.client("llama-index-postprocessor-nvidia-rerank 0.7.0", "NVIDIA")
def test_nvidia(
    url: str, query: str, nodes: list[NodeWithScore], texts: list[str], logits: list[float], model: str
) -> None:
    reranker = NVIDIARerank(base_url=f"{url}/v1", model=model, top_n=2, api_key="junk")
    assert_best(reranker.postprocess_nodes(nodes, QueryBundle(query)), texts, logits)


@pytest.mark.client("llama-index-postprocessor-cohere-rerank 0.10.0, cohere 6.1.0", "Cohere v2")
def test_cohere(url: str, query: str, nodes: list[NodeWithScore], texts: list[str], probabilities: list[float]) -> None:
    reranker = CohereRerank(base_url=url, model="rerank-v3.5", top_n=2, api_key="junk")
    assert_best(reranker.postprocess_nodes(nodes, QueryBundle(query)), texts, probabilities)


@pytest.mark.client("llama-index-postprocessor-jinaai-rerank 0.6.0", "Jina")
def test_jina(
    url: str, query: str, nodes: list[NodeWithScore], texts: list[str], probabilities: list[float], model: str
) -> None:
    reranker = JinaRerank(base_url=f"{url}/v1", model=model, top_n=2, api_key="junk")
    assert_best(reranker.postprocess_nodes(nodes, QueryBundle(query)), texts, probabilities)


@pytest.mark.client("llama-index-postprocessor-jinaai-rerank 0.6.0", "Jina")
def test_jina_reads_our_errors(url: str, query: str, nodes: list[NodeWithScore]) -> None:
    reranker = JinaRerank(base_url=f"{url}/v1", top_n=2, api_key="junk")
    with pytest.raises(RuntimeError, match="Unknown model 'jina-reranker-v1-base-en'; this service has"):
        reranker.postprocess_nodes(nodes, QueryBundle(query))


@pytest.mark.client("llama-index-postprocessor-tei-rerank 0.6.0", "TEI")
def test_tei(url: str, query: str, nodes: list[NodeWithScore], texts: list[str], probabilities: list[float]) -> None:
    reranker = TextEmbeddingInference(base_url=url, top_n=2)
    assert_best(reranker.postprocess_nodes(nodes, QueryBundle(query)), texts, probabilities)


VOYAGE = "llama-index-postprocessor-voyageai-rerank 0.6.0, voyageai 0.3.7"


def voyage(url: str, model: str) -> VoyageAIRerank:
    """Returns the reranker with another client, since it has no parameter for the address."""
    reranker = VoyageAIRerank(model=model, top_n=2, api_key="junk")
    reranker._client = voyageai.Client(api_key="junk", base_url=f"{url}/v1")
    return reranker


@pytest.mark.client(VOYAGE, "Voyage")
def test_voyage(
    url: str, query: str, nodes: list[NodeWithScore], texts: list[str], probabilities: list[float], model: str
) -> None:
    assert_best(voyage(url, model).postprocess_nodes(nodes, QueryBundle(query)), texts, probabilities)


@pytest.mark.client(VOYAGE, "Voyage")
def test_voyage_reads_our_errors(url: str, query: str, nodes: list[NodeWithScore]) -> None:
    with pytest.raises(voyageai.error.VoyageError, match=r"Unknown model 'rerank-2\.5'; this service has"):
        voyage(url, "rerank-2.5").postprocess_nodes(nodes, QueryBundle(query))
