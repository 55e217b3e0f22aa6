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
from functools import partial
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
        shard = next(iter(_shards(pending_request)), None)
        avoid = shard.avoid if shard is not None else ()
        request_id = pending_request.metadata.internal_request_id if pending_request is not None else ""
        usable = self._table.usable(candidate_replicas, _id_of, avoid, shard, request_id)
        ranked = self._ranked(usable, pending_request)
        if ranked and pending_request is not None:
            pending_request.routing_context.should_backoff = True  # without it, Serve retries in a busy loop
            if (task := asyncio.current_task()) is not None:
                self._choosing[task] = pending_request
            self._claim(pending_request, ranked[0], is_only_one=len(candidate_replicas) == 1)
        return [[replica] for replica in ranked[:NUM_CHOICES]]

    def _ranked(self, replicas: Sequence[RunningReplica], pending: PendingRequest | None) -> list[RunningReplica]:
        num_tokens = _num_tokens(pending) if pending is not None else 1
        by_distance = self.rank_replicas_via_locality(list(replicas))  # this node, this zone, elsewhere
        distances = {_id_of(replica): index for index, group in enumerate(by_distance) for replica in group}
        return self._table.best(replicas, _id_of, num_tokens, distance_of=lambda one: distances[_id_of(one)])

    def _claim(self, pending: PendingRequest, replica: RunningReplica, is_only_one: bool) -> None:
        num_tokens, replica_id = _num_tokens(pending), _id_of(replica)
        limit = None if is_only_one else self._table.decline_above(replica_id, num_tokens)
        pending.args = [
            replace(argument, decline_above=limit if argument.may_decline else None)
            if isinstance(argument, Shard)
            else argument
            for argument in pending.args
        ]
        suspect = next((shard.attempt for shard in _shards(pending) if shard.avoid), None)
        self._table.claim(id(pending), pending.metadata.internal_request_id, replica_id, num_tokens, suspect)
        pending.future.add_done_callback(partial(self._release_if_cancelled, id(pending)))

    def _release_if_cancelled(self, call: int, future: Any) -> None:
        if future.cancelled():
            self._table.release(call)

    def _fulfill_next_pending_request(self, replica: RunningReplica, request_metadata: Any = None) -> None:
        """Assigns the replica to the request for which it was chosen. `FIFOMixin` would assign it to the oldest pending
        request, which may be a retry that must avoid this replica."""
        task = asyncio.current_task()
        pending = self._choosing.pop(task, None) if task is not None else None
        if pending is None:
            super()._fulfill_next_pending_request(replica, request_metadata)
        elif not pending.future.done():
            self._record_queue_wait_time(pending)
            pending.future.set_result(replica)
            self._remove_pending_request_from_indices(pending)

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Called by Serve when a replica has accepted a request."""
        request_id = pending_request.metadata.internal_request_id
        attempt = max((shard.attempt for shard in _shards(pending_request)), default=0)
        self._table.send(id(pending_request), request_id, replica_id.unique_id, _num_tokens(pending_request), attempt)

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


def _num_tokens(pending: PendingRequest) -> int:
    return sum(shard.num_tokens for shard in _shards(pending)) or 1
