"""Metrics of an ingress process: Prometheus text at `/metrics`, and a copy of the ingress's own values for Ray.

The text also covers the replicas that answer this ingress. Replicas publish their own values to Ray.
"""

import time
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from rerank_service.messages import Numerics, ReplicaReport, StartTimes
from rerank_service.telemetry import metrics
from rerank_service.telemetry.metrics import Metric, MetricKind, MetricSink, record_counts, record_start

__all__ = ["IngressMetrics"]

_REPORT_LIFETIME_S = 60.0
"""A replica that has not answered for this long is left out of the gauges."""


class IngressMetrics:
    """The metrics of one ingress process."""

    def __init__(self, ray: MetricSink | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """`ray` receives the values that the ingress itself measures; null outside Serve."""
        # A separate registry: two services in one process would share the library's default registry.
        self._registry = CollectorRegistry()
        self._instruments = {metric: self._instrument(metric) for metric in metrics.ALL_METRICS}
        self._series: dict[tuple[str, tuple[str, ...]], Any] = {}
        self._ray = ray
        self._gauges: dict[tuple[Metric, tuple[str, ...]], float] = {}  # the newest values that Ray received
        self._clock = clock
        self._reports: dict[tuple[str, str], tuple[float, ReplicaReport]] = {}
        self.window_tokens: dict[str, int] = {}
        """Maximum length of a pair in tokens, by model id. A model has no entry before its first answer."""

        self.numerics: dict[str, Numerics] = {}
        """How the replica that answered last computes, by model id; absent before a model's first answer."""

        self.unverified: dict[str, str] = {}
        """Why a model is unverified, by model id; absent for other models, and before a model's first answer."""

    def record(self, metric: Metric, value: float, *labels: str) -> None:
        """Records a value; `labels` are the values of `metric.labels`."""
        key = (metric.name, labels)
        if (series := self._series.get(key)) is None:
            series = self._series[key] = getattr(self._instruments[metric].labels(*labels), metric.kind.value)
        series(value)
        if self._ray is not None and not metric.by_replica:
            self._ray.record(metric, value, *labels)
            if metric.kind is MetricKind.GAUGE:
                self._gauges[metric, labels] = value

    def renew_gauges(self) -> None:
        """Records the ingress's own gauges for Ray again, because Ray's exporter drops a gauge that is not renewed."""
        for (metric, labels), value in self._gauges.items():
            self.record(metric, value, *labels)

    def add_report(self, model: str, report: ReplicaReport) -> None:
        """Stores and counts the report that came with a replica's answer."""
        record_counts(self, model, report)
        self._reports[model, report.replica] = (self._clock(), report)
        if report.window_tokens is not None:
            self.window_tokens[model] = report.window_tokens
        if report.numerics is not None:
            self.numerics[model] = report.numerics
        if report.unverified is None:
            self.unverified.pop(model, None)
        else:
            self.unverified[model] = report.unverified

    def precisions(self, model: str) -> set[str]:
        """Number formats used by the model's replicas that answered within the last minute."""
        return {report.precision for report in self._current_reports(model) if report.precision}

    def slowest_start(self, model: str) -> StartTimes | None:
        """Start of the slowest of the model's replicas that answered within the last minute; null if none did."""
        starts = [report.start for report in self._current_reports(model) if report.start is not None]
        return max(starts, key=sum, default=None)

    def exposition(self) -> bytes:
        """Prometheus text, format 0.0.4."""
        for model in {model for model, _ in self._reports}:
            self._aggregate(model)
        oldest = self._clock() - _REPORT_LIFETIME_S
        self._reports = {key: entry for key, entry in self._reports.items() if entry[0] > oldest}
        return generate_latest(self._registry)

    def _aggregate(self, model: str) -> None:
        """Sets a model's gauges to the sums over its replicas; those of the utilisation to the mean, and those of the
        start to the slowest start."""
        reports = self._current_reports(model)
        self.record(metrics.DEVICE_WAITING_TOKENS, sum(report.waiting_tokens for report in reports), model)
        self.record(metrics.DEVICE_TOKENS_PER_SECOND, sum(report.tokens_per_s for report in reports), model)
        self.record(metrics.DEVICE_MEMORY_BYTES, sum(report.memory_bytes for report in reports), model)
        limits = [report.memory_limit_bytes for report in reports if report.memory_limit_bytes is not None]
        if limits:
            self.record(metrics.DEVICE_MEMORY_LIMIT_BYTES, sum(limits), model)
        utilisations = [report.mfu for report in reports if report.mfu is not None]
        if utilisations:
            self.record(metrics.DEVICE_MFU, sum(utilisations) / len(utilisations), model)
        if (start := self.slowest_start(model)) is not None:
            record_start(self, model, start)

    def _current_reports(self, model: str) -> list[ReplicaReport]:
        oldest = self._clock() - _REPORT_LIFETIME_S
        return [report for (name, _), (at_s, report) in self._reports.items() if name == model and at_s > oldest]

    def _instrument(self, metric: Metric) -> Any:
        common = (metric.name, metric.documentation, metric.labels)
        if metric.kind is MetricKind.HISTOGRAM:
            return Histogram(*common, buckets=metric.buckets, registry=self._registry)
        return (Counter if metric.kind is MetricKind.COUNTER else Gauge)(*common, registry=self._registry)
