"""The dashboard and the alert rules use existing metrics; promtool runs the tests of the rules."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from cluster import chart
from rerank_service.telemetry.metrics import ALL_METRICS, MetricKind
from tests.programs import needs_program

FOLDER = Path(__file__).parents[3] / "cluster" / "monitoring"
SERIES = {
    name
    for metric in ALL_METRICS
    for name in (
        [f"{metric.name}_{part}" for part in ("bucket", "sum", "count")]
        if metric.kind is MetricKind.HISTOGRAM
        else [metric.name]
    )
}


@pytest.fixture(scope="module")
def dashboard() -> ModuleType:
    """The dashboard's script, imported by path because `cluster` is not a package."""
    spec = importlib.util.spec_from_file_location("dashboard", FOLDER / "dashboard.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["dashboard"] = module
    spec.loader.exec_module(module)
    return module


def test_the_dashboard_equals_the_output_of_its_script(dashboard: ModuleType) -> None:
    assert json.loads((FOLDER / "grafana-dashboard.json").read_text()) == dashboard.dashboard()


def test_the_dashboard_shows_exactly_the_existing_metrics(dashboard: ModuleType) -> None:
    queries = [dashboard.query(text, "rerank", "5m") for panel in dashboard.PANELS for text in panel.queries.values()]
    used = {name for text in queries for name in re.findall(r"rerank_\w+", text)}
    assert used <= SERIES
    shown = {metric.name for metric in ALL_METRICS if any(name.startswith(metric.name) for name in used)}
    assert shown == {metric.name for metric in ALL_METRICS}


def test_rules_use_metrics_that_exist() -> None:
    groups = yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    recorded = {rule["record"] for rule in rules if "record" in rule}
    for rule in rules:
        assert set(re.findall(r"\bray_(rerank_\w+)", rule["expr"])) <= SERIES
        assert set(re.findall(r"\brerank:[\w:]+", rule["expr"])) <= recorded


def test_every_alert_is_in_the_runbook() -> None:
    runbook = (FOLDER.parents[1] / "docs" / "operations.md").read_text()
    alerts = re.findall(r"- alert: (\w+)", (FOLDER / "rules.yaml").read_text())
    assert [alert for alert in alerts if f"`{alert}`" not in runbook] == []


@needs_program("promtool", "prometheus")
@pytest.mark.parametrize(
    "arguments",
    [["check", "rules", "rules.yaml"], ["test", "rules", "rules.test.yaml"], ["check", "config", "prometheus.yaml"]],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_promtool_accepts_the_rules(arguments: list[str]) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not chart.is_available(), reason="helm-python-sdk is not installed (extra dev)")
def test_the_pod_monitor_scrapes_the_exporters_of_the_ray_pods() -> None:
    values = yaml.safe_load((chart.VALUES / "external-redis.yaml").read_text())
    documents = {document["kind"]: document for document in yaml.safe_load_all(chart.render(values))}
    wanted = documents["PodMonitor"]["spec"]["selector"]["matchLabels"].items()
    scraped = {endpoint["port"] for endpoint in documents["PodMonitor"]["spec"]["podMetricsEndpoints"]}
    cluster = documents["RayService"]["spec"]["rayClusterConfig"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        template = group["template"]
        assert wanted <= template["metadata"]["labels"].items()
        ports = {port["name"] for container in template["spec"]["containers"] for port in container["ports"]}
        assert scraped & ports == ({"metrics"} if group is cluster["headGroupSpec"] else scraped)


@pytest.mark.skipif(not chart.is_available(), reason="helm-python-sdk is not installed (extra dev)")
def test_the_chart_has_the_rules_and_the_dashboard() -> None:
    values = yaml.safe_load((chart.VALUES / "external-redis.yaml").read_text())
    documents = list(yaml.safe_load_all(chart.render(values)))
    (rules,) = [document["spec"] for document in documents if document["kind"] == "PrometheusRule"]
    (shown,) = [document["data"] for document in documents if document["metadata"]["name"] == "rerank-dashboard"]
    assert rules == yaml.safe_load((FOLDER / "rules.yaml").read_text())
    assert json.loads(shown["rerank-service.json"]) == json.loads((FOLDER / "grafana-dashboard.json").read_text())
