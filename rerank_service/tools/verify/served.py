"""The path that is verified: a replica's own scorer, in this process. No Ray, no HTTP."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

from rerank_service.config import Dtype, ModelConfig
from rerank_service.engine import Engine, Truncate, load_engine
from rerank_service.engine.device.precision import resolve_precision
from rerank_service.engine.linear.cpu import can_pack
from rerank_service.engine.loading import resolve_device
from rerank_service.messages import Fitting, Shard
from rerank_service.replica.scorer import ModelScorer
from rerank_service.routing.shards import estimate_tokens
from rerank_service.tools.verify.texts import VerificationQuery

__all__ = ["EnginePath", "PairTokens", "ServedLogits", "ServedPath"]


class ServedLogits(NamedTuple):
    """What a question got."""

    logits: tuple[float, ...]
    """In the order of its passages."""
    num_tokens: int
    """Of all its pairs."""


class PairTokens(NamedTuple):
    """A pair as the model sees it."""

    token_ids: tuple[int, ...]
    num_tokens: int


class ServedPath(Protocol):
    """Something that answers questions."""

    @property
    def description(self) -> str:
        """Kind, device and precision, or an address."""
        ...

    @property
    def dtype(self) -> Dtype:
        """Precision whose tolerance holds."""
        ...

    @property
    def must_repeat(self) -> bool:
        """Whether a pair's logit is promised to be the same, to the last bit, in any company."""
        ...

    def tokens(self, question: VerificationQuery) -> list[PairTokens] | None:
        """Of each pair; null where nobody tells."""
        ...

    def answer(
        self, questions: Sequence[VerificationQuery], at_once: bool, on_answered: Callable[[int], None]
    ) -> list[ServedLogits]:
        """Each question as a request: all together, or each after the one before. `on_answered` hears of each
        request the number of its passages."""
        ...

    def close(self) -> None:
        """Lets go of what it holds."""
        ...


class EnginePath:
    """A model of this process, as it is configured."""

    def __init__(self, model: ModelConfig, num_cpus: float | None = None) -> None:
        """`num_cpus` are those of a replica; null takes the process's. Raises `CheckpointError`."""
        self._model = model
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="launch")  # one for loading and running, see Scheduler
        self._tokenisers = ThreadPoolExecutor(model.replica.tokeniser_threads, thread_name_prefix="tokenise")
        try:
            self._engine: Engine[Any] = self._thread.submit(load_engine, model, num_cpus).result()
        except BaseException:
            self.close()
            raise
        device = resolve_device(model.engine.device)
        precision = resolve_precision(model.engine.dtype, device)
        self.dtype = Dtype(precision.name)
        self.must_repeat = device.type == "cpu" and can_pack(precision.states)

    @property
    def description(self) -> str:
        return f"{self._engine.description}, through the scheduler"

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
    """The question as one shard: its passages in their order, copies and all."""
    query, passages = question
    num_tokens = sum(estimate_tokens(query, passage) for passage in passages)
    indices = tuple(range(len(passages)))
    return Shard(request_id, model_id, query, passages, indices, Fitting(Truncate.END), num_tokens, num_tokens)
