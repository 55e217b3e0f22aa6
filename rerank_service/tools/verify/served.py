"""Loads a model in this process for verification, behind the scorer that replicas use."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

from rerank_service.config import Dtype, ModelConfig
from rerank_service.engine import Engine, Truncate, load_engine
from rerank_service.messages import Fitting, Shard
from rerank_service.replica.scorer import ModelScorer
from rerank_service.routing.ranker import estimate_tokens
from rerank_service.tools.verify.texts import VerificationQuery

__all__ = ["EnginePath", "PairTokens", "ServedLogits", "ServedPath"]


class ServedLogits(NamedTuple):
    """Logits of a query's passages, as served."""

    logits: tuple[float, ...]
    """Logits in the order of the passages."""
    num_tokens: int
    """Number of tokens of all pairs together."""


class PairTokens(NamedTuple):
    """Tokens of a pair, as seen by the model."""

    token_ids: tuple[int, ...]
    num_tokens: int


class ServedPath(Protocol):
    """A served model to verify."""

    @property
    def description(self) -> str:
        """Engine, device and precision, or the address of a service."""

    @property
    def dtype(self) -> Dtype:
        """Precision that sets the tolerances."""

    @property
    def must_repeat(self) -> bool:
        """Whether the logit of a pair must be bit-equal in every batch."""

    def tokens(self, question: VerificationQuery) -> list[PairTokens] | None:
        """Tokens of each pair; null if unknown."""

    def answer(
        self, questions: Sequence[VerificationQuery], at_once: bool, on_answered: Callable[[int], None]
    ) -> list[ServedLogits]:
        """Sends each query as one request, concurrently or one by one. `on_answered` is called with the number of
        passages of each answered request."""

    def close(self) -> None:
        """Releases the model or the connection."""


class EnginePath:
    """A model loaded in this process with its configured settings."""

    def __init__(self, model: ModelConfig, num_cpus: float | None = None) -> None:
        """`num_cpus` is a replica's number of CPUs; null: all CPUs of this process. Raises `CheckpointError`."""
        self._model = model
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="launch")  # one thread, as in a replica
        self._tokenisers = ThreadPoolExecutor(model.replica.tokeniser_threads, thread_name_prefix="tokenise")
        try:
            self._engine: Engine[Any] = self._thread.submit(load_engine, model, num_cpus).result()
        except BaseException:
            self.close()
            raise
        self.dtype = Dtype(self._engine.precision)
        self.must_repeat = self._engine.is_batch_invariant
        self.description = f"{self._engine.description}, through the scheduler"

    def close(self) -> None:
        self._thread.shutdown()
        self._tokenisers.shutdown()

    def tokens(self, question: VerificationQuery) -> list[PairTokens]:
        pairs = self._engine.tokenise(question.query, question.passages, Truncate.END)
        return [PairTokens(tuple(pair.token_ids.tolist()), pair.num_tokens) for pair in pairs]

    def answer(
        self, questions: Sequence[VerificationQuery], at_once: bool, on_answered: Callable[[int], None]
    ) -> list[ServedLogits]:
        return asyncio.run(self._answer(questions, at_once, on_answered))

    async def _answer(
        self, questions: Sequence[VerificationQuery], at_once: bool, on_answered: Callable[[int], None]
    ) -> list[ServedLogits]:
        scorer = ModelScorer(self._model, self._engine, self._thread, self._tokenisers)

        async def ask(number: int, question: VerificationQuery) -> ServedLogits:
            scores = await scorer.score(_whole(str(number), self._model.id, question))
            on_answered(len(question.passages))
            return ServedLogits(scores.logits, sum(scores.num_tokens))

        try:
            if at_once:
                return list(await asyncio.gather(*(ask(*numbered) for numbered in enumerate(questions))))
            return [await ask(*numbered) for numbered in enumerate(questions)]
        finally:
            await scorer.close()


def _whole(request_id: str, model_id: str, question: VerificationQuery) -> Shard:
    """A single shard with the query and all its passages in order, including duplicates."""
    query, passages = question
    num_tokens = sum(estimate_tokens(query, passage) for passage in passages)
    indices = tuple(range(len(passages)))
    return Shard(request_id, model_id, query, passages, indices, Fitting(Truncate.END), num_tokens, num_tokens)
