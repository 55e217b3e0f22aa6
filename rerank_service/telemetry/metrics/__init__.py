"""What the service measures about itself, and the two places where it is published.

`definitions` is the one list; `prometheus` is what an ingress shows at `/v1/metrics`, `through_ray` what Ray's exporter
shows on each node.
"""

from rerank_service.telemetry.metrics.definitions import (
    ALL_METRICS,
    INGRESS_METRICS,
    REPLICA_METRICS,
    Metric,
    MetricKind,
    MetricSink,
    NoMetrics,
    Several,
)

__all__ = [
    "ALL_METRICS",
    "INGRESS_METRICS",
    "REPLICA_METRICS",
    "Metric",
    "MetricKind",
    "MetricSink",
    "NoMetrics",
    "Several",
]
