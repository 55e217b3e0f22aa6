"""The announcement of readiness, the reasons of failed starts, and the lines of Ray that reach the terminal."""

import logging
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, Response
from ray.serve.schema import ApplicationStatus, ServeDeploySchema

from rerank_service.config import AuthConfig, RerankConfig
from rerank_service.tools.cli import startup
from rerank_service.tools.cli.api_keys import warn_of_open_access
from rerank_service.tools.cli.terminal_log import WarningsOnly, quieten_driver, use_colour_only_on_terminals
from tests.http_servers import running
from tests.models import embedded_model

DEPLOYING, FAILED = ApplicationStatus.DEPLOYING, ApplicationStatus.DEPLOY_FAILED
TRACEBACK = """A replica failed to start with exception. Retrying 2 more time(s). Error:
ray::ServeReplica:rerank:tiny.initialize_and_get_metadata() (pid=1, ip=192.0.2.2)
  File "replica.py", line 1, in load
{error}
"""


def application(status: ApplicationStatus, error: str = "", message: str = "") -> Any:
    state = SimpleNamespace(message=TRACEBACK.format(error=error) if error else "")
    return SimpleNamespace(status=status, message=message, deployments={"tiny": state})


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (application(DEPLOYING), None),
        (
            application(DEPLOYING, "rerank_service.errors.CheckpointError: it is damaged"),
            "tiny cannot start: it is damaged",
        ),
        (application(DEPLOYING, "torch.OutOfMemoryError: CUDA out of memory"), None),
        (application(FAILED, "torch.OutOfMemoryError: full"), "tiny cannot start: torch.OutOfMemoryError: full"),
        (
            application(FAILED, message="Traceback:\n  x\nrerank_service.errors.ConfigError: no such key\n"),
            "application rerank cannot start: no such key",
        ),
        (application(FAILED, message="It failed.\n"), "application rerank cannot start: It failed."),
    ],
)
def test_only_a_final_failure_ends_the_start(state: Any, reason: str | None) -> None:
    assert startup.failure_of({"rerank": state}, ["rerank"]) == reason
    assert startup.failure_of({"other": state}, ["rerank"]) is None


def test_a_failure_that_serve_repeats_is_told_with_its_reason() -> None:
    state = application(DEPLOYING, "torch.OutOfMemoryError: full")
    lines = list(startup.failed_attempts({"rerank": state}, ["rerank", "other"]))
    assert lines == ["tiny failed to start and is started again: torch.OutOfMemoryError: full"]


def settings(**service: Any) -> RerankConfig:
    model = embedded_model().model_dump(mode="json")
    return RerankConfig.model_validate({"models": [model, model | {"id": "b", "aliases": []}], "service": service})


def test_the_announcement_shows_address_models_page_and_documentation() -> None:
    public, local = "http://0.0.0.0:8000", "http://127.0.0.1:8000"
    first = embedded_model().id
    assert list(startup.ready_lines(public, local, settings())) == [
        f"ready on {public}",
        f"  models  {first}",
        "          b",
        f"  page    {local}/",
        f"  docs    {local}/docs",
    ]
    assert not any("page" in line for line in startup.ready_lines(public, local, settings(playground=False)))
    keyed = settings().model_copy(update={"auth": AuthConfig(key_hashes=("0" * 64,))})
    assert list(startup.ready_lines(public, local, keyed))[-1] == "  keys    requests need a key"


