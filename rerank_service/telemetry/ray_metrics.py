"""Publishes metrics through Ray, whose exporter on each node publishes the metrics of all processes on that node.

Ray prefixes the names with `ray_` and adds the labels application, deployment and replica.
"""

from collections.abc import Iterable
from typing import Any

from ray.serve import metrics as serve_metrics

from rerank_service.telemetry.metrics import Metric, MetricKind

__all__ = ["RayMetrics"]

_INSTRUMENTS: dict[MetricKind, Any] = {
    MetricKind.COUNTER: serve_metrics.Counter,
    MetricKind.GAUGE: serve_metrics.Gauge,
    MetricKind.HISTOGRAM: serve_metrics.Histogram,
}


class RayMetrics:
    """Publishes metrics through Ray. Construct it inside a Serve replica, from which Ray takes the labels."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._records: dict[str, Any] = {}
        for metric in metrics:
            options: dict[str, Any] = {"boundaries": list(metric.buckets)} if metric.buckets else {}
            instrument = _INSTRUMENTS[metric.kind](
                name=metric.name, description=metric.documentation, tag_keys=metric.labels, **options
            )
            self._records[metric.name] = getattr(instrument, metric.kind.value)
        self._tags: dict[tuple[str, tuple[str, ...]], dict[str, str]] = {}

    def record(self, metric: Metric, value: float, *labels: str) -> None:
        """Records a value. Ray refuses to add zero to a counter, so zeros are dropped here."""
        if metric.kind is MetricKind.COUNTER and not value:
            return
        key = (metric.name, labels)
        if (tags := self._tags.get(key)) is None:
            tags = self._tags[key] = dict(zip(metric.labels, labels, strict=True))
        self._records[metric.name](value, tags=tags)
