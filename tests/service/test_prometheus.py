"""A real Prometheus scrapes the running service at `/v1/metrics` and through Ray's exporter."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
import yaml

from benchmarks.ports import free_port
from rerank_service.telemetry.metrics import ALL_METRICS
from tests.programs import needs_program
from tests.service.running import MINILM, MISTRAL, Service, ranking_body

FOLDER = Path(__file__).parents[2] / "cluster" / "monitoring"
PASSAGES = ["one passage", "another passage", "and a third"]
NEEDS_AN_EVENT = (
    *("shed", "limited", "cancelled", "retried", "ignored_fields", "truncated", "unscored"),
    *("mfu", "memory_limit", "cache", "version", "shadow", "cascade"),
)
"""Parts of the names of metrics that have no value before their first event."""
_LIMIT_S = 120
_POLL_S = 0.5
_SCRAPE_INTERVAL = "5s"
"""Also how long a scrape may take. Late in a run, Ray's exporter has 14,000 samples and takes 0.7 s; on a slow
processor, more than 1 s."""

pytestmark = needs_program("prometheus", "prometheus")


@dataclass(frozen=True)
class Prometheus:
    url: str

    def query(self, text: str) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": text}).json()
        assert answer["status"] == "success", f"{text}: {answer}"
        samples: list[dict[str, Any]] = answer["data"]["result"]
        return samples

    def value(self, text: str) -> float | None:
        samples = self.query(text)
        return float(samples[0]["value"][1]) if samples else None

    def wait_for(self, text: str, least: float) -> None:
        deadline = time.monotonic() + _LIMIT_S
        while (value := self.value(text)) is None or value < least:
            assert time.monotonic() < deadline, f"{text}: {value}"
            time.sleep(_POLL_S)


@pytest.fixture(scope="module")
def prometheus(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    targets = {"ingress": (service.port, "/v1/metrics"), "ray": (ray.nodes()[0]["MetricsExportPort"], "/metrics")}
    jobs = [
        {"job_name": name, "metrics_path": path, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
        for name, (port, path) in targets.items()
    ]
    config = folder / "prometheus.yaml"
    config.write_text(yaml.safe_dump({"global": {"scrape_interval": _SCRAPE_INTERVAL}, "scrape_configs": jobs}))
    address = f"127.0.0.1:{free_port()}"
    arguments = [f"--config.file={config}", f"--storage.tsdb.path={folder}/data", f"--web.listen-address={address}"]
    process = subprocess.Popen(["prometheus", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_until_ready(f"http://{address}/-/ready")
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        process.wait()


def _wait_until_ready(url: str) -> None:
    """Until then, Prometheus refuses connections, and afterwards answers every query with 503."""
    deadline = time.monotonic() + _LIMIT_S
    while True:
        with suppress(httpx.TransportError):
            if httpx.get(url).status_code == httpx.codes.OK:
                return
        assert time.monotonic() < deadline
        time.sleep(_POLL_S)


@pytest.fixture(scope="module")
def scraped(prometheus: Prometheus, service: Service) -> Prometheus:
    """Prometheus, after it has seen the number of requests rise in both places."""
    deadline = time.monotonic() + _LIMIT_S
    with httpx.Client(base_url=service.url, timeout=_LIMIT_S) as client:
        while not _has_risen(prometheus):
            assert time.monotonic() < deadline
            assert client.post("/v1/ranking", json=ranking_body(MINILM, "which?", PASSAGES)).status_code == 200
            time.sleep(_POLL_S)
    return prometheus


def _has_risen(prometheus: Prometheus) -> bool:
    rises = [
        prometheus.value(f'sum(increase({prefix}rerank_passages_total{{model="{MINILM}"}}[1m]))')
        for prefix in ("", "ray_")
    ]
    busy = prometheus.value(f'sum(increase(ray_rerank_device_busy_seconds_total{{model="{MINILM}"}}[1m]))')
    return all((rise or 0) > 0 for rise in (*rises, busy))


def test_both_endpoints_count_the_same(scraped: Prometheus, client: httpx.Client) -> None:
    """Both are seconds behind the service, so the count to reach is read from the service itself."""
    for _ in range(3):
        client.post("/v1/ranking", json=ranking_body(MINILM, "which?", PASSAGES))
    pattern = rf'^rerank_passages_total{{.*model="{re.escape(MINILM)}".*}} (\S+)'
    counted = sum(map(float, re.findall(pattern, client.get("/v1/metrics").text, re.MULTILINE)))
    assert counted >= 9

    for name in ("rerank_passages_total", "ray_rerank_passages_total"):
        total = f'sum({name}{{model="{MINILM}"}})'
        scraped.wait_for(total, counted)
        assert scraped.value(total) == counted


def test_rays_metrics_name_the_replica(scraped: Prometheus) -> None:
    (sample,) = scraped.query(f'ray_rerank_device_memory_bytes{{model="{MINILM}"}}')
    assert sample["metric"]["application"] == "rerank"
    assert sample["metric"]["deployment"] == "sentence-transformers_all-MiniLM-L6-v2"
    assert sample["metric"]["replica"]


def test_rays_metrics_show_a_model_without_requests(scraped: Prometheus) -> None:
    """No test of this module sends a request to this model; those of other modules are too long ago."""
    for gauge in ("device_waiting_tokens", "device_memory_bytes", "start_seconds", "outstanding_tokens"):
        scraped.wait_for(f'count(ray_rerank_{gauge}{{model="{MISTRAL}"}})', 1)


@pytest.mark.parametrize("prefix", ["ray_", ""])
def test_every_query_of_the_dashboard_has_an_answer(scraped: Prometheus, prefix: str) -> None:
    sys.path.insert(0, str(FOLDER))
    try:
        import dashboard  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(FOLDER))
    queries = [text for panel in dashboard.PANELS for text in panel.queries.values()]
    for text in queries:
        query = dashboard.query(text, f"{prefix}rerank", "1m").replace("$model", ".*")
        if any(part in text for part in NEEDS_AN_EVENT):
            scraped.query(query)
        else:
            scraped.wait_for(f"count({query})", 1)


def test_every_expression_of_the_rules_is_valid(scraped: Prometheus) -> None:
    for expression in re.findall(r"expr: (.+)", (FOLDER / "rules.yaml").read_text()):
        if expression != "|":
            scraped.query(expression)


def test_ray_exports_only_listed_metrics(scraped: Prometheus) -> None:
    names = httpx.get(f"{scraped.url}/api/v1/label/__name__/values").json()["data"]
    listed = tuple(f"ray_{metric.name}" for metric in ALL_METRICS)
    assert [name for name in names if name.startswith("ray_rerank_") and not name.startswith(listed)] == []
    assert len([name for name in names if name.startswith("ray_rerank_")]) > len(ALL_METRICS) // 2
