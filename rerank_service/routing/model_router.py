"""Finds the model with a given name and sends shards to the model's Serve deployment. Only this module calls replicas.

Every failure of Ray becomes one of the service's errors. The shard itself carries the model's id: Serve's own
`multiplexed_model_id` slows down a busy deployment that does not load models on demand (docs/decisions/0004).
"""

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import grpc  # type: ignore[import-untyped]
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from rerank_service.config import CascadeConfig, ModelConfig, RerankConfig
from rerank_service.errors import DeviceFailed, EngineFailed, Loc, ReplicaUnavailable, RerankError, UnknownModel
from rerank_service.messages import Deadline, Declined, Shard, ShardScores
from rerank_service.routing.replica_table import MAX_DECLINED, ReplicaTable
from rerank_service.telemetry.ingress_metrics import IngressMetrics
from rerank_service.telemetry.metrics import OUTSTANDING_TOKENS, RETRIED_SHARDS
from rerank_service.telemetry.tracing import Tracing

__all__ = ["ModelRouter", "ScoreMethod", "slug_of"]

logger = logging.getLogger(__name__)

_MAX_REPLICAS = 2
"""Number of replicas that may be lost or fail on a shard: after two, the shard itself is the likely cause."""
_POLL_S = 0.5
_POLLS_WITHOUT_REPLICA = 3
"""Number of consecutive polls without a running replica after which a waiting call ends."""
_ATTEMPTS = itertools.count(1)


class _ReplicaLost(Exception):
    """The replica's process has died or can no longer be reached."""


class ScoreMethod(Protocol):
    """`handle.score` of a deployment handle: a remote call that can be awaited and cancelled."""

    def remote(self, shard: Shard) -> Any:
        """Starts the call."""


