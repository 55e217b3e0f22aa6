"""From a model's name to the Serve deployment that scores with it; the only place that calls replicas.

Every failure of Ray comes out of here as one of our errors. The model's id travels inside the shard rather
than as Serve's `multiplexed_model_id`, which slows a busy deployment that does not load models on demand
(docs/decisions/0004).
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import grpc  # type: ignore[import-untyped]
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from rerank_service.config import ModelConfig, RerankConfig
from rerank_service.errors import Loc, ReplicaUnavailable, RerankError, UnknownModel
from rerank_service.metrics import definitions
from rerank_service.metrics.of_ingress import IngressMetrics
from rerank_service.shards import Shard, ShardScores
from rerank_service.tracing import Tracing

__all__ = ["ModelRouter", "ScoreMethod"]


logger = logging.getLogger(__name__)

_MAX_REPLICAS = 2
"""That one shard may be given to: a second if the first dies."""


class _ReplicaLost(Exception):
    """The process that was scoring is gone, or cannot be reached any more."""


class ScoreMethod(Protocol):
    """`handle.score` of a deployment handle: a remote call that can be awaited and cancelled."""

    def remote(self, shard: Shard) -> Any: ...


class ModelRouter:
    """Names and aliases, and a remote `score` for each model."""

    def __init__(
        self,
        config: RerankConfig,
        score_methods: Mapping[str, ScoreMethod],
        metrics: IngressMetrics | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """`score_methods` has one entry a model, by id."""
        self.models = config.models
        self.metrics = metrics or IngressMetrics()
        self.tracing = tracing or Tracing(config.tracing)
        self._score_methods = score_methods
        self._outstanding_tokens: Counter[str] = Counter()
        self.answered_at: dict[str, float] = {}
        """When a replica of each model last answered, on the event loop's clock. A refusal is an answer."""
        self._default = config.default_model_id
        self._by_name = {name.casefold(): model for model in config.models for name in model.names}
        # Reversed, so that of two models with the same slug the one configured first answers.
        self._by_slug = {_slug(name): model for name, model in reversed(self._by_name.items())}

    def resolve(self, name: str | None) -> ModelConfig:
        """The model of a name or alias; of null, the default. Raises `UnknownModel`."""
        model = self._by_name.get((self._default if name is None else name).casefold())
        if model is None:
            raise self._unknown(str(name), ("body", "model"))
        return model

    def resolve_slug(self, slug: str) -> ModelConfig:
        """The model of a hosted URL: its name without the organisation, with `_` for `.`."""
        model = self._by_slug.get(_slug(slug.casefold()))
        if model is None:
            raise self._unknown(slug, ("path", "slug"))
        return model

    async def score(self, shard: Shard) -> ShardScores:
        """Scores a shard on some replica of its model. Cancelling it cancels the replica's work.

        If that replica or its node dies, another scores it, and the caller does not notice. What two replicas
        died of may well be the shard: it is not given to a third. An application's error is never retried.
        """
        self._count_outstanding(shard.model, shard.num_tokens)
        try:
            return await self._score_somewhere(shard)
        finally:
            self._count_outstanding(shard.model, -shard.num_tokens)

    async def probe(self, shard: Shard) -> None:
        """Sends a shard once, without a trace or a count. Raises whatever comes of it."""
        await self._score_once(shard)

    def _count_outstanding(self, model: str, num_tokens: int) -> None:
        self._outstanding_tokens[model] += num_tokens
        self.metrics.record(definitions.OUTSTANDING_TOKENS, self._outstanding_tokens[model], model)

    async def _score_somewhere(self, shard: Shard) -> ShardScores:
        started = time.perf_counter()
        for attempt in range(1, _MAX_REPLICAS + 1):
            left_s = shard.timeout_s and max(0.0, shard.timeout_s - (time.perf_counter() - started))
            try:
                with self.tracing.shard(shard, attempt) as span:
                    scores = await self._score_once(replace(shard, timeout_s=left_s))
                    self.tracing.stages(span, scores)
                if scores.report is not None:
                    self.metrics.hear(shard.model, scores.report)
                return scores
            except _ReplicaLost as lost:
                self.metrics.record(definitions.RETRIED_SHARDS, attempt < _MAX_REPLICAS, shard.model)
                logger.warning(
                    "replica lost model=%s attempt=%d num_pairs=%d", shard.model, attempt, len(shard.passages)
                )
                cause = lost.__cause__
        raise ReplicaUnavailable(shard.model) from cause

    async def _score_once(self, shard: Shard) -> ShardScores:
        response = self._score_methods[shard.model].remote(shard)
        try:
            scores: ShardScores = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except RayTaskError as error:
            own_error = _own_error(error, shard.model)
            if not isinstance(own_error, _ReplicaLost | ReplicaUnavailable):
                self._note_answer(shard.model)
            raise own_error from error
        except (RayActorError, grpc.RpcError) as error:  # the latter under HAProxy, where calls are gRPC
            raise _ReplicaLost from error
        except RayServeException as error:
            raise ReplicaUnavailable(shard.model) from error
        self._note_answer(shard.model)
        return scores

    def _note_answer(self, model: str) -> None:
        self.answered_at[model] = asyncio.get_running_loop().time()

    def _unknown(self, name: str, loc: Loc) -> UnknownModel:
        return UnknownModel(name, [name for model in self.models for name in model.names], loc)


def _own_error(error: RayTaskError, model: str) -> Exception:
    """What the replica raised: `str()` of the wrapper is a traceback, its `cause` is the error."""
    cause = error.cause
    if isinstance(cause, RerankError):
        return cause
    if isinstance(cause, RayActorError):
        return _ReplicaLost()
    if isinstance(cause, RayError | RayServeException):
        return ReplicaUnavailable(model)
    return error


def _slug(name: str) -> str:
    return name.rsplit("/", 1)[-1].replace(".", "_")
