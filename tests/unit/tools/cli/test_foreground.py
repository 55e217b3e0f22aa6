"""`foreground.run` when a signal arrives while it starts or serves; Ray and Serve are replaced and start nothing."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from benchmarks.ports import free_port
from rerank_service.tools.cli import foreground

TEXT = (Path(__file__).parents[4] / "serve_config.yaml").read_text()
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


def nothing(*_: Any, **__: Any) -> None:
    """Stands for a part of Ray or Serve."""


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """Serves until a signal and returns the exit status."""
    before = {number: signal.getsignal(number) for number, _ in SIGNALS}
    monkeypatch.setattr("ray.init", nothing)
    monkeypatch.setattr("ray.serve.start", nothing)
    monkeypatch.setattr(foreground, "serve_client", lambda: SimpleNamespace(deploy_apps=nothing))
    monkeypatch.setattr(foreground, "quieten_driver", nothing)
    monkeypatch.setattr(foreground, "quieten_workers", nothing)
    monkeypatch.setattr(foreground, "wait_until_ready", lambda *_: ["ready"])

    def status() -> int:
        try:
            foreground.run(foreground.Serving(TEXT, "test", "--port", port=free_port()))
        except SystemExit as error:
            return int(error.code or 0)
        return 0

    yield status
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_a_signal_before_the_service_is_ready_gives_the_status_of_a_shell(
    serve: Callable[[], int],
    number: int,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(foreground, "wait_until_ready", lambda *_: os.kill(os.getpid(), number))
    assert serve() == status
    assert capsys.readouterr().err.strip() == "stopping; press Ctrl-C again to stop at once"


@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_a_signal_while_ray_starts_gives_the_same_status(
    serve: Callable[[], int], number: int, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: Any) -> None:
        """Handles SIGTERM as `ray.init` does."""
        signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(signum))
        os.kill(os.getpid(), number)

    monkeypatch.setattr("ray.init", init)
    assert serve() == status


def test_a_ray_that_does_not_start_is_reported_in_a_line(
    serve: Callable[[], int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def init(**_: Any) -> None:
        raise Exception("The current node timed out during startup.")  # Ray's own type

    monkeypatch.setattr("ray.init", init)
    assert serve() == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "Ray cannot start here, or its cluster cannot be reached: The current node timed out" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("raised", "controller_runs", "status", "says"),
    [
        (ActorDiedError(), True, 0, "ready"),  # a proxy that started too slowly: the controller starts another
        (ActorDiedError(), False, 1, "Serve cannot start here: The actor died"),
        (TimeoutError("HTTP proxies not available after 60s."), True, 1, "Serve cannot start here: HTTP proxies"),
    ],
)
def test_a_proxy_that_is_replaced_during_the_start_does_not_end_the_command(
    serve: Callable[[], int],
    raised: Exception,
    controller_runs: bool,
    status: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def start(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr("ray.serve.start", start)
    monkeypatch.setattr(foreground, "controller_runs", lambda: controller_runs)
    monkeypatch.setattr(foreground, "stop_serve", nothing)
    monkeypatch.setattr(signal, "pause", lambda: os.kill(os.getpid(), signal.SIGTERM))

    assert serve() == status
    error = " ".join(capsys.readouterr().err.split())
    assert says in error
    assert "Traceback" not in error


def test_a_half_started_serve_that_cannot_stop_does_not_change_the_status(
    serve: Callable[[], int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop() -> None:
        raise RuntimeError("no controller")

    monkeypatch.setattr(foreground, "wait_until_ready", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(foreground, "stop_serve", stop)
    assert serve() == 143
    assert "could not be stopped in order: no controller" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_a_ready_service_is_a_success(
    serve: Callable[[], int], number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(signal, "pause", lambda: os.kill(os.getpid(), number))
    assert serve() == 0
    assert "stopping after the requests in flight" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cluster", "wants_one", "expected"), [(None, False, False), (None, True, True), ("127.0.0.1:6379", False, None)]
)
def test_only_a_new_ray_starts_with_or_without_a_dashboard(
    serve: Callable[[], int],
    cluster: str | None,
    wants_one: bool,
    expected: bool | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[bool | None] = []
    monkeypatch.setattr(foreground, "canonicalize_bootstrap_address", lambda _: cluster)
    monkeypatch.setattr(foreground, "controller_runs", lambda: True)
    monkeypatch.setattr(foreground, "stop_serve", nothing)
    monkeypatch.setattr("ray.init", lambda **options: given.append(options["include_dashboard"]))
    monkeypatch.setattr(signal, "pause", lambda: os.kill(os.getpid(), signal.SIGTERM))
    foreground.run(foreground.Serving(TEXT, "test", "--port", port=free_port(), has_dashboard=wants_one))
    assert given == [expected]


def test_haproxy_is_refused_where_tls_is_configured(
    serve: Callable[[], int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tls = "http_options:\n  ssl_keyfile: /tls/key.pem\n  ssl_certfile: /tls/certificate.pem\n"
    monkeypatch.setattr(foreground.constants, "RAY_SERVE_ENABLE_HA_PROXY", True)
    monkeypatch.setattr(sys.modules[__name__], "TEXT", TEXT.replace("http_options:\n", tls))
    assert serve() == 2
    assert "HAProxy does not speak TLS here" in capsys.readouterr().err
