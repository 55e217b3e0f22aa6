"""LangChain's own client, unchanged, against the running service."""

from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_nvidia_ai_endpoints import NVIDIARerank

from tests.service.running import LLAMA, LOGIT_TOLERANCE, MINILM, MISTRAL, Reference, Service, long_text

QUERY = "how can I open a door?"
PASSAGES = ["Push the handle", "Ask for help", "Shout at it", "Lie down and wait"]


@pytest.mark.parametrize("model", [LLAMA, "nvidia/llama-nemotron-rerank-1b-v2", MISTRAL, MINILM])
def test_documents_come_back_in_the_order_of_the_model(
    service: Service, references: dict[str, Reference], model: str
) -> None:
    reference = references.get(model, references[LLAMA])
    ranker = _ranker(service, model=model, top_n=len(PASSAGES))
    _assert_compressed(ranker, reference, PASSAGES, top_n=len(PASSAGES))


def test_the_default_model_is_found_by_its_root(service: Service, references: dict[str, Reference]) -> None:
    with pytest.warns(UserWarning, match="Default model is set as"):
        ranker = _ranker(service)
    assert ranker.model == LLAMA
    _assert_compressed(ranker, references[LLAMA], PASSAGES, top_n=5)


def test_available_models_are_the_served_names(service: Service) -> None:
    available = _ranker(service, model=LLAMA).available_models
    assert [model.id for model in available] == [name for model in service.config.models for name in model.names]


def test_more_documents_than_a_batch_keep_their_order(service: Service, references: dict[str, Reference]) -> None:
    passages = [f"{number}. {PASSAGES[number % 4]}" for number in range(50)]
    ranker = _ranker(service, model=MISTRAL, max_batch_size=8, top_n=10)
    _assert_compressed(ranker, references[MISTRAL], passages, top_n=10)


async def test_the_asynchronous_client_ranks_too(service: Service, references: dict[str, Reference]) -> None:
    ranker = _ranker(service, model=LLAMA, top_n=2)
    compressed = await ranker.acompress_documents([Document(text) for text in PASSAGES], QUERY)
    assert [document.page_content for document in compressed] == _best(references[LLAMA], PASSAGES)[:2]


@pytest.mark.parametrize("key", ["", "nvapi-junk", "NO_API_KEY_PROVIDED"])
def test_any_key_is_accepted(service: Service, key: str) -> None:
    ranker = _ranker(service, model=LLAMA, api_key=key)
    assert len(ranker.compress_documents([Document(text) for text in PASSAGES], QUERY)) == 4


def test_truncate_reaches_the_model(service: Service, references: dict[str, Reference]) -> None:
    passages = [*PASSAGES, long_text(2000)]
    _assert_compressed(_ranker(service, model=LLAMA, truncate="END"), references[LLAMA], passages, top_n=5)
    with pytest.raises(Exception, match="exceeds maximum allowed"):
        _ranker(service, model=LLAMA, truncate="NONE").compress_documents([Document(text) for text in passages], QUERY)


def test_an_unknown_model_is_an_error_with_the_served_names(service: Service) -> None:
    with pytest.raises(Exception, match="this service has"):
        _ranker(service, model="nvidia/nobody").compress_documents([Document("x")], QUERY)


def _ranker(service: Service, **options: Any) -> NVIDIARerank:
    return NVIDIARerank(base_url=f"{service.url}/v1", usage_telemetry_enabled=False, **options)


def _assert_compressed(ranker: NVIDIARerank, reference: Reference, passages: list[str], *, top_n: int) -> None:
    compressed = ranker.compress_documents([Document(text, metadata={"kept": True}) for text in passages], QUERY)
    best = _best(reference, passages)[:top_n]
    assert [document.page_content for document in compressed] == best
    scores = [document.metadata["relevance_score"] for document in compressed]
    assert scores == pytest.approx(reference.logits(QUERY, best), abs=LOGIT_TOLERANCE)
    assert all(document.metadata["kept"] for document in compressed)


def _best(reference: Reference, passages: list[str]) -> list[str]:
    logits = reference.logits(QUERY, passages)
    return [passages[index] for index in sorted(range(len(passages)), key=lambda index: -logits[index])]
