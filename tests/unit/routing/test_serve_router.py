"""The request routers inside Serve's router, without a cluster. Only the replicas are stand-ins."""

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID, RequestMetadata
from ray.serve.request_router import PendingRequest

from rerank_service.messages import Fitting, ReplicaLoad, Shard
from rerank_service.routing.replica_table import ReplicaTable, table_of
from rerank_service.routing.request_router import ExpectedSecondsRouter, PoolRouter

SHARD = Shard("r", "model", "q", ("p",), (0,), Fitting(), 100, 100)


class StandIn:
    """The part of a running replica that Serve's router uses."""

    max_ongoing_requests = 1_000
    multiplexed_model_ids: frozenset[str] = frozenset()

    def __init__(self, name: str, deployment: DeploymentID, node: str = "far", zone: str = "other") -> None:
        self.replica_id = ReplicaID(name, deployment)
        self.node_id, self.availability_zone = node, zone

    async def get_queue_len(self, *, deadline_s: float) -> int:
        await asyncio.sleep(0.001 if self.replica_id.unique_id == "a" else 0)  # lets choices overtake each other
        return 0


class Routed:
    """A router with its table, used in the same way as by Serve's `assign_request`."""

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

    def pending(self, shard: Shard) -> PendingRequest:
        metadata = RequestMetadata(request_id=shard.request_id, internal_request_id=shard.request_id)
        return PendingRequest(args=[shard], kwargs={}, metadata=metadata)

    async def assign(self, shard: Shard) -> str:
        pending = self.pending(shard)
        chosen = await self.router._choose_replica_for_request(pending)
        self.sent: Shard = pending.args[0]
        return str(chosen.replica_id.unique_id)


@pytest.fixture
def routed(request: pytest.FixtureRequest) -> Routed:
    return Routed(request, ExpectedSecondsRouter)


async def test_during_an_update_all_shards_of_a_request_go_to_replicas_with_the_same_numerics(routed: Routed) -> None:
    names = "abcd"
    routed.update(*map(routed.replica, names))
    numerics = dict(zip(names, ("int8", "int8", "float32", "float32"), strict=True))
    for name in names:
        routed.table.mark_answered(name, "model", numerics[name])

    chosen = [
        {numerics[await routed.assign(replace(SHARD, request_id=f"request {request}"))] for _ in range(4)}
        for request in range(6)
    ]
    wanted = await routed.assign(replace(SHARD, request_id="repeated", numerics="float32"))

    assert [len(found) for found in chosen] == [1] * 6
    assert chosen[0] != chosen[1]  # both versions answer requests
    assert numerics[wanted] == "float32"


async def test_shards_of_a_request_spread_and_their_routes_are_known(routed: Routed) -> None:
    routed.update(routed.replica("a"), routed.replica("b"))

    chosen = await asyncio.gather(*(routed.assign(replace(SHARD, attempt=number)) for number in range(1, 9)))

    assert sorted(chosen) == ["a"] * 4 + ["b"] * 4
    assert [routed.table.route_of(number) for number in range(1, 9)] == chosen


async def test_a_retry_never_gets_the_replica_chosen_for_another_shard(routed: Routed) -> None:
    routed.update(routed.replica("a"), routed.replica("b"), routed.replica("c"))
    shards = [replace(SHARD, avoid=("b",) if number % 2 else ("a",), num_tokens=number) for number in range(1, 60)]

    chosen = await asyncio.gather(*map(routed.assign, shards))

    assert not [replica for replica, shard in zip(chosen, shards, strict=True) if replica in shard.avoid]


async def test_reports_decide_and_the_shard_carries_the_expected_backlog(routed: Routed) -> None:
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
    assert await routed.assign(SHARD) == "b"  # the near replica is busy now


async def test_the_table_knows_the_number_of_running_replicas(routed: Routed) -> None:
    assert routed.table.count_running is not None
    assert routed.table.count_running() == 0
    routed.update(routed.replica("a"), routed.replica("b"))
    assert routed.table.count_running() == 2
    routed.update()
    assert routed.table.count_running() == 0


async def test_a_pool_considers_the_load_of_other_ingresses(request: pytest.FixtureRequest) -> None:
    routed = Routed(request, PoolRouter, spread_above_tokens=1_000)
    with_model, other = routed.replica("a"), routed.replica("b")
    with_model.multiplexed_model_ids = frozenset(["model"])
    routed.update(with_model, other)
    assert await routed.assign(SHARD) == "a"

    routed.table.add_report(ReplicaLoad("a", 5_000, 1_000.0, 1.0))
    routed.table.add_report(ReplicaLoad("b", 0, 1_000.0, 1.0))
    assert await routed.assign(SHARD) == "b"


@pytest.mark.parametrize("is_behind_haproxy", [False, True])
async def test_nothing_is_outstanding_once_all_calls_have_ended(routed: Routed, is_behind_haproxy: bool) -> None:
    routed.update(routed.replica("a"))
    pending = routed.pending(SHARD)
    chosen = await routed.router._choose_replica_for_request(pending)
    assert routed.table.expected_tokens("a") == SHARD.num_tokens

    reports: list[Any] = [
        lambda: routed.router.on_request_routed(pending, chosen.replica_id, cast(Any, None)),
        lambda: routed.router.on_request_completed(chosen.replica_id, SHARD.request_id),
    ]
    for report in reversed(reports) if is_behind_haproxy else reports:  # gRPC reports the acceptance with the answer
        report()

    assert routed.table.expected_tokens("a") == 0


async def test_a_call_cancelled_between_its_choice_and_its_sending_is_forgotten(routed: Routed) -> None:
    routed.update(routed.replica("a"))
    pending = routed.pending(SHARD)
    call = asyncio.create_task(routed.router._choose_replica_for_request(pending))
    pending.future.add_done_callback(lambda _: call.cancel())

    with pytest.raises(asyncio.CancelledError):
        await call

    assert pending.future.result().replica_id.unique_id == "a"
    assert routed.table.expected_tokens("a") == 0


async def test_a_call_cancelled_before_its_choice_is_forgotten(routed: Routed) -> None:
    routed.update(routed.replica("a"))
    call = asyncio.create_task(routed.router._choose_replica_for_request(routed.pending(SHARD)))
    while not routed.table.expected_tokens("a"):  # until the call is claimed for the replica
        await asyncio.sleep(0)
    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await call

    assert routed.table.expected_tokens("a") == 0


async def test_an_attempt_that_its_replica_did_not_accept_has_no_replica(routed: Routed) -> None:
    replica = routed.replica("a")
    routed.update(replica)
    pending = routed.pending(replace(SHARD, attempt=1))
    await routed.router._choose_replica_for_request(pending)
    assert routed.table.route_of(1) == "a"

    routed.update()
    routed.router.on_request_completed(replica.replica_id, SHARD.request_id)
    retry = asyncio.create_task(routed.router._choose_replica_for_request(pending, is_retry=True))
    await asyncio.sleep(0)
    assert routed.table.route_of(1) is None

    routed.update(routed.replica("b"))
    await retry
    assert routed.table.route_of(1) == "b"
