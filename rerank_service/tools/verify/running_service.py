"""The path that is verified, where it is a running service: over `/v1/ranking`, with our own client."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from rerank_service.client import Client
from rerank_service.config import Dtype
from rerank_service.tools.verify.served import PairTokens, ServedLogits
from rerank_service.tools.verify.texts import VerificationQuery
from rerank_service.tools.verify.tolerances import TOLERANCES

__all__ = ["ServicePath"]

_REQUESTS_AT_ONCE = 8

_COARSEST = {Dtype.AUTO: Dtype.BFLOAT16, Dtype.FASTEST: Dtype.INT8}
"""What each may mean on the machine that serves."""


class ServicePath:
    """Answers come over HTTP; tokens are known by their number alone."""

    must_repeat = False
    """Nobody tells whether it runs on a CPU."""

    def __init__(
        self, client: Client, url: str, dtype: Dtype, told_precision: Callable[[], str | None] = lambda: None
    ) -> None:
        """`dtype` is what its model is configured with. It holds, `auto` and `fastest` as the coarsest they may mean,
        unless the service tells by `told_precision` what it computes in."""
        self._client = client
        self._url = url
        self._dtype = _COARSEST.get(dtype, dtype)
        self._told_precision = told_precision

    @property
    def dtype(self) -> Dtype:
        return self._dtype

    @property
    def description(self) -> str:
        return f"the service at {self._url}"

    def tokens(self, question: VerificationQuery) -> list[PairTokens] | None:
        return None

    def answer(
        self, questions: Sequence[VerificationQuery], at_once: bool, on_answered: Callable[[int], None]
    ) -> list[ServedLogits]:
        """Raises `RerankClientError`."""

        def ask(question: VerificationQuery) -> ServedLogits:
            ranking = self._client.rank(question.query, question.passages)
            logits = {passage.index: passage.logit for passage in ranking}
            on_answered(len(logits))
            return ServedLogits(tuple(logits[index] for index in range(len(logits))), ranking.usage.total_tokens)

        with ThreadPoolExecutor(_REQUESTS_AT_ONCE if at_once else 1) as threads:
            answers = list(threads.map(ask, questions))
        if (precision := self._told_precision()) in TOLERANCES:  # only now: of the replicas that have answered
            self._dtype = Dtype(precision)
        return answers

    def close(self) -> None:
        self._client.close()
