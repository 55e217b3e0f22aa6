"""What an ingress publishes: its own figures in two places, and at `/v1/metrics` those of its models' replicas too.

The replicas publish theirs through Ray themselves.
"""

from collections.abc import Sequence

from rerank_service.messages import ReplicaReport
from rerank_service.telemetry.metrics.definitions import ALL_METRICS, Metric, MetricSink, Several
from rerank_service.telemetry.metrics.prometheus import PrometheusMetrics
from rerank_service.telemetry.metrics.reports import KnownReplicas, record_counts

__all__ = ["IngressMetrics"]


class IngressMetrics:
    """One an ingress process."""

    def __init__(self, also: Sequence[MetricSink] = ()) -> None:
        """`also` take what the ingress itself records."""
        self._prometheus = PrometheusMetrics(ALL_METRICS)
        self._sinks = Several([self._prometheus, *also])
        self._replicas = KnownReplicas()

    def record(self, metric: Metric, value: float, *labels: str) -> None:
        """Takes a value of the ingress's own."""
        self._sinks.record(metric, value, *labels)

    def hear(self, model: str, report: ReplicaReport) -> None:
        """Takes what came with a replica's answer."""
        record_counts(self._prometheus, model, report)
        self._replicas.hear(model, report)

    def precisions(self, model: str) -> set[str]:
        """What the model's replicas compute in, of those that answered within the last minute."""
        return self._replicas.precisions(model)

    def exposition(self) -> bytes:
        """Prometheus text, format 0.0.4."""
        self._replicas.record(self._prometheus)
        return self._prometheus.exposition()
