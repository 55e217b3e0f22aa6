"""Retrieves and reranks passages, and quotes an answer, without a language model.

    python examples/rag_offline.py --url http://127.0.0.1:8000 "What is put on roads against ice?"

BM25 finds candidates that share words with the question, and the service ranks them by relevance. The service then
ranks the sentences of the best passages; the answer quotes the best sentence.
"""

import argparse
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rerank_service.client import Client, Ranking

PASSAGES = Path(__file__).with_name("passages.txt").read_text(encoding="utf-8").splitlines()
QUESTION = "What is put on roads against ice?"
NUM_CANDIDATES = 12
NUM_QUOTABLE = 3


class Bm25:
    """Okapi BM25 with the usual constants, for a small corpus."""

    def __init__(self, passages: Sequence[str], k1: float = 1.5, b: float = 0.75) -> None:
        self._k1, self._b = k1, b
        self._words = [Counter(words(passage)) for passage in passages]
        self._mean_length = sum(counts.total() for counts in self._words) / len(passages)
        self._num_having = Counter(word for counts in self._words for word in counts)

    def best(self, question: str, limit: int) -> list[int]:
        """Indices of the passages with the highest scores for the question."""
        scores = [sum(self._weight(word, counts) for word in set(words(question))) for counts in self._words]
        return sorted(range(len(scores)), key=lambda index: -scores[index])[:limit]

    def _weight(self, word: str, counts: Counter[str]) -> float:
        num_having = self._num_having[word]
        rarity = math.log(1 + (len(self._words) - num_having + 0.5) / (num_having + 0.5))
        length = 1 - self._b + self._b * counts.total() / self._mean_length
        return rarity * counts[word] * (self._k1 + 1) / (counts[word] + self._k1 * length)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+", text)


def show(title: str, ranking: Ranking) -> None:
    print(f"\n{title}")
    for passage in ranking:
        print(f"{passage.logit:7.2f}  {passage.text}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Answers a question from examples/passages.txt.")
    parser.add_argument("question", nargs="?", default=QUESTION)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of a running service")
    parser.add_argument("--model", help="default: the service's default model")
    arguments = parser.parse_args()
    question = arguments.question

    candidates = [PASSAGES[index] for index in Bm25(PASSAGES).best(question, NUM_CANDIDATES)]
    print(f"Question: {question}\n\nBM25 finds")
    for passage in candidates[:NUM_QUOTABLE]:
        print(f"         {passage}")

    with Client(arguments.url, model=arguments.model) as client:
        ranked = client.rank(question, candidates, top_n=NUM_QUOTABLE)
        show("Reranked (logit)", ranked)
        quotable = [sentence for passage in ranked for sentence in sentences(passage.text)]
        (quote,) = client.rank(question, quotable, top_n=1)
    source = next(number for number, passage in enumerate(PASSAGES, 1) if quote.text in passage)
    print(f"\nAnswer: {quote.text} [passages.txt:{source}]")


if __name__ == "__main__":
    main()
