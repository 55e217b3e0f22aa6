"""Ranks with Haystack and a model in this process, without a service.

pip install haystack-ai
python examples/haystack_in_process.py
"""

import argparse
from dataclasses import replace
from pathlib import Path

from haystack import Document, Pipeline, component

from rerank_service import Reranker

PASSAGES = Path(__file__).with_name("passages.txt").read_text(encoding="utf-8").splitlines()
QUESTION = "What is put on roads against ice?"


@component
class InProcessRanker:
    """Keeps the `top_k` documents with the highest logits, and sets each document's score to its logit."""

    def __init__(self, reranker: Reranker, top_k: int = 3) -> None:
        self._reranker = reranker
        self._top_k = top_k

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, list[Document]]:
        ranking = self._reranker.rank(query, [one.content or "" for one in documents], top_n=top_k or self._top_k)
        return {"documents": [replace(documents[passage.index], score=passage.logit) for passage in ranking]}


def main() -> None:
    parser = argparse.ArgumentParser(description="Finds the best passages in passages.txt with Haystack.")
    parser.add_argument("question", nargs="?", default=QUESTION)
    parser.add_argument("--model", default="all-MiniLM-L6-v2", help="known model, ORG/NAME, or folder")
    arguments = parser.parse_args()

    documents = [Document(content=text, meta={"line": number}) for number, text in enumerate(PASSAGES, 1)]
    print(arguments.question)
    with Reranker(arguments.model) as reranker:
        pipeline = Pipeline()
        pipeline.add_component("ranker", InProcessRanker(reranker))
        answer = pipeline.run({"ranker": {"query": arguments.question, "documents": documents}})
    for document in answer["ranker"]["documents"]:
        print(f"{document.score:7.2f}  {document.content} [passages.txt:{document.meta['line']}]")


if __name__ == "__main__":
    main()
