"""Every metric, with its labels. Names and units follow Prometheus's conventions.

Label values come from the configuration, from our error codes and from status codes: their number is bounded. Knows
no library that publishes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

__all__ = [
    "ALL_METRICS",
    "BATCH_FILL",
    "BATCH_TOKENS",
    "CACHE_HITS",
    "CACHE_MISSES",
    "CANCELLED_REQUESTS",
    "DEVICE_BUSY_SECONDS",
    "DEVICE_MEMORY_BYTES",
    "DEVICE_MFU",
    "DEVICE_TOKENS_PER_SECOND",
    "DEVICE_WAITING_TOKENS",
    "FORWARD_SECONDS",
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
    "SHED_REQUESTS",
    "TOKENISE_SECONDS",
    "TOKENS",
    "TRUNCATED_PAIRS",
    "UNSCORED_PAIRS",
    "Metric",
    "MetricKind",
    "MetricSink",
    "NoMetrics",
    "Several",
]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_PASSAGES = (1, 2, 5, 10, 20, 50, 100, 200, 512, 1024)
_TOKENS = (64, 256, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)
_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


class MetricKind(StrEnum):
    """How a value is taken; the value is what prometheus_client and Ray call it."""

    COUNTER = "inc"
    """Added to what was there."""
    GAUGE = "set"
    """In place of what was there."""
    HISTOGRAM = "observe"
    """Counted in the first bucket that holds it."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One name; a time series for each combination of labels."""

    name: str
    """Without the prefix `ray_` that Ray's exporter puts before it."""
    kind: MetricKind
    documentation: str
    labels: tuple[str, ...] = ("model",)
    buckets: tuple[float, ...] = ()
    """Upper bounds, of a histogram."""
    by_replica: bool = False
    """Measured in a model's replica; an ingress knows it from the replica's answers."""


class MetricSink(Protocol):
    """Takes values."""

    def record(self, metric: Metric, value: float, *labels: str) -> None:
        """`labels` are the values of `metric.labels`, in their order."""
        ...


class NoMetrics:
    """Where nobody looks: benchmarks of the parts, and tests."""

    def record(self, metric: Metric, value: float, *labels: str) -> None:
        """Forgets it."""


class Several:
    """Hands each value to all of `sinks`."""

    def __init__(self, sinks: Sequence[MetricSink]) -> None:
        self._sinks = sinks

    def record(self, metric: Metric, value: float, *labels: str) -> None:
        """To each of them."""
        for sink in self._sinks:
            sink.record(metric, value, *labels)


def _counter(name: str, documentation: str, *labels: str, by_replica: bool = False) -> Metric:
    return Metric(f"rerank_{name}_total", MetricKind.COUNTER, documentation, labels or ("model",), (), by_replica)


def _histogram(name: str, documentation: str, buckets: tuple[float, ...], *, by_replica: bool = False) -> Metric:
    return Metric(f"rerank_{name}", MetricKind.HISTOGRAM, documentation, ("model",), buckets, by_replica)


def _gauge(name: str, documentation: str, *, by_replica: bool = True) -> Metric:
    return Metric(f"rerank_{name}", MetricKind.GAUGE, documentation, ("model",), (), by_replica)


REQUESTS = _counter(
    "requests", "Ranking requests answered; status 499: the client left.", *("model", "status", "dialect")
)
PASSAGES = _counter("passages", "Passages ranked.")
TOKENS = _counter("tokens", "Tokens of ranked pairs.")
TRUNCATED_PAIRS = _counter("truncated_pairs", "Pairs cut at the model's window.")
UNSCORED_PAIRS = _counter("unscored_pairs", "Pairs whose query left no room in the window for any of the passage.")
REQUEST_PASSAGES = _histogram("request_passages", "Passages of a request.", _PASSAGES)
REQUEST_SECONDS = _histogram("request_seconds", "From the parsed body to the ranking.", _SECONDS)
TOKENISE_SECONDS = _histogram("tokenise_seconds", "Tokenising the slowest shard of a request.", _SECONDS)
QUEUE_SECONDS = _histogram("queue_seconds", "Longest wait of a request's shards for the device.", _SECONDS)
FORWARD_SECONDS = _histogram(
    "forward_seconds", "From a shard's first batch to its last logit, the slowest of a request.", _SECONDS
)
OUTSTANDING_TOKENS = _gauge(
    "outstanding_tokens", "Tokens, by estimate, that this ingress has sent and not got back.", by_replica=False
)
SHED_REQUESTS = _counter("shed_requests", "Requests refused because too much waits, by code.", "model", "code")
LIMITED_REQUESTS = _counter("limited_requests", "Requests over a caller's limit a minute.", "limit")
CANCELLED_REQUESTS = _counter("cancelled_requests", "Requests whose client left before the answer.")
RETRIED_SHARDS = _counter("retried_shards", "Shards scored again because their replica died.")
CACHE_HITS = _counter("passage_cache_hits", "Passages whose encoding a replica still had.", by_replica=True)
CACHE_MISSES = _counter("passage_cache_misses", "Passages a replica's cache did not have.", by_replica=True)
BATCH_TOKENS = _histogram("batch_tokens", "Tokens of one forward pass.", _TOKENS, by_replica=True)
BATCH_FILL = _histogram("batch_fill", "Share of a batch's budget of tokens that is used.", _SHARES, by_replica=True)
DEVICE_BUSY_SECONDS = _counter("device_busy_seconds", "Time a device had a batch.", by_replica=True)
DEVICE_WAITING_TOKENS = _gauge("device_waiting_tokens", "Tokens that wait for a device or are on it.")
DEVICE_TOKENS_PER_SECOND = _gauge("device_tokens_per_second", "Tokens a device scores a second while it has work.")
DEVICE_MEMORY_BYTES = _gauge("device_memory_bytes", "GPU memory that torch holds; on a CPU, the process's own.")
DEVICE_MFU = _gauge(
    "device_mfu",
    "Model FLOP utilisation while a device has work, by estimate: linear layers over the GPU's dense peak.",
)

ALL_METRICS = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""In the order above."""

REPLICA_METRICS = tuple(metric for metric in ALL_METRICS if metric.by_replica)
INGRESS_METRICS = tuple(metric for metric in ALL_METRICS if not metric.by_replica)
