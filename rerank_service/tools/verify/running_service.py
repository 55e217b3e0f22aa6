"""Verifies a running service over `/v1/ranking`, with the Python client."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from rerank_service.client import Client
from rerank_service.config import Dtype
from rerank_service.tools.verify.served import PairTokens, ServedLogits
from rerank_service.tools.verify.texts import VerificationQuery
from rerank_service.tools.verify.verdict import TOLERANCES

__all__ = ["ServicePath"]

_REQUESTS_AT_ONCE = 8

_COARSEST = {Dtype.AUTO: Dtype.BFLOAT16, Dtype.FASTEST: Dtype.INT8}
"""Lowest precision that each setting may select on the serving machine."""


class ServicePath:
    """A model served over HTTP. The service reports numbers of tokens, but no token ids."""

    must_repeat = False
    """False, since bit-equal logits are promised only on CPUs and the service's device is unknown."""

    def __init__(
        self, client: Client, url: str, dtype: Dtype, told_precision: Callable[[], str | None] = lambda: None
    ) -> None:
        """`dtype` is the configured precision; `auto` and `fastest` count as the lowest precision they may select.
        If `told_precision` returns a precision that the service reports, that precision takes precedence."""
        self._client = client
        self._told_precision = told_precision
        self.dtype = _COARSEST.get(dtype, dtype)
        self.description = f"the service at {url}"

    def tokens(self, question: VerificationQuery) -> list[PairTokens] | None:
        return None

    def answer(
        self, questions: Sequence[VerificationQuery], at_once: bool, on_answered: Callable[[int], None]
    ) -> list[ServedLogits]:
        """Ranks each query. Raises `RerankClientError`."""

        def ask(question: VerificationQuery) -> ServedLogits:
            ranking = self._client.rank(question.query, question.passages)
            logits = {passage.index: passage.logit for passage in ranking}
            on_answered(len(logits))
            return ServedLogits(tuple(logits[index] for index in range(len(logits))), ranking.usage.total_tokens)

        with ThreadPoolExecutor(_REQUESTS_AT_ONCE if at_once else 1) as threads:
            answers = list(threads.map(ask, questions))
        # Asked after the replies, because the replicas that replied have reported their precision by then.
        if (precision := self._told_precision()) in TOLERANCES:
            self.dtype = Dtype(precision)
        return answers

    def close(self) -> None:
        self._client.close()
