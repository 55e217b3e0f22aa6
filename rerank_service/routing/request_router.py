"""Serve's hook for routing: a shard is sent to the replica expected to finish it first or, in a pool, to a replica that
has the model loaded.

Serve's default router picks the shorter of two random queues. That router counts calls, but a shard may be one short
passage or sixteen thousand tokens (docs/decisions/0008). Serve loads this module in every process that holds a handle.
The choice and its state are in `replica_table`, which the model router uses too.
"""

import asyncio
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary, ref

from ray.serve.request_router import (
    FIFOMixin,
    LocalityMixin,
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)

from rerank_service.messages import Shard
from rerank_service.routing.replica_table import NUM_CHOICES, table_of

__all__ = ["ExpectedSecondsRouter", "PoolRouter", "rank_pool"]


class ExpectedSecondsRouter(FIFOMixin, LocalityMixin, RequestRouter):
    """Serve's request router for the deployment of a model.

    This router needs `FIFOMixin` because all shards of a request have the request's id: without the mixin, Serve would
    match a chosen replica to only one of these shards.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._table = table_of(self._deployment_id)
        self._choosing: WeakKeyDictionary[asyncio.Task[Any], PendingRequest] = WeakKeyDictionary()
        router = ref(self)
        self._table.count_running = lambda: len(one.curr_replicas) if (one := router()) is not None else 0

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Returns the best replicas, best first. If a replica is full, Serve asks the next replica."""
        ranked = self._usable_ranked(candidate_replicas, pending_request)
        if ranked and pending_request is not None:
            pending_request.routing_context.should_backoff = True  # without it, Serve retries in a busy loop
            if (task := asyncio.current_task()) is not None:
                self._choosing[task] = pending_request
            self._claim(pending_request, ranked[0], is_only_one=len(candidate_replicas) == 1)
        return [[replica] for replica in ranked[:NUM_CHOICES]]

    def _usable_ranked(self, replicas: list[RunningReplica], pending: PendingRequest | None) -> list[RunningReplica]:
        if len(replicas) < 2:
            return replicas
        shards = _shards(pending)
        if pending is None or not shards:
            return self._ranked(self._table.usable(replicas, _id_of), pending)
        request_id = pending.metadata.internal_request_id
        return self._ranked(self._table.usable(replicas, _id_of, shards[0].avoid, shards[0], request_id), pending)

    def _ranked(self, replicas: Sequence[RunningReplica], pending: PendingRequest | None) -> list[RunningReplica]:
        num_tokens = _num_tokens(pending) if pending is not None else 1
        by_distance = self.rank_replicas_via_locality(list(replicas))  # this node, this zone, elsewhere
        distances = {_id_of(replica): index for index, group in enumerate(by_distance) for replica in group}
        return self._table.best(replicas, _id_of, num_tokens, distance_of=lambda one: distances[_id_of(one)])

    def _claim(self, pending: PendingRequest, replica: RunningReplica, is_only_one: bool) -> None:
        num_tokens, replica_id = _num_tokens(pending), _id_of(replica)
        limit = None if is_only_one else self._table.decline_above(replica_id, num_tokens)
        for index, argument in enumerate(pending.args):
            if isinstance(argument, Shard) and argument.may_decline and argument.decline_above != limit:
                pending.args[index] = replace(argument, decline_above=limit)
        suspect = next((shard.attempt for shard in _shards(pending) if shard.avoid), None)
        self._table.claim(id(pending), pending.metadata.internal_request_id, replica_id, num_tokens, suspect)

    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, *, is_retry: bool = False
    ) -> RunningReplica:
        """Called by Serve before it sends a request, and again with `is_retry` if the replica did not accept it.

        If no request waits and the best replica has room, the choice is made at once. Serve's own way, with its queues
        and a task for each choice, takes three times as long and is needed only for waiting.
        """
        if is_retry:
            self._table.reject(_attempt_of(pending_request))
        elif not self.num_pending_requests and self.curr_replicas:
            replicas = list(self.curr_replicas.values())
            best = self._usable_ranked(replicas, pending_request)[0]
            queue_len = self.replica_queue_len_cache.get(best.replica_id)
            if queue_len is not None and queue_len < best.max_ongoing_requests:
                self._claim(pending_request, best, is_only_one=len(replicas) == 1)
                self._send(pending_request, best)
                return best
        try:
            return await super()._choose_replica_for_request(pending_request, is_retry=is_retry)
        except asyncio.CancelledError:
            future, request_id = pending_request.future, pending_request.metadata.internal_request_id
            if future.done() and not future.cancelled():  # cancelled between the choice and the sending
                self._table.complete(request_id, _id_of(future.result()))
            self._table.release(id(pending_request))
            raise

    def _fulfill_next_pending_request(self, replica: RunningReplica, request_metadata: Any = None) -> None:
        """Assigns the replica to the request for which it was chosen. `FIFOMixin` would assign it to the oldest pending
        request, which may be a retry that must avoid this replica."""
        task = asyncio.current_task()
        pending = self._choosing.pop(task, None) if task is not None else None
        if pending is None:
            super()._fulfill_next_pending_request(replica, request_metadata)
        elif not pending.future.done():
            self._send(pending, replica)
            pending.future.set_result(replica)
            self._remove_pending_request_from_indices(pending)

    def _send(self, pending: PendingRequest, replica: RunningReplica) -> None:
        """Counts a call that Serve will send next. Behind HAProxy, Serve calls `on_request_routed` too late, with the
        answer."""
        self._record_queue_wait_time(pending)
        request_id, num_tokens = pending.metadata.internal_request_id, _num_tokens(pending)
        self._table.send(id(pending), request_id, _id_of(replica), num_tokens, _attempt_of(pending))

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Called by Serve once for each call that it sent or tried to send."""
        self._table.complete(internal_request_id, replica_id.unique_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Called by Serve when replicas start and stop."""
        super().update_replicas(replicas)
        self._table.keep_only({_id_of(replica) for replica in replicas})


