"""Whether every configured model has really scored a pair."""

import asyncio
import logging
from collections.abc import Sequence

from rerank_service.errors import RerankError
from rerank_service.fitting import Fitting
from rerank_service.ranker import Ranker

__all__ = ["Readiness"]

logger = logging.getLogger(__name__)

_RETRY_S = 0.5
_QUERY, _PASSAGE = "Is the service ready?", "It is, once this pair has a logit."


class Readiness:
    """Probes each model through the whole path until it has answered once."""

    def __init__(self, ranker: Ranker, model_ids: Sequence[str]) -> None:
        self._ranker = ranker
        self._waiting = list(model_ids)
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """Models that have not answered yet."""
        return tuple(self._waiting)

    def start(self) -> None:
        """Begins to probe; call it where an event loop runs."""
        self._task = asyncio.get_running_loop().create_task(self._probe_all())

    def stop(self) -> None:
        """Ends the probing."""
        if self._task is not None:
            self._task.cancel()

    async def _probe_all(self) -> None:
        await asyncio.gather(*(self._probe(model_id) for model_id in tuple(self._waiting)))

    async def _probe(self, model_id: str) -> None:
        while model_id in self._waiting:
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
