"""Ranks with LlamaIndex and a model in this process, without a service.

pip install llama-index-core
python examples/llamaindex_in_process.py
"""

import argparse
from pathlib import Path
from typing import Any

from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode

from rerank_service import Reranker

PASSAGES = Path(__file__).with_name("passages.txt").read_text(encoding="utf-8").splitlines()
QUESTION = "Why do the houses of Venice not rot away?"


class InProcessRerank(BaseNodePostprocessor):
    """Keeps the `top_n` nodes with the highest logits, and sets each node's score to its logit."""

    reranker: Any
    top_n: int = 3

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ValueError("a query is needed to rank nodes")
        texts = [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
        ranking = self.reranker.rank(query_bundle.query_str, texts, top_n=self.top_n)
        return [NodeWithScore(node=nodes[passage.index].node, score=passage.logit) for passage in ranking]


def main() -> None:
    parser = argparse.ArgumentParser(description="Finds the best passages in passages.txt with LlamaIndex.")
    parser.add_argument("question", nargs="?", default=QUESTION)
    parser.add_argument("--model", default="all-MiniLM-L6-v2", help="known model, ORG/NAME, or folder")
    arguments = parser.parse_args()

    # LlamaIndex prepends metadata to the text, except for the excluded keys.
    nodes = [
        NodeWithScore(node=TextNode(text=text, metadata={"line": number}, excluded_embed_metadata_keys=["line"]))
        for number, text in enumerate(PASSAGES, 1)
    ]
    print(arguments.question)
    with Reranker(arguments.model) as reranker:
        for node in InProcessRerank(reranker=reranker).postprocess_nodes(nodes, query_str=arguments.question):
            print(f"{node.score:7.2f}  {node.text} [passages.txt:{node.metadata['line']}]")


if __name__ == "__main__":
    main()
