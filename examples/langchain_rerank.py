"""Ranks with LangChain's NVIDIA reranker and this service; compared with NVIDIA's hosted service, only the base URL
differs.

pip install langchain-nvidia-ai-endpoints
python examples/langchain_rerank.py --url http://127.0.0.1:8000
"""

import argparse
from pathlib import Path

from langchain_core.documents import Document
from langchain_nvidia_ai_endpoints import NVIDIARerank

PASSAGES = Path(__file__).with_name("passages.txt").read_text(encoding="utf-8").splitlines()
QUESTION = "Which animal has more than one heart?"


def main() -> None:
    parser = argparse.ArgumentParser(description="Finds the best passages in passages.txt with LangChain's reranker.")
    parser.add_argument("question", nargs="?", default=QUESTION)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of a running service")
    parser.add_argument("--model", help="default: the service's default model")
    arguments = parser.parse_args()

    documents = [Document(text, metadata={"line": number}) for number, text in enumerate(PASSAGES, 1)]
    named = {"model": arguments.model} if arguments.model else {}
    reranker = NVIDIARerank(
        base_url=f"{arguments.url}/v1",
        top_n=3,
        usage_telemetry_enabled=False,  # sends no telemetry to NVIDIA
        **named,
    )
    print(arguments.question)
    for document in reranker.compress_documents(documents, arguments.question):
        score, line = document.metadata["relevance_score"], document.metadata["line"]
        print(f"{score:7.2f}  {document.page_content} [passages.txt:{line}]")


if __name__ == "__main__":
    main()
