"""Every metric of the service, with its labels. Names and units follow Prometheus's conventions.

Label values come from the configuration, from fixed lists and from status codes, so their number is bounded.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from rerank_service.messages import ReplicaReport, StartTimes

__all__ = [
    "ALL_METRICS",
    "BATCH_FILL",
    "BATCH_TOKENS",
    "CACHE_HITS",
    "CACHE_MISSES",
    "CANCELLED_REQUESTS",
    "CASCADE_SKIPPED_STAGES",
    "CASCADE_STAGE_PASSAGES",
    "CASCADE_STAGE_SECONDS",
    "DEVICE_BUSY_SECONDS",
    "DEVICE_MEMORY_BYTES",
    "DEVICE_MEMORY_LIMIT_BYTES",
    "DEVICE_MFU",
    "DEVICE_TOKENS_PER_SECOND",
    "DEVICE_WAITING_TOKENS",
    "FORWARD_SECONDS",
    "IGNORED_FIELDS",
    "INGRESS_METRICS",
    "LIMITED_REQUESTS",
    "OUTSTANDING_TOKENS",
    "PASSAGES",
    "QUEUE_SECONDS",
    "REPLICA_METRICS",
    "REQUESTS",
    "REQUEST_PASSAGES",
    "REQUEST_SECONDS",
    "RETRIED_SHARDS",
    "SHADOW_KENDALL_TAU",
    "SHADOW_LARGEST_DIFFERENCE",
    "SHADOW_MEAN_DIFFERENCE",
    "SHADOW_REQUESTS",
    "SHADOW_SECONDS",
    "SHADOW_TOP_OVERLAP",
    "SHED_REQUESTS",
    "START_SECONDS",
    "TOKENISE_SECONDS",
    "TOKENS",
    "TRUNCATED_PAIRS",
    "UNSCORED_PAIRS",
    "VERSION_FALLBACKS",
    "VERSION_TRAFFIC",
    "Metric",
    "MetricKind",
    "MetricSink",
    "NoMetrics",
    "record_counts",
    "record_gauges",
    "record_start",
]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_PASSAGES = (1, 2, 5, 10, 20, 50, 100, 200, 512, 1024)
_TOKENS = (64, 256, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)
_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
_TAUS = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1.0)
_TENTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_LOGITS = (1e-6, 1e-5, 1e-4, 1e-3, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


class MetricKind(StrEnum):
    """What happens to a recorded value. Each member's value is the name of the recording method in prometheus_client
    and in Ray's metrics."""

    COUNTER = "inc"
    """The value is added to the previous values."""
    GAUGE = "set"
    """The value replaces the previous value."""
    HISTOGRAM = "observe"
    """The value is counted in the first bucket that holds it."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric, with one time series for each combination of label values."""

    name: str
    """Name of the metric. Ray's exporter adds the prefix `ray_`."""
    kind: MetricKind
    documentation: str
    labels: tuple[str, ...] = ("model",)
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets."""
    by_replica: bool = False
    """Whether replicas measure this metric. An ingress receives the values in the replicas' answers."""


class MetricSink(Protocol):
    """Receives the values of metrics."""

    def record(self, metric: Metric, value: float, *labels: str) -> None:
        """Records a value; `labels` are the values of `metric.labels`, in the same order."""


class NoMetrics:
    """Discards all values; used by benchmarks and by tests of single parts."""

    def record(self, metric: Metric, value: float, *labels: str) -> None:
        """Does nothing."""


def _counter(name: str, documentation: str, *labels: str, by_replica: bool = False) -> Metric:
    return Metric(f"rerank_{name}_total", MetricKind.COUNTER, documentation, labels or ("model",), (), by_replica)


def _histogram(
    name: str, documentation: str, buckets: tuple[float, ...], *labels: str, by_replica: bool = False
) -> Metric:
    return Metric(f"rerank_{name}", MetricKind.HISTOGRAM, documentation, labels or ("model",), buckets, by_replica)


