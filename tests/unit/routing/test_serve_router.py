"""Serve's own request router around our choice, without a cluster: the replicas are stand-ins, the rest is Serve's."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID, RequestMetadata
from ray.serve.request_router import PendingRequest

from rerank_service.messages import Fitting, ReplicaLoad, Shard
from rerank_service.routing.replica_table import ReplicaTable, table_of
from rerank_service.routing.request_router import ExpectedSecondsRouter, PoolRouter

SHARD = Shard("r", "model", "q", ("p",), (0,), Fitting(), 100, 100)


class StandIn:
    """What Serve's router asks of a running replica."""

    max_ongoing_requests = 1_000
    multiplexed_model_ids: frozenset[str] = frozenset()

    def __init__(self, name: str, deployment: DeploymentID, node: str = "far", zone: str = "other") -> None:
        self.replica_id = ReplicaID(name, deployment)
        self.node_id, self.availability_zone = node, zone

    async def get_queue_len(self, *, deadline_s: float) -> int:
        await asyncio.sleep(0.001 if self.replica_id.unique_id == "a" else 0)  # choices overtake each other
        return 0


class Routed:
    """A router, its table, and what Serve's own `assign_request` does with them."""

    def __init__(
        self, request: pytest.FixtureRequest, router_class: type[ExpectedSecondsRouter], **options: Any
    ) -> None:
        self.deployment = DeploymentID(request.node.name, "unit")
        self.table: ReplicaTable = table_of(self.deployment)
        source = DeploymentHandleSource.REPLICA
        self.router = router_class(
            deployment_id=self.deployment,
            handle_source=source,
            self_node_id="here",
            self_availability_zone="zone",
            use_replica_queue_len_cache=True,
        )
        self.router.initialize_state(**options)

    def update(self, *replicas: Any) -> None:
        self.router.update_replicas(list(replicas))

    def replica(self, name: str, **place: str) -> Any:
        return StandIn(name, self.deployment, **place)

    async def assign(self, shard: Shard) -> str:
        metadata = RequestMetadata(request_id=shard.request_id, internal_request_id=shard.request_id)
        pending = PendingRequest(args=[shard], kwargs={}, metadata=metadata)
        chosen = await self.router._choose_replica_for_request(pending)
        self.router.on_request_routed(pending, chosen.replica_id, None)
        self.sent: Shard = pending.args[0]
        return str(chosen.replica_id.unique_id)


@pytest.fixture
def routed(request: pytest.FixtureRequest) -> Routed:
    return Routed(request, ExpectedSecondsRouter)


async def test_siblings_spread_and_their_route_can_be_asked_for(routed: Routed) -> None:
    routed.update(routed.replica("a"), routed.replica("b"))

    chosen = await asyncio.gather(*(routed.assign(replace(SHARD, attempt=number)) for number in range(1, 9)))

    assert sorted(chosen) == ["a"] * 4 + ["b"] * 4
    assert [routed.table.route_of(number) for number in range(1, 9)] == chosen


async def test_a_retry_never_gets_the_replica_chosen_for_another_shard(routed: Routed) -> None:
    routed.update(routed.replica("a"), routed.replica("b"), routed.replica("c"))
    shards = [replace(SHARD, avoid=("b",) if number % 2 else ("a",), num_tokens=number) for number in range(1, 60)]

    chosen = await asyncio.gather(*map(routed.assign, shards))

    assert not [replica for replica, shard in zip(chosen, shards, strict=True) if replica in shard.avoid]


async def test_reports_decide_and_the_shard_carries_what_was_assumed(routed: Routed) -> None:
    routed.update(routed.replica("a"), routed.replica("b"))
    routed.table.add_report(ReplicaLoad("a", 9_000, 1_000.0, 1.0))
    routed.table.add_report(ReplicaLoad("b", 2_000, 1_000.0, 1.0))

    assert await routed.assign(replace(SHARD, may_decline=True)) == "b"
    assert routed.sent.decline_above is not None
    assert 2_000 < routed.sent.decline_above < 9_000
    await routed.assign(SHARD)
    assert routed.sent.decline_above is None


async def test_the_nearest_of_idle_replicas_is_chosen(routed: Routed) -> None:
    routed.update(
        routed.replica("a"), routed.replica("b", zone="zone"), routed.replica("c", node="here"), routed.replica("d")
    )

    assert await routed.assign(SHARD) == "c"
    assert await routed.assign(SHARD) == "b"  # the near one has work now


async def test_the_table_knows_how_many_replicas_run(routed: Routed) -> None:
    assert routed.table.count_running is not None
    assert routed.table.count_running() == 0
    routed.update(routed.replica("a"), routed.replica("b"))
    assert routed.table.count_running() == 2
    routed.update()
    assert routed.table.count_running() == 0


async def test_a_pool_sees_what_others_sent(request: pytest.FixtureRequest) -> None:
    routed = Routed(request, PoolRouter, spread_above_tokens=1_000)
    with_model, other = routed.replica("a"), routed.replica("b")
    with_model.multiplexed_model_ids = frozenset(["model"])
    routed.update(with_model, other)
    assert await routed.assign(SHARD) == "a"

    routed.table.add_report(ReplicaLoad("a", 5_000, 1_000.0, 1.0))
    routed.table.add_report(ReplicaLoad("b", 0, 1_000.0, 1.0))
    assert await routed.assign(SHARD) == "b"
