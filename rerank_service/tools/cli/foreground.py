"""Runs the applications of a configuration in the foreground, for `rerank-service serve`.

`serve run` starts applications in the same way but stops differently: it kills the controller while waiting for the
controller's answer. Ray then reports a failed call, and requests in flight remain unanswered.
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NamedTuple

import ray
from ray import serve
from ray._private.services import canonicalize_bootstrap_address
from ray.exceptions import RayActorError
from ray.serve._private import constants
from ray.serve.config import ProxyLocation, gRPCOptions
from ray.serve.schema import ServeDeploySchema

from rerank_service.config import parse_serve_config
from rerank_service.errors import ConfigError
from rerank_service.tools.cli.api_keys import warn_of_open_access
from rerank_service.tools.cli.console import fail, stderr
from rerank_service.tools.cli.ports import Endpoint, problem_of, reserve
from rerank_service.tools.cli.serve_file import read_serve_text
from rerank_service.tools.cli.startup import StartFailed, wait_until_ready
from rerank_service.tools.cli.stopping import controller_runs, serve_client, stop_serve
from rerank_service.tools.cli.terminal_log import (
    WarningsOnly,
    quieten_driver,
    quieten_workers,
    use_colour_only_on_terminals,
)

__all__ = ["Serving", "endpoints_of", "run"]


class Serving(NamedTuple):
    """A configuration to serve."""

    text: str
    """The YAML of the configuration."""
    name: str
    """Its name in messages."""
    port_setting: str
    """The setting that chooses the port, in messages."""
    host: str | None = None
    """Address to listen on; null: `http_options.host` of the configuration."""
    port: int | None = None
    """Port to listen on; null: `http_options.port` of the configuration."""
    is_verbose: bool = False
    """Whether all lines of Ray's processes reach the terminal."""
    has_dashboard: bool = False
    """Whether a Ray that this process starts has a dashboard: ten processes with 300 MB."""


