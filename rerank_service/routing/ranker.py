"""One request, from text to ranking: cut into shards, scored wherever the router sends them, put together.

Knows neither HTTP nor the engine.
"""

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace

from rerank_service.config import RerankConfig
from rerank_service.errors import QueueFull, RequestTimedOut, WaitTooLong
from rerank_service.messages import Deadline, Fitting, Ranked, Shard, ShardScores, rank_by_logit
from rerank_service.routing.model_router import ModelRouter
from rerank_service.routing.shards import cut_into_shards

__all__ = ["Ranked", "Ranker", "RefusedRequests"]

_REMEMBERED_REFUSALS = 10_000
_REMEMBERED_S = 120.0
"""A refused client is told to come back after a minute at most."""


class RefusedRequests:
    """Requests that replicas refused a short while ago, so that their retries do not count as load again.

    Each ingress has its own: behind several, a retry that reaches another one counts again.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._refused_at_s: OrderedDict[int, float] = OrderedDict()  # by a hash: no text is kept

    def add(self, client_id: str, query: str, passages: Sequence[str]) -> None:
        """Remembers a refused request by its client's id and its texts: a client may cut one call into requests."""
        key = hash((client_id, query, tuple(passages)))
        self._refused_at_s[key] = self._now_s()
        self._refused_at_s.move_to_end(key)
        if len(self._refused_at_s) > _REMEMBERED_REFUSALS:
            self._refused_at_s.popitem(last=False)

    def has(self, client_id: str, query: str, passages: Sequence[str]) -> bool:
        """Whether this is a retry of one of them."""
        if not self._refused_at_s:  # nearly always: the texts are not hashed
            return False
        at_s = self._refused_at_s.get(hash((client_id, query, tuple(passages))))
        return at_s is not None and self._now_s() - at_s <= _REMEMBERED_S


class Ranker:
    """Fan-out over the replicas of one model and the way back."""

    def __init__(self, router: ModelRouter, config: RerankConfig) -> None:
        self._refused = RefusedRequests()
        self._router = router
        self._shard_tokens = {model.id: config.shard_tokens_of(model) for model in config.models}

    async def rank(
        self,
        model_id: str,
        query: str,
        passages: Sequence[str],
        fitting: Fitting,
        deadline: Deadline,
        request_id: str | None = None,
        client_id: str | None = None,
        caller: str = "",
    ) -> Ranked:
        """Ranks `passages`; raises `RequestTimedOut` or what a shard raised, and then drops the rest.

        Calls with one `request_id`
        have one request's share of a device, and all requests of a `caller` together one caller's. `client_id` is the
        client's own id of the request, the same in its retries after a refusal: they do not count as load again.
        """
        started = time.perf_counter()
        shard_tokens = self._shard_tokens[model_id]
        request_id = request_id or uuid.uuid4().hex
        cut = cut_into_shards(
            request_id, model_id, query, passages, fitting, shard_tokens, deadline.remaining_s(), caller
        )
        shards = list(cut)
        if client_id is not None and self._refused.has(client_id, query, passages):
            shards = [replace(shard, is_counted=True) for shard in shards]
        try:
            async with asyncio.timeout(deadline.remaining_s()) as timer:
                scores = await self._score_all(shards)
        except (QueueFull, WaitTooLong, asyncio.CancelledError):  # cancelled: a sibling in the same call was refused
            if client_id is not None:
                self._refused.add(client_id, query, passages)
            raise
        except TimeoutError:
            if not timer.expired():
                raise
            raise RequestTimedOut(deadline.timeout_s) from None
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
    scored: dict[str, tuple[float, int, bool, bool]] = {}
    for shard, answer in zip(shards, scores, strict=True):
        columns = zip(answer.logits, answer.num_tokens, answer.is_truncated, answer.is_unscored, strict=True)
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
        num_unscored=sum(scored[passage][3] for passage in passages),
    )