def _gauge(name: str, documentation: str, *labels: str, by_replica: bool = True) -> Metric:
    return Metric(f"rerank_{name}", MetricKind.GAUGE, documentation, labels or ("model",), (), by_replica)


REQUESTS = _counter(
    "requests", "Ranking requests answered; status 499: the client disconnected.", "model", "status", "dialect"
)
IGNORED_FIELDS = _counter(
    "ignored_fields",
    "Ranking requests with a field that the API does not have, by name.",
    "field",
    "dialect",
)
PASSAGES = _counter("passages", "Passages ranked, and passages scored again for explanations.")
TOKENS = _counter("tokens", "Tokens of ranked pairs.")
TRUNCATED_PAIRS = _counter("truncated_pairs", "Pairs truncated to the model's window.")
UNSCORED_PAIRS = _counter("unscored_pairs", "Pairs whose query fills the window, leaving no room for the passage.")
REQUEST_PASSAGES = _histogram("request_passages", "Passages per request.", _PASSAGES)
REQUEST_SECONDS = _histogram("request_seconds", "Time from the parsed body to the ranking.", _SECONDS)
TOKENISE_SECONDS = _histogram("tokenise_seconds", "Tokenisation time of a request's slowest shard.", _SECONDS)
QUEUE_SECONDS = _histogram("queue_seconds", "Longest time a shard of a request is queued for the device.", _SECONDS)
FORWARD_SECONDS = _histogram(
    "forward_seconds", "Time from the first batch to the last logit of a request's slowest shard.", _SECONDS
)
OUTSTANDING_TOKENS = _gauge(
    "outstanding_tokens", "Estimated tokens in flight from this ingress to replicas.", by_replica=False
)
SHED_REQUESTS = _counter("shed_requests", "Requests refused because of overload, by error code.", "model", "code")
LIMITED_REQUESTS = _counter("limited_requests", "Requests refused by a caller's per-minute limit.", "limit")
CANCELLED_REQUESTS = _counter("cancelled_requests", "Requests whose client disconnected before the answer.")
RETRIED_SHARDS = _counter("retried_shards", "Shards sent to another replica after a replica died or failed.")
VERSION_TRAFFIC = _gauge(
    "version_traffic_ratio",
    "Share of a model's requests that a version receives, from 0 to 1, by role: canary (answers) or shadow (scored in "
    "addition).",
    "model",
    "role",
    by_replica=False,
)
VERSION_FALLBACKS = _counter(
    "version_fallbacks",
    "Requests that a version refused or failed, and that the model itself answered, by error code.",
    "model",
    "code",
)
SHADOW_REQUESTS = _counter(
    "shadow_requests",
    "Requests sampled for a shadow, by outcome: compared, dropped (for lack of capacity) or failed.",
    "model",
    "outcome",
)
SHADOW_KENDALL_TAU = _histogram(
    "shadow_kendall_tau",
    "Kendall's tau-b between a shadow's ranking and the answer; 1: the same order. Negative values count as 0.",
    _TAUS,
)
SHADOW_TOP_OVERLAP = _histogram(
    "shadow_top_ten_overlap_ratio", "Share of the answer's best ten passages that are in a shadow's best ten.", _TENTHS
)
SHADOW_MEAN_DIFFERENCE = _histogram(
    "shadow_mean_difference_logits",
    "Mean absolute difference between a shadow's logits and the answer's logits, per request.",
    _LOGITS,
)
SHADOW_LARGEST_DIFFERENCE = _histogram(
    "shadow_largest_difference_logits",
    "Largest absolute difference between a shadow's logit and the answer's logit, per request.",
    _LOGITS,
)
SHADOW_SECONDS = _histogram("shadow_seconds", "Time that a shadow takes for a ranking.", _SECONDS)
CASCADE_STAGE_PASSAGES = _counter(
    "cascade_stage_passages", "Passages scored by a stage of a cascade; `model` is the cascade.", "model", "stage"
)
CASCADE_STAGE_SECONDS = _histogram(
    "cascade_stage_seconds", "Time that a stage of a cascade takes for a request.", _SECONDS, "model", "stage"
)
CASCADE_SKIPPED_STAGES = _counter(
    "cascade_skipped_stages",
    "Stages of cascades left out because of overload or a short deadline (on_overload: answer_early), by reason.",
    "model",
    "stage",
    "reason",
)
CACHE_HITS = _counter("passage_cache_hits", "Passages whose encoding was in a replica's cache.", by_replica=True)
CACHE_MISSES = _counter(
    "passage_cache_misses", "Passages whose encoding was not in a replica's cache.", by_replica=True
)
BATCH_TOKENS = _histogram("batch_tokens", "Tokens per forward pass.", _TOKENS, by_replica=True)
BATCH_FILL = _histogram("batch_fill", "Share of a batch's token budget that is used.", _SHARES, by_replica=True)
DEVICE_BUSY_SECONDS = _counter("device_busy_seconds", "Time the device was running batches.", by_replica=True)
DEVICE_WAITING_TOKENS = _gauge("device_waiting_tokens", "Tokens queued for a device or being scored on it.")
DEVICE_TOKENS_PER_SECOND = _gauge("device_tokens_per_second", "Throughput of a device while it has work.")
DEVICE_MEMORY_BYTES = _gauge("device_memory_bytes", "GPU memory reserved by torch; on a CPU, the process's memory.")
DEVICE_MEMORY_LIMIT_BYTES = _gauge(
    "device_memory_limit_bytes",
    "Memory of the GPU, the MIG slice or the fraction of a GPU that is reserved for a replica; absent on a CPU.",
)
DEVICE_MFU = _gauge(
    "device_mfu",
    "Estimated model FLOP utilisation while a device has work: linear layers over the GPU's dense peak.",
)
START_SECONDS = _gauge(
    "start_seconds",
    "Time that a replica took to load a model, by stage: fetch, weights, compile, capture, warm_up; the start of the "
    "process is not included.",
    "model",
    "stage",
)

