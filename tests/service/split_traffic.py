"""A canary's life under load, for any service whose model has a version: more traffic, the loss of its replica, and the
rollback."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.service.running import CLIENT_TIMEOUT_S, LOGIT_TOLERANCE, long_text, ranking_body

__all__ = ["Split", "metric", "play_canary", "wait_until"]

_PROGRAM = str(Path(sys.executable).with_name("rerank-service"))
_CLIENTS = 3
_ENOUGH = 15
"""Number of answers after which a share counts as applied."""
_LIMIT_S = 120
PASSAGES = [f"{number} {long_text(40)}" for number in range(12)]


@dataclass(frozen=True)
class Split:
    """A service whose model has a version, and the logits with which each of the two answers."""

    url: str
    model: str
    version: str
    logits: Mapping[str, Sequence[float]]
    """Logits of `PASSAGES`, by the id of the model or version."""
    pids: Callable[[str], set[int]]
    """Process ids of the replicas of a model."""
    gcs_address: str

    def traffic(self, *arguments: str) -> str:
        """Runs `rerank-service traffic`, and returns what it prints."""
        ran = subprocess.run(
            [_PROGRAM, "traffic", *arguments, "--address", self.gcs_address],
            env={"RAY_AUTH_MODE": "token"} | os.environ,  # `ray.init` turns tokens on for its own process only
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def share(self) -> dict[str, Any]:
        """The version's entry in `/v1/metadata`."""
        infos = httpx.get(f"{self.url}/v1/metadata", timeout=CLIENT_TIMEOUT_S).json()["modelInfo"]
        found: dict[str, Any] = next(one["version"] for one in infos if one["shortName"] == self.version)
        return found

    def rank(self, client: httpx.Client) -> str:
        """Ranks once, and returns the id of the model or version that answered. A failed request is an error, as is an
        answer with logits of both."""
        response = client.post(f"{self.url}/v1/ranking", json=ranking_body(self.model, "which?", PASSAGES))
        assert response.status_code == 200, response.text
        answered_by = response.headers["x-model"]
        served = {ranking["index"]: ranking["logit"] for ranking in response.json()["rankings"]}
        expected = self.logits[answered_by]
        assert all(abs(served[index] - logit) <= LOGIT_TOLERANCE for index, logit in enumerate(expected)), answered_by
        return answered_by


class _Load:
    """Clients that rank one request after another until the block ends, and what answered them."""

    def __init__(self, split: Split) -> None:
        self.answers: list[str] = []
        self.failures: list[str] = []
        self._split = split
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

    def wait_for(self, answered_by: str) -> None:
        """Waits until `_ENOUGH` more requests are answered by this model or version."""
        before = self.answers.count(answered_by)
        wait_until(lambda: bool(self.failures) or self.answers.count(answered_by) >= before + _ENOUGH)

    def wait_for_only(self, answered_by: str) -> None:
        """Waits until `2 * _ENOUGH` requests in a row are answered by this model or version: with a share of 50%, all
        other requests have one chance in a billion."""
        start, most = len(self.answers), 2 * _ENOUGH
        wait_until(
            lambda: (
                bool(self.failures)
                or (len(self.answers) >= start + most and set(self.answers[-most:]) == {answered_by})
            )
        )

    def _send(self) -> None:
        with httpx.Client(timeout=CLIENT_TIMEOUT_S) as client:
            while not self._is_over.is_set():
                try:
                    self.answers.append(self._split.rank(client))
                except (AssertionError, httpx.HTTPError) as error:
                    self.failures.append(repr(error))


def play_canary(split: Split) -> None:
    """Raises the canary's share under load, kills its replica, and rolls back. No request fails, every request is
    answered by one version, and no other process restarts."""
    wait_until(lambda: bool(split.share()["usable"]))
    kept = split.pids(split.model) | split.pids("ingress")
    assert len(kept) >= 2
    with _Load(split) as load:
        load.wait_for(split.model)
        assert set(load.answers) <= {split.model}

        split.traffic(split.version, "--percent", "50")
        load.wait_for(split.version)
        load.wait_for(split.model)

        (victim,) = split.pids(split.version)
        os.kill(victim, signal.SIGKILL)
        load.wait_for(split.model)
        wait_until(lambda: bool(load.failures) or split.pids(split.version) - {victim} != set())
        load.wait_for(split.version)

        split.traffic("--rollback")
        load.wait_for_only(split.model)
    assert load.failures == []
    assert kept == split.pids(split.model) | split.pids("ingress")
    (entry,) = json.loads(split.traffic("--json"))["versions"]
    assert (entry["version"], entry["traffic_percent"]) == (split.version, 0)


def metric(url: str, name: str) -> dict[str, float]:
    """Values of a metric of the ingress, by the labels as text."""
    text = httpx.get(f"{url}/v1/metrics", timeout=CLIENT_TIMEOUT_S).text
    lines = (line.rpartition(" ") for line in text.splitlines() if line.startswith(f"{name}{{"))
    return {labels.removeprefix(name): float(value) for labels, _, value in lines}


def wait_until(holds: Callable[[], bool], limit_s: float = _LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)
