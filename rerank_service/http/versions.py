"""Canaries and shadows of one ingress: the choice of the version that answers, and the work after the answer.

An ingress without versions has no object of this module.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from rerank_service.config import RerankConfig
from rerank_service.http.dialects import RankingCall
from rerank_service.http.readiness import Readiness
from rerank_service.messages import Deadline, Ranked
from rerank_service.routing.model_router import ModelRouter
from rerank_service.routing.ranker import Ranker
from rerank_service.routing.shadow import AnsweredQuery, Shadow
from rerank_service.routing.traffic import TrafficSplit
from rerank_service.telemetry.metrics import MetricSink
from rerank_service.telemetry.observation import Observation

__all__ = ["FollowShares", "RankCall", "Scored", "Versions"]

FollowShares = Callable[[TrafficSplit], Awaitable[None]]
"""Keeps the shares of a `TrafficSplit` up to date, until cancelled."""

Scored = tuple[list[Ranked], dict[str, str]]
"""The rankings of a call's queries, and headers for the answer."""
RankCall = Callable[[RankingCall, str, str | None, str, Deadline], Awaitable[Scored]]
"""Ranks the queries of a call for a caller, with the client's id of the request and the id of the model."""


class Versions:
    """The versions of all models. Their replicas are probed, so that only versions that answer receive requests."""

    def __init__(
        self,
        config: RerankConfig,
        router: ModelRouter,
        ranker: Ranker,
        metrics: MetricSink,
        follow_shares: FollowShares | None = None,
    ) -> None:
        """Without `follow_shares`, the shares stay as configured."""
        timeout_s = config.limits.request_timeout_s
        self._watch = Readiness(ranker, router, {version: [version] for version in config.versions}, timeout_s)
        self._router = router
        self._split = TrafficSplit(config, self._is_running, metrics)
        self._shadow = Shadow(ranker, metrics, timeout_s)
        self.models = frozenset(share.of for share in config.versions.values())
        """Ids of the models that have versions."""
        self._follow_shares = follow_shares
        self._follower: asyncio.Future[None] | None = None

    def start(self) -> None:
        """Starts probing the versions and following their shares, in the running event loop."""
        self._watch.start()
        if self._follow_shares is not None:
            self._follower = asyncio.ensure_future(self._follow_shares(self._split))

    def stop(self) -> None:
        """Stops all work in the background."""
        self._watch.stop()
        self._shadow.stop()
        if self._follower is not None:
            self._follower.cancel()

    async def rank(
        self,
        call: RankingCall,
        observation: Observation,
        caller: str,
        client_id: str | None,
        deadline: Deadline,
        rank: RankCall,
    ) -> Scored:
        """Has the observed model or one of its versions rank a call, and notes in the observation which of them did."""
        model_id = observation.model_id
        observation.model_id, scored = await self.answer(call, model_id, caller, client_id, deadline, rank)
        return scored

    async def answer(
        self,
        call: RankingCall,
        model_id: str,
        caller: str,
        client_id: str | None,
        deadline: Deadline,
        rank: RankCall,
    ) -> tuple[str, Scored]:
        """Has a model or one of its versions rank a call, as `TrafficSplit.answer` describes. Afterwards, shadows score
        a sample of the calls that the model itself has answered."""
        score = partial(rank, call, caller, client_id)
        answered_by, scored = await self._split.answer(model_id, client_id, deadline, score)
        if answered_by == model_id and (shadows := self._split.sampled_shadows(model_id)):
            answers = zip(call.queries, scored[0], strict=True)
            queries = [AnsweredQuery(query.text, query.passages, ranked) for query, ranked in answers]
            for version in shadows:
                self._shadow.offer(version, queries, call.fitting, caller)
        return answered_by, scored

    def describe(self, model_id: str) -> dict[str, Any] | None:
        """The state of a version, for `/v1/metadata`; null if the model is not a version."""
        share = self._split.shares.get(model_id)
        return None if share is None else share.model_dump() | {"usable": self._split.is_usable(model_id)}

    def _is_running(self, version: str) -> bool:
        is_known = version not in self._watch.waiting_for and version not in self._watch.unreachable
        return is_known and self._router.may_answer(version)
