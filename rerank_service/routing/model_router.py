"""From a model's name to the Serve deployment that scores with it; the only place that calls replicas.

Every failure of Ray comes out of here as one of our errors. The model's id travels inside the shard rather
than as Serve's `multiplexed_model_id`, which slows a busy deployment that does not load models on demand
(docs/decisions/0004).
"""

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import grpc  # type: ignore[import-untyped]
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from rerank_service.config import ModelConfig, RerankConfig
from rerank_service.errors import DeviceFailed, EngineFailed, Loc, ReplicaUnavailable, RerankError, UnknownModel
from rerank_service.messages import Declined, Shard, ShardScores
from rerank_service.routing.replica_table import MAX_DECLINED, ReplicaTable
from rerank_service.telemetry.ingress_metrics import IngressMetrics
from rerank_service.telemetry.metrics import OUTSTANDING_TOKENS, RETRIED_SHARDS
from rerank_service.telemetry.tracing import Tracing

__all__ = ["ModelRouter", "ScoreMethod"]


logger = logging.getLogger(__name__)

_MAX_REPLICAS = 2
"""That may die of a shard or fail on it: what two did follows the pairs, and is not given to a third."""
_POLL_S = 0.5
_POLLS_WITHOUT_REPLICA = 3
"""A call that is on no replica ends once so many polls in a row found none running."""
_ATTEMPTS = itertools.count(1)


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
        metrics: IngressMetrics,
        tracing: Tracing,
        tables: Mapping[str, ReplicaTable] | None = None,
    ) -> None:
        """`score_methods` has one entry a model, by id, and so have `tables`: what is known of its replicas."""
        self.models = config.models
        self._metrics = metrics
        self._tracing = tracing
        self._score_methods = score_methods
        self._tables = tables or {model_id: ReplicaTable() for model_id in score_methods}
        pools = {pool.name: pool for pool in config.pools}
        hosts = [(model.id, model if model.pool is None else pools[model.pool]) for model in config.models]
        self._from_zero = {model_id for model_id, host in hosts if host.autoscaling.min_replicas == 0}
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

        If that replica or its node dies, or its forward pass fails, another scores it, and the caller does not notice.
        What two replicas died of or failed on may well be the shard: it is not given to a third. Any other error of
        the application is never retried. Raises `ReplicaUnavailable` within two seconds where no replica is running,
        unless the model scales from zero: its requests wait for the start.
        """
        self._count_outstanding(shard.model, shard.num_tokens)
        try:
            return await self._score_somewhere(shard)
        finally:
            self._count_outstanding(shard.model, -shard.num_tokens)

    async def probe(self, shard: Shard) -> None:
        """Sends a shard once, without a trace of it or a count of its tokens. Raises whatever comes of it."""
        answer = await self._score_once(shard)
        if isinstance(answer, ShardScores) and answer.report is not None:  # it may have counts of others' batches
            self._metrics.add_report(shard.model, answer.report)

    def _count_outstanding(self, model: str, num_tokens: int) -> None:
        self._outstanding_tokens[model] += num_tokens
        self._metrics.record(OUTSTANDING_TOKENS, self._outstanding_tokens[model], model)

    async def _score_somewhere(self, shard: Shard) -> ShardScores:
        started, table = time.perf_counter(), self._tables[shard.model]
        failed: list[str | None] = []
        num_declined = 0
        while True:
            left_s = shard.timeout_s and max(0.0, shard.timeout_s - (time.perf_counter() - started))
            avoid = tuple(replica for replica in failed if replica is not None)
            may_decline, number = num_declined < MAX_DECLINED and not failed, next(_ATTEMPTS)
            attempt = replace(
                shard,
                timeout_s=left_s,
                attempt=number,
                avoid=avoid,
                may_decline=may_decline,
                is_counted=shard.is_counted or bool(failed),
            )
            try:
                with self._tracing.shard(attempt, len(failed) + 1) as span:
                    answer = await self._score_once(attempt)
                    if isinstance(answer, ShardScores):
                        self._tracing.stages(span, answer)
            except (_ReplicaLost, EngineFailed) as error:
                failed.append(table.route_of(number))
                self._refuse_poison(shard, failed, error)
                continue
            finally:
                replica = table.route_of(number)
                table.end_attempt(number)
            if answer.load is not None:
                table.add_report(answer.load)
            if isinstance(answer, Declined):
                num_declined += 1
                continue
            table.add_size(shard.num_tokens, sum(answer.num_tokens))
            if replica is not None:
                table.mark_answered(replica)
            if answer.report is not None:
                self._metrics.add_report(shard.model, answer.report)
            return answer

    def _refuse_poison(self, shard: Shard, failed: list[str | None], error: Exception) -> None:
        """After a failure: marks the replica. Raises if the failure followed the pairs, or there is nowhere else."""
        table = self._tables[shard.model]
        is_last = len(failed) == _MAX_REPLICAS
        is_elsewhere = table.count_running is None or table.count_running() > 1 or isinstance(error, _ReplicaLost)
        self._metrics.record(RETRIED_SHARDS, not is_last and is_elsewhere, shard.model)
        logger.warning(
            "%s model=%s attempt=%d num_pairs=%d",
            "replica lost" if isinstance(error, _ReplicaLost) else "replica failed",
            shard.model,
            len(failed),
            len(shard.passages),
        )
        first, last = failed[0], failed[-1]
        if is_last and first is not None and first != last and not isinstance(error, DeviceFailed):
            table.absolve(first)
        elif last is not None:
            table.mark_failed(last)
        if isinstance(error, EngineFailed) and (is_last or not is_elsewhere):
            raise error
        if is_last:
            raise ReplicaUnavailable(shard.model) from error.__cause__

    async def _score_once(self, shard: Shard) -> ShardScores | Declined:
        response = self._score_methods[shard.model].remote(shard)
        call = asyncio.ensure_future(_awaited(response))
        try:
            await self._wait(call, shard)
            answer = call.result()
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
        finally:
            call.cancel()
        self._note_answer(shard.model)
        return answer

    async def _wait(self, call: "asyncio.Future[Any]", shard: Shard) -> None:
        """Until the call is answered. Serve's router waits for ever where no replica is running; this raises
        `ReplicaUnavailable` instead. A call that a replica has is left alone, even while that replica is going; one
        whose replica was lost waits for the replacement."""
        table, num_without = self._tables[shard.model], 0
        may_wait = bool(shard.avoid) or shard.model in self._from_zero
        while not (await asyncio.wait({call}, timeout=_POLL_S))[0]:
            is_none = table.count_running is not None and table.count_running() == 0
            is_stranded = is_none and not may_wait and table.route_of(shard.attempt) is None
            num_without = num_without + 1 if is_stranded else 0
            if num_without == _POLLS_WITHOUT_REPLICA:
                raise ReplicaUnavailable(shard.model)

    def _note_answer(self, model: str) -> None:
        self.answered_at[model] = asyncio.get_running_loop().time()

    def _unknown(self, name: str, loc: Loc) -> UnknownModel:
        return UnknownModel(name, [name for model in self.models for name in model.names], loc)


async def _awaited(response: Awaitable[ShardScores | Declined]) -> ShardScores | Declined:
    return await response


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
