"""Whether the models that must be there are: each has scored a pair, and its replicas have been reached since."""

import asyncio
import logging
import uuid
from collections.abc import Mapping, Sequence

from rerank_service.errors import RerankError
from rerank_service.messages import Fitting
from rerank_service.routing.model_router import ModelRouter
from rerank_service.routing.ranker import Ranker, cut_into_shards

__all__ = ["Readiness"]

logger = logging.getLogger(__name__)

_RETRY_S = 0.5
_QUERY, _PASSAGE = "Is the service ready?", "It is, once this pair has a logit."

_QUIET_S = 3.0
"""A model whose replicas have answered nothing for this long is probed, and again each time it passes."""
_PROBE_TIMEOUT_S = 2.0
"""What a probe asks of the replica: one that is busy refuses the pair by then, and a refusal is an answer."""
_SILENCE_S = 4.0
"""After this long without any answer, a probe has failed. Longer than the replica's own limit."""
_UNREACHABLE_S = 10.0
"""A model is unreachable if a probe has failed and its replicas have answered nothing for this long."""


class Readiness:
    """Probes each model through the whole path until it has answered once; after that, whenever it is quiet.

    Every answer of a replica counts, to a probe or to a request, a refusal too: a replica with a full queue is there.
    """

    def __init__(self, ranker: Ranker, router: ModelRouter, models: Mapping[str, Sequence[str]]) -> None:
        """`models` are those to be probed, by id, each with all models of the same replicas: itself, or its pool's."""
        self._ranker = ranker
        self._router = router
        self._models = models
        self._waiting = list(models)
        self._failed: set[str] = set()
        """Models of which a probe has failed since their last answer."""
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """Models that have never answered."""
        return tuple(self._waiting)

    @property
    def unreachable(self) -> tuple[str, ...]:
        """Models that have answered before, and do not any more."""
        now_s = asyncio.get_running_loop().time()
        return tuple(
            one for one in self._models if one in self._failed and now_s - self._answered_at(one) >= _UNREACHABLE_S
        )

    @property
    def is_ready(self) -> bool:
        """Whether every model has answered once, and not all of them are unreachable now."""
        return not self._waiting and (not self._models or len(self.unreachable) < len(self._models))

    def start(self) -> None:
        """Begins to probe; call it where an event loop runs."""
        self._task = asyncio.get_running_loop().create_task(self._watch_all())

    def stop(self) -> None:
        """Ends the probing."""
        if self._task is not None:
            self._task.cancel()

    async def _watch_all(self) -> None:
        await asyncio.gather(*(self._watch(model_id) for model_id in self._models))

    async def _watch(self, model_id: str) -> None:
        await self._first_answer(model_id)
        loop = asyncio.get_running_loop()
        while True:
            quiet_s = loop.time() - self._answered_at(model_id)
            if quiet_s < _QUIET_S:
                self._note(model_id, has_failed=False)
                await asyncio.sleep(_QUIET_S - quiet_s)
            else:
                await self._probe(model_id)
                await asyncio.sleep(_RETRY_S)

    async def _first_answer(self, model_id: str) -> None:
        while True:
            try:
                await self._ranker.rank(model_id, _QUERY, [_PASSAGE], Fitting())
            except RerankError as error:
                logger.warning("not ready model=%s: %s", model_id, error.message)
                await asyncio.sleep(_RETRY_S)
            except Exception:
                logger.exception("not ready model=%s", model_id)
                await asyncio.sleep(_RETRY_S)
            else:
                self._waiting.remove(model_id)
                logger.info("ready model=%s", model_id)
                return

    async def _probe(self, model_id: str) -> None:
        """Asks once. In a pool the model asked last, which is loaded: any other might cost that one its place."""
        began_s = asyncio.get_running_loop().time()
        pool = self._models[model_id]
        asked = max(pool, key=lambda one: self._router.answered_at.get(one, 0.0))
        request_id = uuid.uuid4().hex
        (shard,) = cut_into_shards(request_id, asked, _QUERY, [_PASSAGE], Fitting(), 1, _PROBE_TIMEOUT_S)
        try:
            async with asyncio.timeout(_SILENCE_S):
                await self._router.probe(shard)
        except TimeoutError:
            if len(pool) > 1:  # a replica that loads a model answers when it is done, however long that takes
                return
        except Exception as error:
            logger.debug("probe failed model=%s: %s", asked, type(error).__name__)
        self._note(model_id, has_failed=self._answered_at(model_id) < began_s)

    def _answered_at(self, model_id: str) -> float:
        return max(self._router.answered_at.get(one, 0.0) for one in self._models[model_id])

    def _note(self, model_id: str, *, has_failed: bool) -> None:
        if has_failed and model_id not in self._failed:
            self._failed.add(model_id)
            logger.warning("no replica answers model=%s", model_id)
        elif not has_failed and model_id in self._failed:
            self._failed.remove(model_id)
            logger.warning("replicas answer again model=%s", model_id)