class ModelRouter:
    """The models of the service, by name, alias and slug, and a remote `score` method for each model."""

    def __init__(
        self,
        config: RerankConfig,
        score_methods: Mapping[str, ScoreMethod],
        metrics: IngressMetrics,
        tracing: Tracing,
        tables: Mapping[str, ReplicaTable] | None = None,
    ) -> None:
        """`score_methods` and `tables` have one entry per model id; a table holds what this process knows about the
        model's replicas."""
        self._listed = config.listed
        self._versions = frozenset(config.versions)
        self._metrics = metrics
        self._tracing = tracing
        self._score_methods = score_methods
        self._tables = tables or {model_id: ReplicaTable() for model_id in score_methods}
        pools = {pool.name: pool for pool in config.pools}
        hosts = [(model.id, model if model.pool is None else pools[model.pool]) for model in config.models]
        self._from_zero = {model_id for model_id, host in hosts if host.autoscaling.min_replicas == 0}
        self._outstanding_tokens: Counter[str] = Counter()
        self.answered_at: dict[str, float] = {}
        """Time of the last answer from a replica, by model id, on the event loop's clock. A refusal counts as an
        answer."""
        self._default = config.default_model_id
        versions = (model for model in config.models if model.version is not None)
        self._by_name: dict[str, ModelConfig | CascadeConfig] = {
            name.casefold(): model for model in (*config.listed, *versions) for name in model.names
        }
        # Reversed, so that the first of two models with the same slug stays in the dict.
        self._by_slug = {slug_of(name): model for name, model in reversed(self._by_name.items())}

    def resolve(self, name: str | None, or_default: bool = False) -> ModelConfig | CascadeConfig:
        """The model or cascade with this name or alias; for null, the default one, and with `or_default` also for an
        unknown name. Raises `UnknownModel`."""
        model = self._by_name.get((self._default if name is None else name).casefold())
        if model is None:
            if or_default:
                return self._by_name[self._default.casefold()]
            raise self._unknown(str(name), ("body", "model"))
        return model

    def resolve_slug(self, slug: str) -> ModelConfig | CascadeConfig:
        """The model or cascade with this slug: its name without the organisation and with `_` for `.`, as in hosted
        URLs. Raises `UnknownModel`."""
        model = self._by_slug.get(slug_of(slug.casefold()))
        if model is None:
            raise self._unknown(slug, ("path", "slug"))
        return model

    def may_answer(self, model_id: str) -> bool:
        """Whether Serve's router knows a running replica of the model, or has not been asked yet."""
        count_running = self._tables[model_id].count_running
        return count_running is None or count_running() > 0

    async def score(self, shard: Shard, deadline: Deadline) -> ShardScores:
        """Scores a shard on one of the model's replicas. Cancelling the call also cancels the replica's work.

        If the replica or its node dies, or if the forward pass fails, a second replica scores the shard. If the second
        replica fails as well, the shard itself may be the cause, and no third replica receives it. No other error is
        retried. Raises `ReplicaUnavailable` within two seconds if no replica is running. If the model scales from zero,
        the call waits for a replica to start instead.
        """
        table = self._tables[shard.model]
        failed: list[str | None] = []  # replicas; null if the shard was lost before a replica accepted it
        num_declined = 0
        outstanding = self._outstanding_tokens
        outstanding[shard.model] += shard.num_tokens
        self._metrics.record(OUTSTANDING_TOKENS, outstanding[shard.model], shard.model)
        try:
            while True:
                attempt = replace(
                    shard,
                    timeout_s=deadline.remaining_s(),
                    attempt=next(_ATTEMPTS),
                    avoid=tuple(filter(None, failed)),
                    may_decline=num_declined < MAX_DECLINED and not failed,
                    is_counted=shard.is_counted or bool(failed),
                )
                try:
                    with self._tracing.shard(attempt, len(failed) + 1) as span:
                        answer = await self._call(attempt)
                        if isinstance(answer, ShardScores):
                            self._tracing.stages(span, answer)
                except (_ReplicaLost, EngineFailed) as error:
                    failed.append(table.route_of(attempt.attempt))
                    self._note_failure(shard, failed, error)
                    continue
                finally:
                    replica = table.end_attempt(attempt.attempt)
                if isinstance(answer, ShardScores):
                    table.add_size(shard.num_tokens, sum(answer.num_tokens))
                    if replica is not None:
                        table.mark_answered(replica, shard.model, answer.numerics)
                    return answer
                num_declined += 1
        finally:
            outstanding[shard.model] -= shard.num_tokens
            self._metrics.record(OUTSTANDING_TOKENS, outstanding[shard.model], shard.model)

    async def probe(self, shard: Shard) -> None:
        """Sends a shard once, without a span and without counting its tokens. Raises the errors of the replica."""
        await self._call(shard)

    async def _call(self, shard: Shard) -> ShardScores | Declined:
        """Sends a shard to the replica that Serve's router chooses, and waits for the answer.

        A call that no replica has accepted ends with `ReplicaUnavailable` after a few polls without a running replica;
        Serve's router would wait forever. A call that a replica has accepted continues even while that replica stops. A
        retry after the loss of a replica waits for the replacement, except for a version, whose model answers instead.
        """
        table, polls_without_replica = self._tables[shard.model], 0
        is_version = shard.model in self._versions
        may_wait = (bool(shard.avoid) and not is_version) or shard.model in self._from_zero
        response = self._score_methods[shard.model].remote(shard)
        call = asyncio.ensure_future(response)
        try:
            while not (await asyncio.wait({call}, timeout=_POLL_S))[0]:
                is_none_running = table.count_running is not None and table.count_running() == 0
                is_stranded = is_none_running and not may_wait and table.route_of(shard.attempt) is None
                polls_without_replica = polls_without_replica + 1 if is_stranded else 0
                if polls_without_replica == _POLLS_WITHOUT_REPLICA:
                    raise ReplicaUnavailable(shard.model)
            answer: ShardScores | Declined = call.result()
        except asyncio.CancelledError:
            response.cancel()
            raise
        except RayTaskError as error:
            own_error = _own_error(error, shard.model)
            if not isinstance(own_error, _ReplicaLost | ReplicaUnavailable):
                self.answered_at[shard.model] = asyncio.get_running_loop().time()
            raise own_error from error
        except (RayActorError, grpc.RpcError) as error:  # under HAProxy, calls use gRPC
            raise _ReplicaLost from error
        except RayServeException as error:
            raise ReplicaUnavailable(shard.model) from error
        finally:
            call.cancel()
        self.answered_at[shard.model] = asyncio.get_running_loop().time()
        if answer.load is not None:
            table.add_report(answer.load)
        if isinstance(answer, ShardScores) and answer.report is not None:
            self._metrics.add_report(shard.model, answer.report)
        return answer

    def _note_failure(self, shard: Shard, failed: list[str | None], error: Exception) -> None:
        """Marks the replica of the latest failure. Raises an error unless another replica may try the shard."""
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
            table.absolve(first)  # two replicas failed on the same pairs: the pairs are the likely cause
        elif last is not None:
            table.mark_failed(last)
        if isinstance(error, EngineFailed) and (is_last or not is_elsewhere):
            raise error
        if is_last:
            raise ReplicaUnavailable(shard.model) from error.__cause__

    def _unknown(self, name: str, loc: Loc) -> UnknownModel:
        return UnknownModel(name, [name for model in self._listed for name in model.names], loc)


def _own_error(error: RayTaskError, model: str) -> Exception:
    """The error that the replica raised: Ray's wrapper holds it as `cause`."""
    cause = error.cause
    if isinstance(cause, RerankError):
        return cause
    if isinstance(cause, RayActorError):
        return _ReplicaLost()
    if isinstance(cause, RayError | RayServeException):
        return ReplicaUnavailable(model)
    return error


def slug_of(name: str) -> str:
    """A model's name in hosted URLs: without the organisation, and with `_` for `.`."""
    return name.rsplit("/", 1)[-1].replace(".", "_")