class _Stopped(KeyboardInterrupt):
    """A signal asked the process to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run(serving: Serving) -> None:
    """Serves a configuration until SIGINT or SIGTERM.

    Raises `SystemExit(2)` if Serve's part of the configuration is invalid or a port is in use, `SystemExit(1)` if a
    replica cannot start, and `SystemExit` with 128 plus the signal's number if a signal stops the service before it is
    ready. A second signal raises `KeyboardInterrupt`, which stops the service at once.
    """
    try:
        settings, config = parse_serve_config(serving.text, serving.name), read_serve_text(serving.text)
    except ConfigError as error:
        sys.exit(fail(f"{serving.name} cannot be served\n{error}").exit_code)
    http = config.http_options
    http.host, http.port = serving.host or http.host, serving.port or http.port
    if constants.RAY_SERVE_ENABLE_HA_PROXY and http.ssl_keyfile:  # it would serve the port without TLS
        sys.exit(fail("HAProxy does not speak TLS here: leave out --haproxy, or http_options.ssl_keyfile").exit_code)
    is_ready, status = False, 0
    try:
        _interrupt_on_signals()
        with stderr.status("starting"):
            terminal = _start(config, serving)
            lines = wait_until_ready(config, settings)
        is_ready = True
        warn_of_open_access(http.host, settings.auth)
        for line in lines:
            stderr.print(line, markup=False, highlight=False, soft_wrap=True)
        if terminal is not None:
            terminal.is_starting = False
        while True:
            signal.pause()
    except StartFailed as error:
        fail(str(error))
        status = 1
    except _Stopped as stopped:
        status = 0 if is_ready else 128 + stopped.number  # as a shell reports a program that a signal ends
        what = "stopping after the requests in flight" if is_ready else "stopping"
        stderr.print(f"{what}; press Ctrl-C again to stop at once")
    _stop(is_half_started=status > 1)
    if status:
        sys.exit(status)


def _stop(*, is_half_started: bool) -> None:
    try:
        stop_serve()
    except Exception as error:
        if not is_half_started:
            raise
        reason = f"warning: Serve had not started completely and could not be stopped in order: {error}"
        stderr.print(reason, markup=False, highlight=False, soft_wrap=True)
    ray.shutdown()


def endpoints_of(config: ServeDeploySchema, setting: str) -> list[Endpoint]:
    """The addresses on this machine that Serve will listen on, each with the setting that chooses it.

    `setting` chooses the port for HTTP.
    """
    http = config.http_options
    endpoints = []
    if config.proxy_location is not ProxyLocation.Disabled:
        endpoints.append(Endpoint(http.host, http.port, setting))
    if config.grpc_options.grpc_servicer_functions:
        endpoints.append(Endpoint(http.host, config.grpc_options.port, "grpc_options.port of the configuration"))
    if constants.RAY_SERVE_ENABLE_HA_PROXY:
        variables = (
            ("RAY_SERVE_HAPROXY_STATS_PORT", constants.RAY_SERVE_HAPROXY_STATS_PORT),
            ("RAY_SERVE_HAPROXY_METRICS_PORT", constants.RAY_SERVE_HAPROXY_METRICS_PORT),
            ("RAY_SERVE_FALLBACK_PROXY_HTTP_PORT", constants.RAY_SERVE_FALLBACK_PROXY_HTTP_PORT),
        )
        endpoints += [Endpoint(http.host, port, f"the environment variable {name}") for name, port in variables]
    return endpoints


def _start(config: ServeDeploySchema, serving: Serving) -> WarningsOnly | None:
    """Starts Ray and the applications. Returns the filter between Ray's processes and the terminal; null if
    `serving.is_verbose`."""
    endpoints = endpoints_of(config, serving.port_setting)
    joins_a_cluster = canonicalize_bootstrap_address(None) is not None  # type: ignore[arg-type]  # the same lookup as in ray.init()
    if not joins_a_cluster:
        _require_free(endpoints)
        # HAProxy listens without SO_REUSEPORT, so it cannot share a reserved port.
        if not constants.RAY_SERVE_ENABLE_HA_PROXY:
            for endpoint in endpoints:
                reserve(endpoint)
    # Without its dashboard, Ray still exports metrics: the node's agent does that.
    dashboard = None if joins_a_cluster else serving.has_dashboard
    terminal = _start_ray(dashboard, is_verbose=serving.is_verbose)
    if joins_a_cluster and not controller_runs():
        _require_free(endpoints)
    _start_serve(config)
    serve_client().deploy_apps(config)
    return terminal


def _start_serve(config: ServeDeploySchema) -> None:
    try:
        serve.start(
            config.proxy_location,
            config.http_options.model_dump(),
            gRPCOptions(**config.grpc_options.model_dump()),
            controller_options=config.controller_options,
        )
    except TimeoutError as error:
        raise StartFailed(f"Serve cannot start here: {error}") from None
    except RayActorError as error:
        # The controller replaces a proxy that starts too slowly, and gives the next one more time.
        if not controller_runs():
            raise StartFailed(f"Serve cannot start here: {error}") from None


def _start_ray(dashboard: bool | None, *, is_verbose: bool) -> WarningsOnly | None:
    use_colour_only_on_terminals(os.environ)
    if not is_verbose:
        quieten_driver()
    try:
        ray.init(
            namespace=constants.SERVE_NAMESPACE,
            logging_level=logging.INFO if is_verbose else logging.WARNING,
            include_dashboard=dashboard,
        )
    except SystemExit as error:
        if error.code != signal.SIGTERM:
            raise
        raise _Stopped(signal.SIGTERM) from None  # ray.init handles SIGTERM itself with sys.exit(SIGTERM)
    except Exception as error:  # a plain one, if the machine is so busy that Ray's processes take too long
        raise StartFailed(f"Ray cannot start here, or its cluster cannot be reached: {error}") from None
    finally:
        _interrupt_on_signals()  # again, because ray.init has replaced the handlers
    return None if is_verbose else quieten_workers()


def _require_free(endpoints: Sequence[Endpoint]) -> None:
    for endpoint in endpoints:
        if problem := problem_of(endpoint):
            sys.exit(fail(problem).exit_code)


def _interrupt_on_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _interrupt(number: int, _: FrameType | None) -> None:
    raise _Stopped(number)
