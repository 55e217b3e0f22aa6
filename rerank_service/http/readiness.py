"""Readiness: checks that every required model has scored a test pair, and that its replicas still answer."""

import asyncio
import logging
import uuid
from collections.abc import Mapping, Sequence

from rerank_service.errors import ReplicaUnavailable, RequestTimedOut, RerankError
from rerank_service.messages import Deadline, Fitting
from rerank_service.routing.model_router import ModelRouter
from rerank_service.routing.ranker import Ranker, cut_into_shards

__all__ = ["Readiness"]

logger = logging.getLogger(__name__)

_RETRY_S = 0.5
_REMIND_S = 30.0
"""Interval at which the log repeats that a model is still starting."""
_QUERY, _PASSAGE = "Is the service ready?", "It is, once this pair has a logit."

_IDLE_S = 3.0
"""A model is probed if its replicas have given no answer for this long."""
_PROBE_TIMEOUT_S = 2.0
"""Time limit of a probe in the replica. A busy replica refuses the pair within this time, and a refusal is an
answer."""
_NO_ANSWER_S = 4.0
"""A probe without any answer fails after this time, which is longer than the time limit in the replica."""
_UNREACHABLE_S = 10.0
"""A model is unreachable if a probe failed and its replicas have given no answer for this long."""


class Readiness:
    """Sends each model a test pair until the model has scored the pair once, and then probes each idle model.

    Every answer from a replica counts, whether to a probe or to a request. A refusal also counts, because a replica
    with a full queue is reachable.
    """

    def __init__(
        self, ranker: Ranker, router: ModelRouter, models: Mapping[str, Sequence[str]], request_timeout_s: float
    ) -> None:
        """`models` maps the id of each probed model to the ids of all models on the same replicas, including the probed
        model."""
        self._ranker = ranker
        self._router = router
        self._models = models
        self._request_timeout_s = request_timeout_s
        self._waiting = list(models)
        self._failed: set[str] = set()
        """Models with a failed probe since their last answer."""
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """Models that have not scored a test pair yet."""
        return tuple(self._waiting)

    @property
    def unreachable(self) -> tuple[str, ...]:
        """Models that have answered before but no longer answer."""
        now_s = asyncio.get_running_loop().time()
        return tuple(
            one for one in self._models if one in self._failed and now_s - self._answered_at(one) >= _UNREACHABLE_S
        )

    @property
    def is_ready(self) -> bool:
        """Whether every model has scored a test pair and at least one is reachable now."""
        return not self._waiting and (not self._models or len(self.unreachable) < len(self._models))

    def start(self) -> None:
        """Starts probing, in the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._watch_all())

    def stop(self) -> None:
        """Stops probing."""
        if self._task is not None:
            self._task.cancel()

    async def _watch_all(self) -> None:
        await asyncio.gather(*map(self._watch, self._models))

    async def _watch(self, model_id: str) -> None:
        await self._score_test_pair(model_id)
        loop = asyncio.get_running_loop()
        while True:
            idle_s = loop.time() - self._answered_at(model_id)
            if idle_s < _IDLE_S:
                self._mark(model_id, has_failed=False)
                await asyncio.sleep(_IDLE_S - idle_s)
            else:
                await self._probe(model_id)
                await asyncio.sleep(_RETRY_S)

    async def _score_test_pair(self, model_id: str) -> None:
        """Ranks a pair through the whole request path, and repeats this until the ranking succeeds."""
        loop, said_at_s = asyncio.get_running_loop(), float("-inf")
        while True:
            deadline = Deadline.after(self._request_timeout_s)
            try:
                await self._ranker.rank(model_id, _QUERY, [_PASSAGE], Fitting(), deadline)
            except (ReplicaUnavailable, RequestTimedOut):  # normal while a replica starts
                if loop.time() - said_at_s >= _REMIND_S:
                    said_at_s = loop.time()
                    logger.info("waiting for the first replica of model=%s", model_id)
            except RerankError as error:
                logger.warning("not ready model=%s: %s", model_id, error.message)
            except Exception:
                logger.exception("not ready model=%s", model_id)
            else:
                self._waiting.remove(model_id)
                logger.info("ready model=%s", model_id)
                return
            await asyncio.sleep(_RETRY_S)

    async def _probe(self, model_id: str) -> None:
        """Sends one pair to the model's replicas, and marks the model as failed if no replica answers."""
        began_s = asyncio.get_running_loop().time()
        pool = self._models[model_id]
        # In a pool, probe the model that answered last, which is loaded; loading another model could evict it.
        probed = max(pool, key=lambda one: self._router.answered_at.get(one, 0.0))
        request_id = uuid.uuid4().hex
        (shard,) = cut_into_shards(request_id, probed, _QUERY, [_PASSAGE], Fitting(), 1, _PROBE_TIMEOUT_S)
        try:
            async with asyncio.timeout(_NO_ANSWER_S):
                await self._router.probe(shard)
        except TimeoutError:
            if len(pool) > 1:  # a replica cannot answer while it loads another model
                return
        except Exception as error:
            logger.debug("probe failed model=%s: %s", probed, type(error).__name__)
        self._mark(model_id, has_failed=self._answered_at(model_id) < began_s)

    def _answered_at(self, model_id: str) -> float:
        return max(self._router.answered_at.get(one, 0.0) for one in self._models[model_id])

    def _mark(self, model_id: str, *, has_failed: bool) -> None:
        if has_failed and model_id not in self._failed:
            self._failed.add(model_id)
            logger.warning("no replica answers model=%s", model_id)
        elif not has_failed and model_id in self._failed:
            self._failed.remove(model_id)
            logger.warning("replicas answer again model=%s", model_id)
