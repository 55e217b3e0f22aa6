"""Ranks with LangChain and a model in this process, without a service.

pip install langchain-core
python examples/langchain_in_process.py
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document

from rerank_service import Reranker

PASSAGES = Path(__file__).with_name("passages.txt").read_text(encoding="utf-8").splitlines()
QUESTION = "Which animal has more than one heart?"


class InProcessRerank(BaseDocumentCompressor):
    """Keeps the `top_n` documents with the highest logits, and adds each logit to its document's metadata."""

    reranker: Any
    top_n: int = 3

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        ranking = self.reranker.rank(query, [document.page_content for document in documents], top_n=self.top_n)
        chosen = [(documents[passage.index], passage.logit) for passage in ranking]
        return [
            document.model_copy(update={"metadata": {**document.metadata, "relevance_score": logit}})
            for document, logit in chosen
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Finds the best passages in passages.txt with LangChain.")
    parser.add_argument("question", nargs="?", default=QUESTION)
    parser.add_argument("--model", default="all-MiniLM-L6-v2", help="known model, ORG/NAME, or folder")
    arguments = parser.parse_args()

    documents = [Document(text, metadata={"line": number}) for number, text in enumerate(PASSAGES, 1)]
    print(arguments.question)
    with Reranker(arguments.model) as reranker:
        for document in InProcessRerank(reranker=reranker).compress_documents(documents, arguments.question):
            score, line = document.metadata["relevance_score"], document.metadata["line"]
            print(f"{score:7.2f}  {document.page_content} [passages.txt:{line}]")


if __name__ == "__main__":
    main()
