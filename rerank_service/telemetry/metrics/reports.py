"""What replicas report, as metrics: in the replica itself as it is, in an ingress of all replicas it has heard of."""

import time
from collections.abc import Callable

from rerank_service.messages import ReplicaReport
from rerank_service.telemetry.metrics import definitions
from rerank_service.telemetry.metrics.definitions import Metric, MetricSink

__all__ = ["KnownReplicas", "record_counts", "record_gauges"]

_HEARD_OF_S = 60.0
"""A replica that has answered nothing for this long counts no more."""


def record_counts(sink: MetricSink, model: str, report: ReplicaReport) -> None:
    """What has been counted since the last report."""
    for num_tokens, fill in report.batches:
        sink.record(definitions.BATCH_TOKENS, num_tokens, model)
        sink.record(definitions.BATCH_FILL, fill, model)
    sink.record(definitions.DEVICE_BUSY_SECONDS, report.busy_s, model)
    sink.record(definitions.CACHE_HITS, report.cache_hits, model)
    sink.record(definitions.CACHE_MISSES, report.cache_misses, model)


def record_gauges(sink: MetricSink, model: str, report: ReplicaReport) -> None:
    """What holds now."""
    sink.record(definitions.DEVICE_WAITING_TOKENS, report.waiting_tokens, model)
    sink.record(definitions.DEVICE_TOKENS_PER_SECOND, report.tokens_per_s, model)
    sink.record(definitions.DEVICE_MEMORY_BYTES, report.memory_bytes, model)
    if report.mfu is not None:
        sink.record(definitions.DEVICE_MFU, report.mfu, model)


class KnownReplicas:
    """The last report of each replica that this ingress has had an answer from of late."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._reports: dict[tuple[str, str], tuple[float, ReplicaReport]] = {}

    def hear(self, model: str, report: ReplicaReport) -> None:
        """Remembers it."""
        self._reports[model, report.replica] = (self._clock(), report)

    def precisions(self, model: str) -> set[str]:
        """What its replicas compute in."""
        oldest = self._clock() - _HEARD_OF_S
        heard_of = [report for (name, _), (at, report) in self._reports.items() if name == model and at > oldest]
        return {report.precision for report in heard_of if report.precision}

    def record(self, sink: MetricSink) -> None:
        """Sums over a model's replicas; of the utilisation, the mean. A model nobody has heard of has 0."""
        models = {model for model, _ in self._reports}
        oldest = self._clock() - _HEARD_OF_S
        self._reports = {key: entry for key, entry in self._reports.items() if entry[0] > oldest}
        for model in models:
            reports = [report for (name, _), (_, report) in self._reports.items() if name == model]
            for metric, value in _together(reports).items():
                sink.record(metric, value, model)


def _together(reports: list[ReplicaReport]) -> dict[Metric, float]:
    sums: dict[Metric, float] = {
        definitions.DEVICE_WAITING_TOKENS: sum(report.waiting_tokens for report in reports),
        definitions.DEVICE_TOKENS_PER_SECOND: sum(report.tokens_per_s for report in reports),
        definitions.DEVICE_MEMORY_BYTES: sum(report.memory_bytes for report in reports),
    }
    shares = [report.mfu for report in reports if report.mfu is not None]
    return sums | ({definitions.DEVICE_MFU: sum(shares) / len(shares)} if shares else {})
