"""The path that is verified: the engine behind the scheduler, as a replica runs it. No Ray, no HTTP."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

from rerank_service.config import Dtype, ModelConfig
from rerank_service.engine import Engine, Truncate, load_engine
from rerank_service.engine.cpu_linear import can_pack
from rerank_service.engine.loading import resolve_device
from rerank_service.engine.precision import resolve_precision
from rerank_service.fidelity.texts import Question
from rerank_service.scheduler import Scheduler

__all__ = ["Answer", "EnginePath", "PairTokens", "ServedPath"]


class Answer(NamedTuple):
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

    def tokens(self, question: Question) -> list[PairTokens] | None:
        """Of each pair; null where nobody tells."""
        ...

    def answer(self, questions: Sequence[Question], at_once: bool, on_answered: Callable[[int], None]) -> list[Answer]:
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
        try:
            self._engine: Engine[Any] = self._thread.submit(load_engine, model, num_cpus).result()
        except BaseException:
            self.close()
            raise
        device = resolve_device(model.engine.device)
        precision = resolve_precision(model.engine.dtype, device)
        self.dtype = precision.quantised or Dtype(str(precision))
        self.must_repeat = device.type == "cpu" and can_pack(precision.states)

    @property
    def description(self) -> str:
        return f"{self._engine.description}, through the scheduler"

    def close(self) -> None:
        self._thread.shutdown()

    def tokens(self, question: Question) -> list[PairTokens]:
        pairs = self._engine.tokenise(question.query, question.passages, Truncate.END)
        return [PairTokens(tuple(pair.token_ids.tolist()), pair.num_tokens) for pair in pairs]

    def answer(self, questions: Sequence[Question], at_once: bool, on_answered: Callable[[int], None]) -> list[Answer]:
        return asyncio.run(self._answer(questions, at_once, on_answered))

    async def _answer(
        self, questions: Sequence[Question], at_once: bool, on_answered: Callable[[int], None]
    ) -> list[Answer]:
        batching = self._model.batching
        max_batch_tokens = batching.max_batch_tokens or self._engine.default_batch_tokens
        scheduler: Scheduler[Any] = Scheduler(
            self._engine,
            max_batch_tokens,
            batching.max_queued_tokens,
            batching.min_batch_tokens or max(1, max_batch_tokens // 4),
            self._thread,
        )

        async def ask(number: int, question: Question) -> Answer:
            pairs = self._engine.tokenise(question.query, question.passages, Truncate.END)
            scored = await scheduler.submit(str(number), pairs)
            on_answered(len(pairs))
            return Answer(scored.logits, sum(pair.num_tokens for pair in pairs))

        try:
            if at_once:
                return list(await asyncio.gather(*(ask(*numbered) for numbered in enumerate(questions))))
            return [await ask(*numbered) for numbered in enumerate(questions)]
        finally:
            await scheduler.close()
