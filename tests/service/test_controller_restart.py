"""Serve's controller is killed under load and restarts without removing a replica."""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import psutil
import ray

from tests.service.running import CLIENT_TIMEOUT_S, Service, ranking_body, serve_client

_APPLICATION = "scaled"
_MODEL = "simulated"
_REPLICAS = 3
_CLIENTS = 12
_LIMIT_S = 120
_WATCHED_S = 8
"""A policy that forgets its state removes replicas within five seconds of the restart."""


def test_a_killed_controller_removes_no_replica(service: Service) -> None:
    """A change of live settings removes no replica either, although Serve then empties the policy's state."""
    try:
        _deploy(service)
        _wait_until(lambda: _is_ready(service))
        with _Load(service.url) as load:
            _wait_until(lambda: len(_pids(service)) == _REPLICAS)
            pids = _pids(service)
            os.kill(ray.get(serve_client()._controller.get_pid.remote()), signal.SIGKILL)
            _watch(service, pids)
            _deploy(service, max_queued_tokens=1_999_999)
            _watch(service, pids)
            assert not load.failures
    finally:
        service.deploy()


def _is_ready(service: Service) -> bool:
    url = f"{service.url}/{_APPLICATION}/v1/health/ready"
    return httpx.get(url, timeout=CLIENT_TIMEOUT_S).status_code == 200


def _watch(service: Service, pids: set[int]) -> None:
    until = time.monotonic() + _WATCHED_S
    while time.monotonic() < until:
        assert all(psutil.pid_exists(pid) for pid in pids)
        time.sleep(0.2)
    _wait_until(lambda: _pids(service) == pids)
    assert _deployment(service)["target_num_replicas"] == _REPLICAS


class _Load:
    """Several clients, each of which sends one request after another. Together they send more than two replicas can
    handle."""

    def __init__(self, url: str) -> None:
        self.failures: list[str] = []
        self._url = f"{url}/{_APPLICATION}/v1/ranking"
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._send) for _ in range(_CLIENTS)]

    def __enter__(self) -> "_Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _send(self) -> None:
        body = ranking_body(_MODEL, "which?", [f"{number} " + "word " * 60 for number in range(10)])
        with httpx.Client(timeout=CLIENT_TIMEOUT_S) as client:
            while not self._is_over.is_set():
                response = client.post(self._url, json=body)
                if response.status_code != 200:
                    self.failures.append(response.text)


def _deploy(service: Service, **knobs: Any) -> None:
    """Adds the application; the replicas of other applications keep running."""
    autoscaling = {"min_replicas": 1, "max_replicas": _REPLICAS, "upscale_delay_s": 0.5}
    model = {
        "id": _MODEL,
        "checkpoint": {"source": "/simulated"},
        "replica": {"num_cpus": 0},
        "autoscaling": autoscaling,
    }
    overrides = [{"name": _MODEL, "user_config": knobs}] if knobs else []
    application = {
        "name": _APPLICATION,
        "route_prefix": f"/{_APPLICATION}",
        "import_path": "benchmarks.stack.simulated:build_app",
        "args": {"tokens_per_s": 1_000.0, "settings": {"models": [model]}},
        "deployments": overrides,
    }
    service.deploy(more_applications=[application])


def _deployment(service: Service) -> dict[str, Any]:
    details = serve_client().get_serve_details()["applications"].get(_APPLICATION, {"deployments": {}})
    found: dict[str, Any] = details["deployments"].get(_MODEL, {"target_num_replicas": 0})
    return found


def _pids(service: Service) -> set[int]:
    return service.pids(_APPLICATION, _MODEL)


def _wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LIMIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)
