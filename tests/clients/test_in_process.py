"""The adapters in `examples/` that rank in this process, with the real libraries. They need no service."""

import asyncio
import math
import runpy
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from haystack import Document, Pipeline
from langchain_core.documents import Document as Text
from llama_index.core.schema import NodeWithScore, TextNode

from rerank_service import Reranker

EXAMPLES = Path(__file__).parents[2] / "examples"
DIALECT = "none, in process"
LIMIT_S = 300
"""Time limit for a script that hangs."""


@pytest.fixture(scope="module")
def reranker() -> Iterator[Reranker]:
    with Reranker(device="cpu") as loaded:
        yield loaded


@pytest.fixture
def own_logits(reranker: Reranker, query: str, texts: list[str]) -> list[float]:
    return [float(logit) for logit in reranker.predict([(query, text) for text in texts])]


def adapter(script: str, name: str) -> Any:
    return runpy.run_path(str(EXAMPLES / script))[name]


def printed(script: str) -> list[str]:
    command = [sys.executable, str(EXAMPLES / script)]
    environment = {"PYTHONPATH": str(EXAMPLES.parent), "HAYSTACK_TELEMETRY_ENABLED": "False"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=LIMIT_S, env=environment)
    return done.stdout.splitlines()


def assert_best(found: Sequence[tuple[str, float | None]], texts: list[str], logits: list[float]) -> None:
    """Checks the best two of three passages, in order, with the exact logits."""
    assert found == [(texts[1], logits[1]), (texts[2], logits[2])]


@pytest.mark.client("langchain-core, BaseDocumentCompressor", DIALECT)
def test_langchain(reranker: Reranker, query: str, texts: list[str], own_logits: list[float]) -> None:
    compressor = adapter("langchain_in_process.py", "InProcessRerank")(reranker=reranker, top_n=2)
    documents = [Text(text, metadata={"kept": number}) for number, text in enumerate(texts)]

    best = compressor.compress_documents(documents, query)

    assert_best([(one.page_content, one.metadata["relevance_score"]) for one in best], texts, own_logits)
    assert [one.metadata["kept"] for one in best] == [1, 2]
    assert documents[1].metadata == {"kept": 1}


@pytest.mark.client("langchain-core, BaseDocumentCompressor", DIALECT)
def test_langchain_asynchronously(reranker: Reranker, query: str, texts: list[str]) -> None:
    compressor = adapter("langchain_in_process.py", "InProcessRerank")(reranker=reranker, top_n=1)
    (best,) = asyncio.run(compressor.acompress_documents([Text(text) for text in texts], query))
    assert best.page_content == texts[1]


@pytest.mark.client("llama-index-core, BaseNodePostprocessor", DIALECT)
def test_llamaindex(reranker: Reranker, query: str, texts: list[str], own_logits: list[float]) -> None:
    postprocessor = adapter("llamaindex_in_process.py", "InProcessRerank")(reranker=reranker, top_n=2)
    nodes = [NodeWithScore(node=TextNode(text=text), score=math.nan) for text in texts]

    best = postprocessor.postprocess_nodes(nodes, query_str=query)

    assert_best([(one.node.get_content(), one.score) for one in best], texts, own_logits)
    with pytest.raises(ValueError, match="a query is needed"):
        postprocessor.postprocess_nodes(nodes)


@pytest.mark.client("haystack-ai, component", DIALECT)
def test_haystack(reranker: Reranker, query: str, texts: list[str], own_logits: list[float]) -> None:
    pipeline = Pipeline()
    pipeline.add_component("ranker", adapter("haystack_in_process.py", "InProcessRanker")(reranker, top_k=3))
    documents = [Document(content=text, meta={"kept": number}) for number, text in enumerate(texts)]

    answer = pipeline.run({"ranker": {"query": query, "documents": documents, "top_k": 2}})

    best = answer["ranker"]["documents"]
    assert_best([(one.content, one.score) for one in best], texts, own_logits)
    assert [one.meta["kept"] for one in best] == [1, 2]


@pytest.mark.client("the scripts in examples/", DIALECT)
@pytest.mark.parametrize(
    ("script", "best"),
    [
        ("langchain_in_process.py", "Octopuses have three hearts"),
        ("llamaindex_in_process.py", "Venice stands on millions of wooden piles"),
        ("haystack_in_process.py", "Salt lowers the freezing point of water. Roads"),
    ],
)
def test_a_script_prints_the_three_best_passages(script: str, best: str) -> None:
    question, *lines = printed(script)
    assert question.endswith("?")
    assert len(lines) == 3
    assert best in lines[0]
