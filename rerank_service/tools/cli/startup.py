"""Waits until a service that was started in the foreground is ready, and reports readiness or the failure in words."""

import re
import time
from collections.abc import Iterator, Mapping
from itertools import count
from typing import NamedTuple

import httpx
from ray import serve
from ray.serve.config import ProxyLocation
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, ServeDeploySchema

from rerank_service.config import APP_IMPORT_PATH, MODEL_IMPORT_PATH, RerankConfig
from rerank_service.tools.cli.api_keys import needs_key
from rerank_service.tools.cli.console import stderr
from rerank_service.tools.cli.ports import local_url, url_of

__all__ = ["StartFailed", "failed_attempts", "failure_of", "ready_lines", "reason_in", "wait_until_ready"]

_READINESS_POLL_S = 0.2
_POLLS_PER_STATUS = 5
"""The status costs the controller work that a starting service needs the processor for."""
_REQUEST_LIMIT_S = 2.0
_OURS = "rerank_service.errors."
_ERROR_LINE = re.compile(r"^([A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt)\w*): (.+)")
_FINAL = (f"{_OURS}CheckpointError", f"{_OURS}ConfigError")
"""Errors that another attempt would repeat."""


class StartFailed(Exception):
    """The service cannot become ready; the message is for people."""


class _Address(NamedTuple):
    """Where the service answers: as configured, and from this machine."""

    public: str
    local: str


def wait_until_ready(config: ServeDeploySchema, settings: RerankConfig) -> list[str]:
    """Waits for the readiness of the ingress. Returns lines that announce it; none without an HTTP proxy.

    Raises `StartFailed` if a replica cannot start.
    """
    address = _address(config)
    if address is None:
        return []
    names = [one.name for one in config.applications if one.import_path in (APP_IMPORT_PATH, MODEL_IMPORT_PATH)]
    versions_apart = {model.application for model in settings.models if model.version is not None}
    required = [name for name in names if name not in versions_apart]
    # The certificate names the service's public host, not this machine's address.
    with httpx.Client(verify=False, trust_env=False, timeout=_REQUEST_LIMIT_S) as client:  # noqa: S501
        told: set[str] = set()
        polls = count()
        while not _answers(client, f"{address.local}/v1/health/ready"):
            time.sleep(_READINESS_POLL_S)
            if next(polls) % _POLLS_PER_STATUS:
                continue
            applications = serve.status().applications
            if (reason := failure_of(applications, required)) is not None:
                raise StartFailed(reason)
            for line in sorted(set(failed_attempts(applications, names)) - told):
                told.add(line)
                stderr.print(f"warning: {line}", markup=False, highlight=False, soft_wrap=True)
    return list(ready_lines(address.public, address.local, settings))


def ready_lines(public: str, local: str, settings: RerankConfig) -> Iterator[str]:
    """The announcement: the address, then the models, the page, the documentation of the API, and whether keys are
    needed."""
    yield f"ready on {public}"
    for number, model in enumerate(settings.models):
        role = "" if model.version is None else f", a version of {model.version.of}"
        yield f"  {'' if number else 'models':<6}  {model.id}{role}"
    for cascade in settings.cascades:
        yield f"  {'':<6}  {cascade.id}, a cascade of {', '.join(stage.model for stage in cascade.stages)}"
    if settings.service.playground:
        yield f"  page    {local}/"
    yield f"  docs    {local}/docs"
    if needs_key(settings.auth):
        yield "  keys    requests need a key"


def failure_of(applications: Mapping[str, ApplicationStatusOverview], names: list[str]) -> str | None:
    """The reason why one of the named applications cannot start, in one line; null while it may still start."""
    for name in names:
        application = applications.get(name)
        if application is None:
            continue
        has_ended = application.status is ApplicationStatus.DEPLOY_FAILED
        for deployment, state in application.deployments.items():
            error = _error_in(state.message)
            if error is not None and (has_ended or error.startswith(_FINAL)):
                return f"{deployment} cannot start: {reason_in(error)}"
        if has_ended:
            return f"application {name} cannot start: {reason_in(application.message)}"
    return None


def failed_attempts(applications: Mapping[str, ApplicationStatusOverview], names: list[str]) -> Iterator[str]:
    """A line for each deployment of the named applications that failed to start and is started again."""
    for name in names:
        for deployment, state in applications[name].deployments.items() if name in applications else ():
            if (error := _error_in(state.message)) is not None:
                yield f"{deployment} failed to start and is started again: {reason_in(error)}"


def reason_in(message: str) -> str:
    """The last error in a message of Serve, which often contains a traceback; else the message's last line."""
    error = _error_in(message)
    if error is None:
        return (message.strip().splitlines() or ["no reason given"])[-1].strip()
    return error.partition(": ")[2] if error.startswith(_OURS) else error


def _error_in(message: str) -> str | None:
    """The last line such as `package.SomeError: reason`."""
    lines = [line.strip() for line in message.splitlines()]
    return next((line for line in reversed(lines) if _ERROR_LINE.match(line)), None)


def _address(config: ServeDeploySchema) -> _Address | None:
    prefixes = [one.route_prefix for one in config.applications if one.import_path != MODEL_IMPORT_PATH]
    if config.proxy_location is ProxyLocation.Disabled or not prefixes or prefixes[0] is None:
        return None
    http, prefix = config.http_options, prefixes[0].rstrip("/")
    scheme = "https" if http.ssl_certfile else "http"
    return _Address(url_of(http.host, http.port, scheme) + prefix, local_url(http.host, http.port, scheme) + prefix)


def _answers(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(url).is_success
    except (httpx.HTTPError, httpx.InvalidURL):
        return False
