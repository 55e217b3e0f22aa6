"""The same metrics through Ray, whose exporter on each node shows those of all its processes.

Ray puts `ray_` before their names, and adds the labels application, deployment and replica.
"""

from collections.abc import Iterable
from typing import Any

from ray.serve import metrics as serve_metrics

from rerank_service.telemetry.metrics.definitions import Metric, MetricKind

__all__ = ["RayMetrics"]


class RayMetrics:
    """Make it inside a Serve replica: Ray takes its labels from there."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._records = {metric.name: _record_of(metric) for metric in metrics}
        self._tags: dict[tuple[str, tuple[str, ...]], dict[str, str]] = {}

    def record(self, metric: Metric, value: float, *labels: str) -> None:
        """Takes a value; a counter's zero is nothing to Ray, which refuses it."""
        if metric.kind is MetricKind.COUNTER and not value:
            return
        key = (metric.name, labels)
        if (tags := self._tags.get(key)) is None:
            tags = self._tags[key] = dict(zip(metric.labels, labels, strict=True))
        self._records[metric.name](value, tags=tags)


def _record_of(metric: Metric) -> Any:
    common: Any = {"name": metric.name, "description": metric.documentation, "tag_keys": metric.labels}
    if metric.kind is MetricKind.HISTOGRAM:
        instrument: Any = serve_metrics.Histogram(boundaries=list(metric.buckets), **common)
    elif metric.kind is MetricKind.COUNTER:
        instrument = serve_metrics.Counter(**common)
    else:
        instrument = serve_metrics.Gauge(**common)
    return getattr(instrument, metric.kind.value)
