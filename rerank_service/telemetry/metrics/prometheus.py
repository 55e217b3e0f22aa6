"""Prometheus metrics of one process, as text. Knows nothing of HTTP."""

from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from rerank_service.telemetry.metrics.definitions import Metric, MetricKind

__all__ = ["PrometheusMetrics"]


class PrometheusMetrics:
    """A registry of its own: two services in one process would share the library's."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._registry = CollectorRegistry()
        self._instruments = {metric: self._instrument(metric) for metric in metrics}
        self._records: dict[tuple[str, tuple[str, ...]], Any] = {}

    def record(self, metric: Metric, value: float, *labels: str) -> None:
        """Takes a value."""
        key = (metric.name, labels)
        if (record := self._records.get(key)) is None:
            series = self._instruments[metric].labels(*labels)
            record = self._records[key] = getattr(series, metric.kind.value)
        record(value)

    def exposition(self) -> bytes:
        """Prometheus text, format 0.0.4."""
        return generate_latest(self._registry)

    def _instrument(self, metric: Metric) -> Any:
        common = (metric.name, metric.documentation, metric.labels)
        if metric.kind is MetricKind.HISTOGRAM:
            return Histogram(*common, buckets=metric.buckets, registry=self._registry)
        return (Counter if metric.kind is MetricKind.COUNTER else Gauge)(*common, registry=self._registry)