ALL_METRICS = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""All metrics, in the order of their definitions."""

REPLICA_METRICS = tuple(metric for metric in ALL_METRICS if metric.by_replica)
INGRESS_METRICS = tuple(metric for metric in ALL_METRICS if not metric.by_replica)


def record_start(sink: MetricSink, model: str, start: StartTimes) -> None:
    """Records the time of each stage of a start."""
    for stage, seconds in start.by_stage().items():
        sink.record(START_SECONDS, seconds, model, stage)


def record_counts(sink: MetricSink, model: str, report: ReplicaReport) -> None:
    """Records the counters and histograms in a replica's report, which cover the time since its previous report."""
    for num_tokens, fill in report.batches:
        sink.record(BATCH_TOKENS, num_tokens, model)
        sink.record(BATCH_FILL, fill, model)
    sink.record(DEVICE_BUSY_SECONDS, report.busy_s, model)
    sink.record(CACHE_HITS, report.cache_hits, model)
    sink.record(CACHE_MISSES, report.cache_misses, model)


def record_gauges(sink: MetricSink, model: str, report: ReplicaReport) -> None:
    """Records the current values in a replica's report."""
    sink.record(DEVICE_WAITING_TOKENS, report.waiting_tokens, model)
    sink.record(DEVICE_TOKENS_PER_SECOND, report.tokens_per_s, model)
    sink.record(DEVICE_MEMORY_BYTES, report.memory_bytes, model)
    if report.memory_limit_bytes is not None:
        sink.record(DEVICE_MEMORY_LIMIT_BYTES, report.memory_limit_bytes, model)
    if report.mfu is not None:
        sink.record(DEVICE_MFU, report.mfu, model)
