"""Reads and changes the shares of versions in a running cluster.

Like `node_drain`, this module talks only to the cluster's control store (GCS), so it needs no Serve controller.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from pydantic import ValidationError

from rerank_service.config import VersionConfig, readable_problems
from rerank_service.routing.traffic_store import StoredTraffic, TrafficStore
from rerank_service.tools.deployment.node_drain import Cluster

__all__ = ["Change", "changed", "rolled_back", "running_traffic"]

_INGRESS = "ingress"
_ALL_PERCENT = 100


class Change(NamedTuple):
    """The new share of a version."""

    application: str
    version: str
    before: VersionConfig
    after: VersionConfig


def running_traffic(cluster: Cluster, store: TrafficStore) -> dict[str, StoredTraffic]:
    """The shares of all applications that have versions and a running ingress, by application."""
    running = {
        replica.application
        for node in cluster.nodes()
        for replica in cluster.occupants(node.id).replicas
        if replica.deployment == _INGRESS
    }
    stored = {name: store.read(name) for name in store.applications() if name in running}
    return {name: traffic for name, traffic in stored.items() if traffic is not None and traffic.current}


def changed(
    traffic: Mapping[str, StoredTraffic], version: str, traffic_percent: float | None, shadow_percent: float | None
) -> list[Change]:
    """Gives a version a new share, in each application that has the version. A version that is to answer requests
    stops being a shadow, and the other way round. Raises `ValueError` if no application has the version, or if a share
    is invalid."""
    changes = []
    for application, one in traffic.items():
        before = one.current.get(version)
        if before is None:
            continue
        shares = {"traffic_percent": traffic_percent or 0.0, "shadow_percent": shadow_percent or 0.0}
        try:
            after = VersionConfig.model_validate({"of": before.of} | shares)
        except ValidationError as error:
            raise ValueError(readable_problems(error, VersionConfig)) from None
        changes.append(Change(application, version, before, after))
        _check_sums(one, changes[-1])
    if not changes:
        known = sorted({name for one in traffic.values() for name in one.current})
        raise ValueError(f"no running application has a version {version!r}; there are {', '.join(known) or 'none'}")
    return changes


def rolled_back(traffic: Mapping[str, StoredTraffic], model: str | None) -> list[Change]:
    """Takes all requests from all versions, or from one version, or from the versions of one model. Raises `ValueError`
    if no application has the named model."""
    concerned = [
        Change(application, version, share, share.model_copy(update={"traffic_percent": 0.0}))
        for application, one in traffic.items()
        for version, share in one.current.items()
        if model in (None, version, share.of)
    ]
    if not concerned and model is not None:
        raise ValueError(f"no running application has versions of {model!r}")
    return [change for change in concerned if change.after != change.before]


def _check_sums(traffic: StoredTraffic, change: Change) -> None:
    sums: defaultdict[str, float] = defaultdict(float)
    for share in (traffic.current | {change.version: change.after}).values():
        sums[share.of] += share.traffic_percent
    if sums[change.after.of] > _ALL_PERCENT:
        raise ValueError(
            f"the versions of {change.after.of} would answer {sums[change.after.of]:g}% of its requests; lower the "
            "share of another version first"
        )
