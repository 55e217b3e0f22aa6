"""Stops Serve so that requests in flight are answered, for `rerank-service serve`.

Serve's own ways to stop lose requests. Its shutdown kills the proxies at once. Deleting an application stops its
ingresses and its models' replicas together, so an ingress finds no replica for the shards that it has not sent yet.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.serve._private import constants
from ray.serve._private.client import ServeControllerClient
from ray.serve._private.common import DeploymentID, ReplicaState
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ServeApplicationSchema, ServeDeploySchema

__all__ = ["controller_runs", "serve_client", "stop_serve"]

_POLL_S = 0.2
_IDLE_S = 1.0
"""How long no replica may have a request before applications are deleted. A request may be on its way from a proxy to
an ingress."""


def stop_serve() -> None:
    """Refuses new requests, waits for the requests in flight, and shuts Serve down. Returns when Serve has ended."""
    if not ray.is_initialized() or not controller_runs():
        return
    client = serve_client()
    applications = client.get_serve_details()["applications"]
    routed = {name: one for name, one in applications.items() if one["route_prefix"]}
    if running := {name: one for name, one in routed.items() if one["status"] == ApplicationStatus.RUNNING}:
        _close_routes(client, running)
        _wait_until_idle(client, running)
    client.delete_apps(list(routed), blocking=False)
    while routed.keys() & client.get_serve_details()["applications"].keys():
        time.sleep(_POLL_S)
    ray.get(_controller().graceful_shutdown.remote(wait=False))
    while controller_runs():
        time.sleep(_POLL_S)


def serve_client() -> ServeControllerClient:
    """Serve's client. The controller must be running."""
    client = _get_global_client()
    assert client is not None  # noqa: S101 - a controller runs
    return client


def controller_runs() -> bool:
    """Asks Ray instead of the controller: if the controller ended during a call, Ray would report a failed call."""
    try:
        _controller()
    except ValueError:
        return False
    return True


def _controller() -> Any:
    return ray.get_actor(constants.SERVE_CONTROLLER_NAME, namespace=constants.SERVE_NAMESPACE)


def _close_routes(client: ServeControllerClient, running: Mapping[str, Any]) -> None:
    """Deploys the current configurations again, without the routes of the running applications.

    No deployment changes apart from the route, so Serve keeps all replicas. Proxies answer new requests with 404,
    and HAProxy with 503. An ingress without a route still accepts every request that a proxy has already sent.
    """
    configs: dict[str, ServeApplicationSchema] = ray.get(_controller().get_app_configs.remote())
    closed = [
        config.model_copy(update={"route_prefix": None}) if name in running else config
        for name, config in configs.items()
    ]
    target_capacity = client.get_serve_details().get("target_capacity")
    client.deploy_apps(ServeDeploySchema(applications=closed, target_capacity=target_capacity))


def _wait_until_idle(client: ServeControllerClient, running: Mapping[str, Any]) -> None:
    """Waits until the applications have no routes and no requests, at most as long as Serve would let a replica finish
    its requests."""
    graces_s = [
        deployment["deployment_config"]["graceful_shutdown_timeout_s"]
        for application in running.values()
        for deployment in application["deployments"].values()
    ]
    now_s = time.monotonic()
    deadline_s, idle_since_s = now_s + max(graces_s), now_s
    while now_s < deadline_s and now_s - idle_since_s < _IDLE_S:
        time.sleep(_POLL_S)
        now_s = time.monotonic()
        if _has_routes(running) or _has_requests(client, running):
            idle_since_s = now_s


def _has_routes(running: Mapping[str, Any]) -> bool:
    endpoints: dict[DeploymentID, Any] = ray.get(_controller().get_all_endpoints.remote())
    return any(endpoint.app_name in running for endpoint in endpoints)


def _has_requests(client: ServeControllerClient, running: Mapping[str, Any]) -> bool:
    """Whether a replica of the applications has a request. A started replica that does not answer may have one."""
    applications = client.get_serve_details()["applications"]
    calls: list[ray.ObjectRef[int]] = []
    for name in running.keys() & applications.keys():
        for deployment in applications[name]["deployments"].values():
            started = [one for one in deployment["replicas"] if one["state"] != ReplicaState.STARTING]
            for replica in started:
                with suppress(ValueError):  # the replica has ended
                    actor = ray.get_actor(replica["actor_name"], namespace=constants.SERVE_NAMESPACE)
                    calls.append(actor.get_num_ongoing_requests.remote())
    return any(map(_is_busy, calls))


def _is_busy(call: ray.ObjectRef[int]) -> bool:
    try:
        return bool(ray.get(call, timeout=_IDLE_S))
    except RayActorError:
        return False
    except GetTimeoutError:
        return True
