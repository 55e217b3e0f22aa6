"""The Serve context of a replica."""

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest
from ray.serve import context
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.config import DeploymentConfig
from ray.serve.schema import ReplicaRank


@pytest.fixture
async def serve_context() -> AsyncIterator[None]:
    """Makes this process look like a replica: `@serve.batch` reads the replica's `max_ongoing_requests`."""
    context._set_internal_replica_context(
        replica_id=ReplicaID("replica", DeploymentID("model", "application")),
        servable_object=print,
        _deployment_config=DeploymentConfig(max_ongoing_requests=1000),
        rank=ReplicaRank(rank=0, node_rank=0, local_rank=0),
        world_size=1,
    )
    yield
    context._INTERNAL_REPLICA_CONTEXT = None
    queues = asyncio.all_tasks() - {asyncio.current_task()}
    for task in queues:
        task.cancel()
    await asyncio.gather(*queues, return_exceptions=True)
    gc.collect()  # if Serve's queue is deleted outside an event loop, it creates a loop