def test_the_announcement_names_the_stages_of_a_cascade() -> None:
    models = settings().model_dump(mode="json")["models"]
    stages = [{"model": "b", "keep": 10}, {"model": embedded_model().id}]
    config = RerankConfig.model_validate({"models": models, "cascades": [{"id": "both", "stages": stages}]})

    lines = list(startup.ready_lines("http://a", "http://a", config))

    assert lines[3] == f"          both, a cascade of b, {embedded_model().id}"


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104
def test_it_waits_until_the_ingress_is_ready(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    api, statuses = FastAPI(), [503, 503, 200]
    monkeypatch.setattr(startup, "_READINESS_POLL_S", 0.05)
    monkeypatch.setattr(startup.serve, "status", lambda: SimpleNamespace(applications={}))

    @api.get("/rerank/v1/health/ready")
    def ready(response: Response) -> None:
        response.status_code = statuses.pop(0)

    one = {"import_path": "rerank_service.app:build_app", "route_prefix": "/rerank"}
    with running(api) as url:
        port = int(url.rpartition(":")[2])
        http = {"host": host, "port": port}
        config = ServeDeploySchema.model_validate({"http_options": http, "applications": [one]})
        lines = startup.wait_until_ready(config, settings())

    assert statuses == []
    assert lines[0] == f"ready on http://{host}:{port}/rerank"
    assert lines[-1] == f"  docs    http://127.0.0.1:{port}/rerank/docs"


def test_a_version_that_cannot_start_does_not_end_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its model answers without it. The same failure of a model's own application ends the start."""
    api, statuses = FastAPI(), [503, 200, 503]
    failed = {"apart": application(FAILED, "rerank_service.errors.CheckpointError: it is damaged")}
    monkeypatch.setattr(startup, "_READINESS_POLL_S", 0.05)
    monkeypatch.setattr(startup.serve, "status", lambda: SimpleNamespace(applications=failed))

    @api.get("/v1/health/ready")
    def ready(response: Response) -> None:
        response.status_code = statuses.pop(0)

    own = {"id": "own", "checkpoint": {"source": "/a"}}
    apart = {"id": "v2", "checkpoint": {"source": "/b"}, "application": "apart"}
    with running(api) as url:
        http = {"host": "127.0.0.1", "port": int(url.rpartition(":")[2])}
        applications = [
            {"name": "rerank", "import_path": "rerank_service.app:build_app", "route_prefix": "/"},
            {"name": "apart", "import_path": "rerank_service.app:build_model", "route_prefix": None},
        ]
        config = ServeDeploySchema.model_validate({"http_options": http, "applications": applications})
        version = RerankConfig.model_validate({"models": [own, apart | {"version": {"of": "own"}}]})
        lines = startup.wait_until_ready(config, version)
        with pytest.raises(startup.StartFailed, match="tiny cannot start: it is damaged"):
            startup.wait_until_ready(config, RerankConfig.model_validate({"models": [own, apart]}))

    assert "  models  own" in lines
    assert "          v2, a version of own" in lines
    assert "warning: tiny failed to start and is started again: it is damaged" in capsys.readouterr().err


@pytest.fixture
def shown() -> list[str]:
    return []


@pytest.fixture
def terminal(shown: list[str]) -> WarningsOnly:
    return WarningsOnly(lambda batch: shown.extend(batch["lines"]))


INFO = "INFO 2026-11-26 03:25:05,329 proxy 192.0.2.2 -- Proxy starting"
WARNING = "WARNING 2026-11-26 03:25:05,329 controller 1 -- Deployment x takes long"
ERROR = "ERROR 2026-11-26 03:25:05,329 rerank_tiny abc -- Failed to record a metric -- x"
REPLICA = "ERROR 2026-11-26 03:25:05,329 controller 1 -- Exception in Replica(id='a'), the replica will be stopped."


def test_only_warnings_and_errors_reach_the_terminal(terminal: WarningsOnly, shown: list[str]) -> None:
    terminal({"pid": 1, "is_err": True, "lines": ["Fatal Python error: Aborted", INFO, "  more of it", WARNING]})
    terminal({"pid": 1, "is_err": True, "lines": [ERROR, "Traceback (most recent call last):", "ValueError: x"]})
    terminal({"pid": 2, "is_err": True, "lines": ["(raylet) a worker died"]})
    terminal({"pid": 3, "is_err": True, "lines": [INFO]})
    assert shown == ["Fatal Python error: Aborted", WARNING, ERROR, "(raylet) a worker died"]


@pytest.mark.parametrize("request_id", ["6f1c8a3e-1d3c-4a5b-9d7e-0a1b2c3d4e5f", "chosen by -- a client", "-- x"])
def test_errors_of_single_requests_stay_in_the_log_file(
    terminal: WarningsOnly, shown: list[str], request_id: str
) -> None:
    terminal.is_starting = False
    failed = f"ERROR 2026-11-26 03:25:05,329 rerank_ingress abc {request_id} -- Request failed."
    terminal({"pid": 1, "is_err": True, "lines": [failed, "Traceback (most recent call last):", "ValueError: x"]})
    terminal({"pid": 1, "is_err": True, "lines": [WARNING]})
    assert shown == [WARNING]


@pytest.mark.parametrize(
    ("outputs", "given", "colour"),
    [((True, True), None, None), ((True, False), None, "0"), ((False, True), None, "0"), ((False, False), "1", "1")],
)
def test_lines_have_colour_only_on_a_terminal_or_by_choice(
    outputs: tuple[bool, bool], given: str | None, colour: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, is_terminal in zip(("stdout", "stderr"), outputs, strict=True):
        monkeypatch.setattr(sys, name, SimpleNamespace(isatty=lambda is_terminal=is_terminal: is_terminal))
    environment = {} if given is None else {"RAY_COLOR_PREFIX": given}
    use_colour_only_on_terminals(environment)
    assert environment.get("RAY_COLOR_PREFIX") == colour


def test_failed_starts_are_hidden_only_until_the_service_is_ready(terminal: WarningsOnly, shown: list[str]) -> None:
    terminal({"pid": 1, "is_err": True, "lines": [REPLICA]})
    terminal.is_starting = False
    terminal({"pid": 1, "is_err": True, "lines": [REPLICA]})
    assert shown == [REPLICA]


@pytest.fixture
def levels() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("ray", "ray.serve")]
    before = [one.level for one in loggers]
    yield
    for one, level in zip(loggers, before, strict=True):
        one.setLevel(level)


@pytest.mark.usefixtures("levels")
def test_the_driver_is_quiet_about_its_token(caplog: pytest.LogCaptureFixture) -> None:
    quieten_driver()
    logger = logging.getLogger("ray._private.authentication.authentication_token_setup")
    with caplog.at_level(logging.WARNING, logger.name):
        logger.addHandler(caplog.handler)
        logger.warning("Token authentication is enabled for this Ray cluster.")
        logger.warning("Token authentication is disabled for this Ray cluster.")
        logger.removeHandler(caplog.handler)
    assert {record.getMessage() for record in caplog.records} == {
        "Token authentication is disabled for this Ray cluster."
    }
    assert not logging.getLogger("ray.serve").isEnabledFor(logging.INFO)


@pytest.mark.parametrize(
    ("host", "auth", "warns"),
    [
        ("127.0.0.1", {}, False),
        ("0.0.0.0", {}, True),  # noqa: S104
        ("0.0.0.0", {"key_hashes": ["0" * 64]}, False),  # noqa: S104
        ("0.0.0.0", {"key_hashes_file": "/k"}, False),  # noqa: S104
        ("0.0.0.0", {"keys_env": "KEYS_OF_THE_TEST"}, False),  # noqa: S104
    ],
)
def test_a_service_that_is_open_to_others_is_warned_of(
    host: str, auth: dict[str, Any], warns: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RERANK_SERVICE_API_KEYS", raising=False)
    monkeypatch.setenv("KEYS_OF_THE_TEST", "one")
    model = embedded_model().model_dump(mode="json")
    warn_of_open_access(host, RerankConfig.model_validate({"models": [model], "auth": auth}).auth)
    assert capsys.readouterr().err.startswith("warning: 0.0.0.0 admits other machines") is warns
