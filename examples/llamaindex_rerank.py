"""Ranks with LlamaIndex's NVIDIA reranker and this service; compared with NVIDIA's hosted service, only the base URL
differs.

pip install llama-index-postprocessor-nvidia-rerank
python examples/llamaindex_rerank.py --url http://127.0.0.1:8000
"""

import argparse
from pathlib import Path

import httpx
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.nvidia_rerank import NVIDIARerank

PASSAGES = Path(__file__).with_name("passages.txt").read_text(encoding="utf-8").splitlines()
QUESTION = "Why do the houses of Venice not rot away?"


def main() -> None:
    parser = argparse.ArgumentParser(description="Finds the best passages in passages.txt with LlamaIndex's reranker.")
    parser.add_argument("question", nargs="?", default=QUESTION)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of a running service")
    parser.add_argument("--model", help="default: the service's default model")
    arguments = parser.parse_args()

    # LlamaIndex prepends metadata to the text, except for the excluded keys.
    nodes = [
        NodeWithScore(node=TextNode(text=text, metadata={"line": number}, excluded_embed_metadata_keys=["line"]))
        for number, text in enumerate(PASSAGES, 1)
    ]
    with httpx.Client(timeout=60) as http_client:  # the default of httpx is 5 s
        reranker = NVIDIARerank(
            model=arguments.model, base_url=f"{arguments.url}/v1", top_n=3, truncate="END", http_client=http_client
        )
        best = reranker.postprocess_nodes(nodes, query_str=arguments.question)
    print(arguments.question)
    for node in best:
        print(f"{node.score:7.2f}  {node.text} [passages.txt:{node.metadata['line']}]")


if __name__ == "__main__":
    main()
