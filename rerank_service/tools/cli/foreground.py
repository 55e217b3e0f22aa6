"""Runs the applications of a configuration file in the foreground, for `rerank-service serve`.

`serve run` starts applications in the same way but stops differently: it kills the controller while waiting for the
controller's answer. Ray then reports a failed call, and requests in flight remain unanswered.
"""

import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType

import httpx
import ray
from ray import serve
from ray._private.services import canonicalize_bootstrap_address
from ray.serve._private import constants
from ray.serve._private.client import ServeControllerClient
from ray.serve.config import ProxyLocation, gRPCOptions
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from rerank_service.config import MODEL_IMPORT_PATH
from rerank_service.errors import ConfigError
from rerank_service.tools.cli.console import fail, stderr
from rerank_service.tools.cli.ports import Endpoint, local_url, problem_of, reserve, url_of
from rerank_service.tools.cli.serve_file import read_serve_file

__all__ = ["endpoints_of", "run"]

_POLL_S = 0.2
_READINESS_POLL_S = 2.0


def run(path: str) -> None:
    """Serves a configuration file until SIGINT or SIGTERM. Raises `SystemExit(2)` if Serve's part of the file is
    invalid or a port is in use.

    A second signal raises `KeyboardInterrupt`, which stops the service at once.
    """
    try:
        config = read_serve_file(path)
    except ConfigError as error:
        sys.exit(fail(f"{path} cannot be served\n{error}").exit_code)
    _interrupt_on_signals()
    try:
        _start(config, path)
        _wait_until_ready(config)
        while True:
            signal.pause()
    except KeyboardInterrupt:
        stderr.print("stopping after the requests in flight; press Ctrl-C again to stop at once")
    _stop()


def endpoints_of(config: ServeDeploySchema, path: str) -> list[Endpoint]:
    """The addresses on this machine that Serve will listen on, each with the setting that chooses it."""
    http = config.http_options
    endpoints = []
    if config.proxy_location is not ProxyLocation.Disabled:
        endpoints.append(Endpoint(http.host, http.port, f"http_options.port in {path}"))
    if config.grpc_options.grpc_servicer_functions:
        endpoints.append(Endpoint(http.host, config.grpc_options.port, f"grpc_options.port in {path}"))
    if constants.RAY_SERVE_ENABLE_HA_PROXY:
        everywhere = "0.0.0.0"  # noqa: S104 - HAProxy listens on all interfaces
        variables = (
            ("RAY_SERVE_HAPROXY_STATS_PORT", constants.RAY_SERVE_HAPROXY_STATS_PORT),
            ("RAY_SERVE_HAPROXY_METRICS_PORT", constants.RAY_SERVE_HAPROXY_METRICS_PORT),
            ("RAY_SERVE_FALLBACK_PROXY_HTTP_PORT", constants.RAY_SERVE_FALLBACK_PROXY_HTTP_PORT),
        )
        endpoints += [Endpoint(everywhere, port, f"the environment variable {name}") for name, port in variables]
    return endpoints


def _start(config: ServeDeploySchema, path: str) -> None:
    endpoints = endpoints_of(config, path)
    joins_a_cluster = canonicalize_bootstrap_address(None) is not None  # type: ignore[arg-type]  # the same lookup as in ray.init()
    if not joins_a_cluster:
        _require_free(endpoints)
        # HAProxy listens without SO_REUSEPORT, so it cannot share a reserved port.
        if not constants.RAY_SERVE_ENABLE_HA_PROXY:
            for endpoint in endpoints:
                reserve(endpoint)
    ray.init(namespace=constants.SERVE_NAMESPACE)
    _interrupt_on_signals()  # again, because ray.init installs handlers that end Ray at once
    if joins_a_cluster and not _controller_runs():
        _require_free(endpoints)
    serve.start(
        config.proxy_location,
        config.http_options.model_dump(),
        gRPCOptions(**config.grpc_options.model_dump()),
        controller_options=config.controller_options,
    )
    _client().deploy_apps(config)


def _wait_until_ready(config: ServeDeploySchema) -> None:
    """Prints one line when the service is ready, and returns. Without an HTTP proxy, returns at once."""
    prefixes = [one.route_prefix for one in config.applications if one.import_path != MODEL_IMPORT_PATH]
    if config.proxy_location is ProxyLocation.Disabled or not prefixes or prefixes[0] is None:
        return
    http, prefix = config.http_options, prefixes[0].rstrip("/")
    scheme = "https" if http.ssl_certfile else "http"
    health = f"{local_url(http.host, http.port, scheme)}{prefix}/v1/health/ready"
    # The certificate names the service's public host, not this machine's address.
    with httpx.Client(verify=False, trust_env=False, timeout=_READINESS_POLL_S) as client:  # noqa: S501
        while not _answers(client, health):
            time.sleep(_READINESS_POLL_S)
    address = url_of(http.host, http.port, scheme) + prefix
    stderr.print(f"ready on {address}", markup=False, highlight=False, soft_wrap=True)


def _answers(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(url).is_success
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


def _require_free(endpoints: Sequence[Endpoint]) -> None:
    for endpoint in endpoints:
        if problem := problem_of(endpoint):
            sys.exit(fail(problem).exit_code)


def _stop() -> None:
    """Shuts Serve down and waits until Serve has ended.

    Applications with routes are deleted first, which lets their requests finish. Serve's own shutdown would kill the
    proxies at once.
    """
    if ray.is_initialized() and _controller_runs():
        client = _client()
        routed = {name for name, one in client.get_serve_details()["applications"].items() if one["route_prefix"]}
        client.delete_apps(list(routed), blocking=False)
        while routed & client.get_serve_details()["applications"].keys():
            time.sleep(_POLL_S)
        controller = ray.get_actor(constants.SERVE_CONTROLLER_NAME, namespace=constants.SERVE_NAMESPACE)
        ray.get(controller.graceful_shutdown.remote(wait=False))
        while _controller_runs():
            time.sleep(_POLL_S)
    ray.shutdown()


def _client() -> ServeControllerClient:
    client = _get_global_client()
    assert client is not None  # noqa: S101 - a controller runs
    return client


def _controller_runs() -> bool:
    """Asks Ray instead of the controller: if the controller ended during a call, Ray would report a failed call."""
    try:
        ray.get_actor(constants.SERVE_CONTROLLER_NAME, namespace=constants.SERVE_NAMESPACE)
    except ValueError:
        return False
    return True


def _interrupt_on_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _interrupt(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt
