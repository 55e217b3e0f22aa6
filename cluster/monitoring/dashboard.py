"""Writes the Grafana dashboard: python cluster/monitoring/dashboard.py > cluster/monitoring/grafana-dashboard.json

The queries use the service's metrics as Ray's exporters name them (`ray_rerank_...`); the variable `prefix` switches to
the names of `/v1/metrics` (`rerank_...`). Tests compare the file with this script's output, and run every query against
the list of metrics and a real Prometheus.
"""

import json
import sys
from dataclasses import dataclass
from typing import Any

__all__ = ["PANELS", "Panel", "dashboard"]

_WINDOW = "$__rate_interval"
_WIDTH, _HEIGHT, _COLUMNS = 8, 8, 3


@dataclass(frozen=True)
class Panel:
    """One graph. `queries` maps legends to PromQL, in which `M` is the prefix and `W` the window of rates."""

    title: str
    unit: str
    description: str
    queries: dict[str, str]
    stacked: bool = False


def _rate(metric: str, by: str, selector: str = "") -> str:
    return f'sum by ({by}) (rate(M_{metric}{{model=~"$model"{selector}}}[W]))'


def _share_of_passages(metric: str) -> str:
    return f"{_rate(metric, 'model')} / {_rate('passages_total', 'model')}"


def _quantile(share: float, metric: str) -> str:
    return f"histogram_quantile({share}, {_rate(f'{metric}_bucket', 'le, model')})"


def _mean(metric: str) -> str:
    return f"{_rate(f'{metric}_sum', 'model')} / {_rate(f'{metric}_count', 'model')}"


def _sum(metric: str) -> str:
    return f'sum by (model) (M_{metric}{{model=~"$model"}})'


ROWS: dict[str, list[Panel]] = {
    "Clients": [
        Panel(
            "Requests",
            "reqps",
            "Requests by status. 499: the client disconnected; 503: the queue is full or no replica is available.",
            {"{{model}} {{status}}": _rate("requests_total", "model, status")},
            stacked=True,
        ),
        Panel(
            "Latency",
            "s",
            "Time from the parsed body to the ranking; the histogram's buckets limit the precision.",
            {
                "{{model}} p50": _quantile(0.5, "request_seconds"),
                "{{model}} p95": _quantile(0.95, "request_seconds"),
                "{{model}} p99": _quantile(0.99, "request_seconds"),
            },
        ),
        Panel(
            "Refused, rate limited, disconnected, retried",
            "reqps",
            "Refusals by code; requests over a quota; disconnected clients; shards whose replica died.",
            {
                "{{model}} {{code}}": _rate("shed_requests_total", "model, code"),
                "over the quota of {{limit}}": "sum by (limit) (rate(M_limited_requests_total[W]))",
                "{{model}} disconnected": _rate("cancelled_requests_total", "model"),
                "{{model}} retried shards": _rate("retried_shards_total", "model"),
            },
        ),
        Panel(
            "Ignored fields",
            "reqps",
            "Requests with fields that the API does not have, by field and API.",
            {"{{dialect}} {{field}}": "sum by (field, dialect) (rate(M_ignored_fields_total[W]))"},
        ),
    ],
    "Throughput": [
        Panel("Passages", "ops", "Passages ranked per second.", {"{{model}}": _rate("passages_total", "model")}),
        Panel("Tokens", "ops", "Tokens of ranked pairs per second.", {"{{model}}": _rate("tokens_total", "model")}),
        Panel(
            "Truncated pairs",
            "percentunit",
            "Share of pairs too long for the model's window. Not scored: the query left no room for any token of the "
            "passage.",
            {
                "{{model}}": _share_of_passages("truncated_pairs_total"),
                "{{model}} not scored": _share_of_passages("unscored_pairs_total"),
            },
        ),
    ],
    "Latency by stage": [
        Panel(
            "Mean over requests, slowest shard",
            "s",
            "If queue is far above forward, replicas are too few. If tokenise is above forward, raise "
            "replica.tokeniser_threads.",
            {
                "{{model}} tokenise": _mean("tokenise_seconds"),
                "{{model}} queue": _mean("queue_seconds"),
                "{{model}} forward": _mean("forward_seconds"),
            },
            stacked=True,
        ),
        Panel(
            "Time in the queue, p99",
            "s",
            "Autoscaling should keep this time low.",
            {"{{model}}": _quantile(0.99, "queue_seconds")},
        ),
        Panel(
            "Backlog in tokens",
            "none",
            "Tokens sent by ingresses and not answered yet (estimated), and tokens queued at the replicas (exact).",
            {"{{model}} open": _sum("outstanding_tokens"), "{{model}} at replicas": _sum("device_waiting_tokens")},
        ),
    ],
    "Devices": [
        Panel(
            "Busy",
            "percentunit",
            "Share of the time in which devices run a batch; autoscaling aims at target_utilisation (0.8).",
            {"{{model}}": f"{_rate('device_busy_seconds_total', 'model')} / count by (model) (M_device_memory_bytes)"},
        ),
        Panel(
            "Throughput while busy",
            "ops",
            "Tokens per second of all devices together; lower if batches are small.",
            {"{{model}}": _sum("device_tokens_per_second")},
        ),
        Panel(
            "Model FLOP utilisation",
            "percentunit",
            "Estimate for busy time: linear layers, as a share of the GPU's dense bfloat16 peak. Empty for CPUs.",
            {"{{model}}": 'avg by (model) (M_device_mfu{model=~"$model"})'},
        ),
        Panel("Batch, mean tokens", "none", "Tokens per forward pass.", {"{{model}}": _mean("batch_tokens")}),
        Panel("Batch fill, mean", "percentunit", "Share of the token budget.", {"{{model}}": _mean("batch_fill")}),
        Panel(
            "Device memory",
            "bytes",
            "GPU memory held by torch, and the memory of the GPUs, MIG slices or fractions of GPUs reserved for "
            "replicas; on a CPU, the memory of the processes.",
            {"{{model}}": _sum("device_memory_bytes"), "{{model}} limit": _sum("device_memory_limit_bytes")},
        ),
        Panel(
            "Device memory, share of the limit",
            "percentunit",
            "Near 1 under load is normal: batches take the memory that is free. Empty for CPUs.",
            {"{{model}}": f"{_sum('device_memory_bytes')} / {_sum('device_memory_limit_bytes')}"},
        ),
        Panel(
            "Time to load, by stage",
            "s",
            "Time that the slowest of the running replicas took to load its model, by stage. The start of the process "
            "is not included. compile and capture are 0 on CPUs.",
            {"{{model}} {{stage}}": 'max by (model, stage) (M_start_seconds{model=~"$model"})'},
        ),
        Panel(
            "Passage cache",
            "percentunit",
            "Share of passages whose encoding was cached (late interaction with passage_cache_bytes).",
            {
                "{{model}}": f"{_rate('passage_cache_hits_total', 'model')} / "
                f"({_rate('passage_cache_hits_total', 'model')} + {_rate('passage_cache_misses_total', 'model')})"
            },
        ),
        Panel("Passages per request, p50", "none", "", {"{{model}}": _quantile(0.5, "request_passages")}),
    ],
    "Cascades": [
        Panel(
            "Passages scored by each stage",
            "ops",
            "Passages per second, by cascade and the model of the stage.",
            {"{{model}} {{stage}}": _rate("cascade_stage_passages_total", "model, stage")},
        ),
        Panel(
            "Time of each stage, p95",
            "s",
            "Time that a stage takes for a request, the queue included.",
            {
                "{{model}} {{stage}}": "histogram_quantile(0.95, "
                f"{_rate('cascade_stage_seconds_bucket', 'le, model, stage')})"
            },
        ),
        Panel(
            "Stages left out",
            "reqps",
            "Stages left out because of overload or a short deadline (on_overload: answer_early), by reason.",
            {"{{model}} {{stage}} {{reason}}": _rate("cascade_skipped_stages_total", "model, stage, reason")},
            stacked=True,
        ),
    ],
    "Canaries and shadows": [
        Panel(
            "Share of requests",
            "percentunit",
            "Share of a model's requests that a version answers (canary) or scores in addition (shadow).",
            {"{{model}} {{role}}": 'max by (model, role) (M_version_traffic_ratio{model=~"$model"})'},
        ),
        Panel(
            "Answered by the model instead",
            "reqps",
            "Requests that a canary refused or failed, by error code. The model itself answered them.",
            {"{{model}} {{code}}": _rate("version_fallbacks_total", "model, code")},
        ),
        Panel(
            "Shadows",
            "reqps",
            "Sampled requests by outcome. dropped: the ingress or the shadow's replicas were busy.",
            {"{{model}} {{outcome}}": _rate("shadow_requests_total", "model, outcome")},
            stacked=True,
        ),
        Panel(
            "Agreement of rankings",
            "none",
            "Means over requests: Kendall's tau-b, and the share of the best ten passages that both rankings have. 1: "
            "the rankings are equal.",
            {
                "{{model}} tau": _mean("shadow_kendall_tau"),
                "{{model}} best ten": _mean("shadow_top_ten_overlap_ratio"),
            },
        ),
        Panel(
            "Difference of logits",
            "none",
            "Means over requests: the mean and the largest absolute difference between a shadow's logits and the "
            "answer's.",
            {
                "{{model}} mean": _mean("shadow_mean_difference_logits"),
                "{{model}} largest": _mean("shadow_largest_difference_logits"),
            },
        ),
        Panel(
            "Latency of shadows, p95",
            "s",
            "Time of a shadow's ranking; compare with the model's latency.",
            {"{{model}}": _quantile(0.95, "shadow_seconds")},
        ),
    ],
}

PANELS = tuple(panel for row in ROWS.values() for panel in row)


def query(text: str, prefix: str = "${prefix}rerank", window: str = _WINDOW) -> str:
    """The PromQL text with `M` and `W` replaced by the prefix and the window."""
    return text.replace("M_", f"{prefix}_").replace("[W]", f"[{window}]")


def dashboard() -> dict[str, Any]:
    """The dashboard in Grafana's JSON model (schema version 39, Grafana 11)."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        panels.append({"type": "row", "title": title, "gridPos": {"x": 0, "y": top, "w": 24, "h": 1}, "panels": []})
        top += 1
        for index, panel in enumerate(row):
            x, y = index % _COLUMNS * _WIDTH, top + index // _COLUMNS * _HEIGHT
            panels.append(_graph(panel, {"x": x, "y": y, "w": _WIDTH, "h": _HEIGHT}))
        top += -(-len(row) // _COLUMNS) * _HEIGHT
    for number, entry in enumerate(panels, 1):
        entry["id"] = number
    return {
        "title": "Rerank service",
        "uid": "rerank-service",
        "tags": ["rerank"],
        "schemaVersion": 39,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables()},
        "panels": panels,
    }


def _graph(panel: Panel, position: dict[str, int]) -> dict[str, Any]:
    custom: dict[str, Any] = {"fillOpacity": 20 if panel.stacked else 0, "showPoints": "never"}
    if panel.stacked:
        custom["stacking"] = {"mode": "normal"}
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "gridPos": position,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": custom}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {"refId": chr(ord("A") + number), "expr": query(text), "legendFormat": legend}
            for number, (legend, text) in enumerate(panel.queries.items())
        ],
    }


def _variables() -> list[dict[str, Any]]:
    return [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
        {
            "name": "prefix",
            "type": "custom",
            "label": "Scraped from",
            "query": "Ray's exporters : ray_, /v1/metrics : ",
            "current": {"text": "Ray's exporters", "value": "ray_"},
            "options": [
                {"text": "Ray's exporters", "value": "ray_", "selected": True},
                {"text": "/v1/metrics", "value": "", "selected": False},
            ],
        },
        {
            "name": "model",
            "type": "query",
            "label": "Model",
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "query": "label_values(${prefix}rerank_requests_total, model)",
            "refresh": 2,
            "includeAll": True,
            "multi": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        },
    ]


if __name__ == "__main__":
    json.dump(dashboard(), sys.stdout, indent=1)
    sys.stdout.write("\n")
