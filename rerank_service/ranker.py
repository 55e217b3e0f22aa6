"""One request, from text to ranking: cut into shards, scored wherever the router sends them, put together.

Knows neither HTTP nor the engine.
"""

import asyncio
import time
import uuid
from collections.abc import Sequence

from rerank_service.config import RerankConfig
from rerank_service.errors import RequestTimedOut
from rerank_service.fitting import Fitting
from rerank_service.model_router import ModelRouter
from rerank_service.ranking import Ranked, rank_by_logit
from rerank_service.shards import Shard, ShardScores, cut_into_shards

__all__ = ["Ranked", "Ranker"]


class Ranker:
    """Fan-out over the replicas of one model and the way back."""

    def __init__(self, router: ModelRouter, config: RerankConfig) -> None:
        self._router = router
        self._shard_tokens = {model.id: config.shard_tokens_of(model) for model in config.models}
        self._timeout_s = config.limits.request_timeout_s

    async def rank(
        self,
        model_id: str,
        query: str,
        passages: Sequence[str],
        fitting: Fitting,
        timeout_s: float | None = None,
        request_id: str | None = None,
        caller: str = "",
    ) -> Ranked:
        """Ranks `passages`; raises `RequestTimedOut` or what a shard raised, and then drops the rest.

        `timeout_s` is the client's own limit: it can shorten the configured one only. Calls with one `request_id`
        have one request's share of a device, and all requests of a `caller` together one caller's.
        """
        started = time.perf_counter()
        timeout_s = min(self._timeout_s, timeout_s or self._timeout_s)
        shard_tokens = self._shard_tokens[model_id]
        request_id = request_id or uuid.uuid4().hex
        cut = cut_into_shards(request_id, model_id, query, passages, fitting, shard_tokens, timeout_s, caller)
        shards = list(cut)
        try:
            async with asyncio.timeout(timeout_s) as deadline:
                scores = await self._score_all(shards)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise RequestTimedOut(timeout_s) from None
        return _assemble(passages, shards, scores, time.perf_counter() - started)

    async def _score_all(self, shards: Sequence[Shard]) -> list[ShardScores]:
        tasks = [asyncio.ensure_future(self._router.score(shard)) for shard in shards]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()


def _assemble(
    passages: Sequence[str], shards: Sequence[Shard], scores: Sequence[ShardScores], total_s: float
) -> Ranked:
    """Puts each passage's logit, and its copies', where the request has it."""
    scored: dict[str, tuple[float, int, bool]] = {}
    for shard, answer in zip(shards, scores, strict=True):
        columns = zip(answer.logits, answer.num_tokens, answer.is_truncated, strict=True)
        scored.update(zip(shard.passages, columns, strict=True))
    logits = [scored[passage][0] for passage in passages]
    return Ranked(
        order=rank_by_logit(logits),
        logits=logits,
        num_tokens=sum(scored[passage][1] for passage in passages),
        num_truncated=sum(scored[passage][2] for passage in passages),
        num_shards=len(scores),
        tokenise_s=max(shard.tokenise_s for shard in scores),
        queue_s=max(shard.queue_s for shard in scores),
        forward_s=max(shard.forward_s for shard in scores),
        total_s=total_s,
    )