class PoolRouter(ExpectedSecondsRouter):
    """Serve's request router for the deployment of a pool."""

    def initialize_state(self, **options: Any) -> None:
        """Called by Serve with the `request_router_kwargs` of the deployment."""
        self._spread_above_tokens: int = options["spread_above_tokens"]

    def _ranked(self, replicas: Sequence[RunningReplica], pending: PendingRequest | None) -> list[RunningReplica]:
        models = [shard.model for shard in _shards(pending)]
        if not models:
            return super()._ranked(replicas, pending)
        by_name = {_id_of(replica): replica for replica in replicas}
        with self._table.lock:
            states = {
                name: (round(self._table.expected_tokens(name)), models[0] in replica.multiplexed_model_ids)
                for name, replica in by_name.items()
            }
        return [by_name[name] for name in rank_pool(models[0], states, self._spread_above_tokens)]


def rank_pool(model: str, replicas: Mapping[str, tuple[int, bool]], spread_above_tokens: int) -> list[str]:
    """Names of a pool's replicas, best first. For each replica, `replicas` has the outstanding tokens and whether the
    model is loaded.

    A replica with the model comes first until it has more than `spread_above_tokens` outstanding tokens; then another
    replica may load the model. If no replica has the model loaded, rendezvous hashing makes all handles choose the same
    replica.
    """

    def order(name: str) -> tuple[int, bool, int]:
        num_tokens, has_model = replicas[name]
        return num_tokens // (spread_above_tokens + 1), not has_model, -zlib.crc32(f"{model}/{name}".encode())

    return sorted(replicas, key=order)


def _id_of(replica: RunningReplica) -> str:
    name: str = replica.replica_id.unique_id
    return name


def _shards(pending: PendingRequest | None) -> list[Shard]:
    return [argument for argument in pending.args if isinstance(argument, Shard)] if pending is not None else []


def _attempt_of(pending: PendingRequest) -> int:
    return max((shard.attempt for shard in _shards(pending)), default=0)


def _num_tokens(pending: PendingRequest) -> int:
    return sum(shard.num_tokens for shard in _shards(pending)) or 1
