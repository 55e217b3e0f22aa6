"""The path that is verified, where it is a running service: over `/v1/ranking`, with our own client."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from rerank_service.client import Client
from rerank_service.config import Dtype
from rerank_service.fidelity.served import Answer, PairTokens
from rerank_service.fidelity.texts import Question

__all__ = ["ServicePath"]

_REQUESTS_AT_ONCE = 8

_COARSEST = {Dtype.AUTO: Dtype.BFLOAT16, Dtype.FASTEST: Dtype.INT8}
"""What each may mean on the machine that serves."""


class ServicePath:
    """Answers come over HTTP; tokens are known by their number alone."""

    must_repeat = False
    """Nobody tells whether it runs on a CPU."""

    def __init__(self, client: Client, url: str, dtype: Dtype) -> None:
        """`dtype` is what its model is configured with; what the service does not tell is taken for the coarsest."""
        self._client = client
        self._url = url
        self.dtype = _COARSEST.get(dtype, dtype)

    @property
    def description(self) -> str:
        return f"the service at {self._url}"

    def tokens(self, question: Question) -> list[PairTokens] | None:
        return None

    def answer(self, questions: Sequence[Question], at_once: bool, on_answered: Callable[[int], None]) -> list[Answer]:
        """Raises `RerankClientError`."""

        def ask(question: Question) -> Answer:
            ranking = self._client.rank(question.query, question.passages)
            logits = {passage.index: passage.logit for passage in ranking}
            on_answered(len(logits))
            return Answer(tuple(logits[index] for index in range(len(logits))), ranking.usage.total_tokens)

        with ThreadPoolExecutor(_REQUESTS_AT_ONCE if at_once else 1) as threads:
            return list(threads.map(ask, questions))

    def close(self) -> None:
        self._client.close()
