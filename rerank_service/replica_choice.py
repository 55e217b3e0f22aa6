"""Which replica a shard goes to: the one with the fewest tokens that this handle has sent and not got back; in a pool,
first of all one that has the model.

Serve's own choice, the shorter of two random queues, counts calls; a shard may be one short passage or sixteen
thousand tokens (docs/decisions/0008). Loaded by Serve in every process that holds a handle.
"""

import heapq
import random
import zlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

from rerank_service.shards import Shard

__all__ = ["FewestTokensRouter", "OutstandingTokens", "PoolRouter", "fewest_tokens", "rank_pool"]

_NUM_CHOICES = 3


class OutstandingTokens:
    """Tokens sent to each replica and not yet answered.

    A call is claimed when a replica is chosen for it and not when the replica accepts it, so that the shards of one
    request, chosen one after the other within a millisecond, see each other.
    """

    def __init__(self) -> None:
        self._by_replica: defaultdict[Hashable, int] = defaultdict(int)
        self._claims: dict[int, tuple[Hashable, str, int]] = {}  # by call: replica, request id, tokens
        self._sent: defaultdict[tuple[Hashable, str], list[int]] = defaultdict(list)

    def __getitem__(self, replica: Hashable) -> int:
        return self._by_replica[replica]

    def claim(self, call: int, request_id: str, replica: Hashable, num_tokens: int) -> None:
        """`call` will be sent to `replica`; a later claim of the same call replaces this one."""
        self.release(call)
        self._claims[call] = (replica, request_id, num_tokens)
        self._by_replica[replica] += num_tokens

    def release(self, call: int) -> None:
        """`call` will be sent nowhere; does nothing if it was never claimed, or has been sent."""
        if (claim := self._claims.pop(call, None)) is not None:
            self._by_replica[claim[0]] -= claim[2]

    def send(self, call: int, request_id: str, replica: Hashable, num_tokens: int) -> None:
        """`call` was sent to `replica`, whichever had been claimed."""
        self.release(call)
        self._sent[replica, request_id].append(num_tokens)
        self._by_replica[replica] += num_tokens

    def complete(self, request_id: str, replica: Hashable) -> None:
        """One call of the request is over on this replica. Calls of one request share their id: which, is not known."""
        if sent := self._sent.get((replica, request_id)):
            self._by_replica[replica] -= sent.pop()
            if not sent:
                del self._sent[replica, request_id]
        else:  # it never got there
            self.release(next((call for call, claim in self._claims.items() if claim[:2] == (replica, request_id)), 0))

    def keep_only(self, replicas: set[Hashable]) -> None:
        """Forgets replicas that are gone."""
        for replica in self._by_replica.keys() - replicas:
            del self._by_replica[replica]
        for key in [key for key in self._sent if key[0] not in replicas]:
            del self._sent[key]
        for call in [call for call, claim in self._claims.items() if claim[0] not in replicas]:
            del self._claims[call]


_ReplicaT = TypeVar("_ReplicaT")


def fewest_tokens(
    outstanding: OutstandingTokens,
    replicas: Sequence[_ReplicaT],
    id_of: Callable[[_ReplicaT], Hashable],
    limit: int = _NUM_CHOICES,
    tie_break: Callable[[], float] = random.random,
) -> list[_ReplicaT]:
    """The replicas with the fewest tokens outstanding, best first; `tie_break` orders equals.

    Not sorted all: over 1,000 replicas that takes twice the time (docs/capacity.md).
    """
    return heapq.nsmallest(limit, replicas, key=lambda replica: (outstanding[id_of(replica)], tie_break()))


class FewestTokensRouter(FIFOMixin, RequestRouter):
    """Serve's request router of a model's deployment. `FIFOMixin`: shards of one request share their request id, and
    Serve would otherwise match a chosen replica to one of them only."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._outstanding = OutstandingTokens()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The best replicas, best first; a full one refuses and the next is asked."""
        ranked = self._ranked(candidate_replicas, pending_request)
        if ranked and pending_request is not None:
            pending_request.routing_context.should_backoff = True  # else Serve asks again without a pause
            self._claim(pending_request, ranked[0].replica_id)
        return [[replica] for replica in ranked[:_NUM_CHOICES]]

    def _ranked(self, replicas: list[RunningReplica], _: PendingRequest | None) -> list[RunningReplica]:
        return fewest_tokens(self._outstanding, replicas, lambda replica: replica.replica_id)

    def _claim(self, pending: PendingRequest, replica: ReplicaID) -> None:
        self._outstanding.claim(id(pending), pending.metadata.internal_request_id, replica, _num_tokens(pending))
        pending.future.add_done_callback(partial(self._release_if_cancelled, id(pending)))

    def _release_if_cancelled(self, call: int, future: Any) -> None:
        if future.cancelled():
            self._outstanding.release(call)

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Serve calls it when a replica has accepted."""
        request_id = pending_request.metadata.internal_request_id
        self._outstanding.send(id(pending_request), request_id, replica_id, _num_tokens(pending_request))

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Serve calls it once for every call it sent or tried to send."""
        self._outstanding.complete(internal_request_id, replica_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Serve calls it when replicas come and go."""
        super().update_replicas(replicas)
        self._outstanding.keep_only({replica.replica_id for replica in replicas})


class PoolRouter(FewestTokensRouter):
    """Serve's request router of a pool's deployment."""

    def initialize_state(self, **options: Any) -> None:
        """Serve calls it with the deployment's `request_router_kwargs`."""
        self._spread_above_tokens: int = options["spread_above_tokens"]

    def _ranked(self, replicas: list[RunningReplica], pending: PendingRequest | None) -> list[RunningReplica]:
        models = [shard.model for shard in _shards(pending)] if pending else []
        if not models:
            return super()._ranked(replicas, pending)
        by_name = {replica.replica_id.unique_id: replica for replica in replicas}
        states = {
            name: (self._outstanding[replica.replica_id], models[0] in replica.multiplexed_model_ids)
            for name, replica in by_name.items()
        }
        return [by_name[name] for name in rank_pool(models[0], states, self._spread_above_tokens)]


def rank_pool(model: str, replicas: Mapping[str, tuple[int, bool]], spread_above_tokens: int) -> list[str]:
    """Names of a pool's replicas, best first, given the tokens each has outstanding and whether it has the model.

    One that has the model is best until more than `spread_above_tokens` are outstanding there; then another may load
    it. Where none has it, every handle agrees on who loads it, without asking anybody (rendezvous hashing).
    """

    def order(name: str) -> tuple[int, bool, int]:
        num_tokens, has_model = replicas[name]
        return num_tokens // (spread_above_tokens + 1), not has_model, -zlib.crc32(f"{model}/{name}".encode())

    return sorted(replicas, key=order)


def _shards(pending: PendingRequest) -> list[Shard]:
    return [argument for argument in pending.args if isinstance(argument, Shard)]


def _num_tokens(pending: PendingRequest) -> int:
    return sum(shard.num_tokens for shard in _shards(pending)) or 1
