"""The list of metrics, their exposition as text, and the aggregation of replicas' reports."""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rerank_service.messages import ReplicaReport, StartTimes
from rerank_service.telemetry.ingress_metrics import IngressMetrics
from rerank_service.telemetry.metrics import (
    ALL_METRICS,
    INGRESS_METRICS,
    OUTSTANDING_TOKENS,
    QUEUE_SECONDS,
    REPLICA_METRICS,
    TOKENS,
    Metric,
    MetricKind,
)

UNITS = (
    "_total",
    "_seconds",
    "_tokens",
    "_bytes",
    "_passages",
    "_per_second",
    "_fill",
    "_mfu",
    "_ratio",
    "_tau",
    "_logits",
)


def values(exposition: bytes) -> dict[tuple[str, str], float]:
    """Values by the sample's name and its label values, ordered by label name."""
    families = text_string_to_metric_families(exposition.decode())
    samples = [sample for family in families for sample in family.samples]
    return {
        (sample.name, ",".join(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for sample in samples
    }


def report(replica: str = "host:1", **changes: object) -> ReplicaReport:
    facts: dict[str, object] = {
        "batches": ((100, 0.5), (4000, 1.0)),
        "busy_s": 2.0,
        "cache_hits": 3,
        "cache_misses": 4,
        "waiting_tokens": 70,
        "tokens_per_s": 1000.0,
        "memory_bytes": 5_000_000,
        "mfu": None,
    }
    return ReplicaReport(replica=replica, **(facts | changes))  # type: ignore[arg-type]


def test_precisions_cover_replicas_that_answered_recently() -> None:
    now_s = 0.0
    metrics = IngressMetrics(clock=lambda: now_s)
    assert metrics.precisions("m") == set()
    metrics.add_report("m", report("host:1", precision="int8"))
    now_s = 30.0
    metrics.add_report("m", report("host:2", precision="bfloat16"))
    metrics.add_report("other", report("host:3", precision="float32"))
    assert metrics.precisions("m") == {"int8", "bfloat16"}
    now_s = 70.0
    assert metrics.precisions("m") == {"bfloat16"}


def test_the_start_is_that_of_the_slowest_replica() -> None:
    now_s = 0.0
    metrics = IngressMetrics(clock=lambda: now_s)
    assert metrics.slowest_start("m") is None
    metrics.add_report("m", report("host:1", start=StartTimes(1.0, 9.0, 40.0, 2.0, 1.0)))
    metrics.add_report("m", report("host:2", start=StartTimes(1.0, 12.0, 3.0, 2.0, 1.0)))
    metrics.add_report("m", report("host:3"))

    found = {key[1]: value for key, value in values(metrics.exposition()).items() if key[0] == "rerank_start_seconds"}
    assert found == {"m,fetch": 1.0, "m,weights": 9.0, "m,compile": 40.0, "m,capture": 2.0, "m,warm_up": 1.0}
    now_s = 61.0
    metrics.add_report("m", report("host:2", start=StartTimes(1.0, 12.0, 3.0, 2.0, 1.0)))
    assert metrics.slowest_start("m") == StartTimes(1.0, 12.0, 3.0, 2.0, 1.0)


def test_an_ingress_renews_its_own_gauges() -> None:
    recorded: list[tuple[Metric, float, tuple[str, ...]]] = []

    class Ray:
        def record(self, metric: Metric, value: float, *labels: str) -> None:
            recorded.append((metric, value, labels))

    metrics = IngressMetrics(Ray())
    for value in (7, 3):
        metrics.record(OUTSTANDING_TOKENS, value, "m")
    metrics.record(OUTSTANDING_TOKENS, 5, "other")
    metrics.record(TOKENS, 9, "m")
    metrics.add_report("m", report("host:1"))
    metrics.exposition()
    recorded.clear()

    metrics.renew_gauges()

    assert recorded == [(OUTSTANDING_TOKENS, 3, ("m",)), (OUTSTANDING_TOKENS, 5, ("other",))]


@pytest.mark.parametrize("metric", ALL_METRICS, ids=lambda metric: metric.name)
def test_names_follow_prometheus_conventions(metric: Metric) -> None:
    assert re.fullmatch(r"rerank_[a-z_]+", metric.name)
    assert metric.name.endswith(UNITS)
    assert metric.name.endswith("_total") == (metric.kind is MetricKind.COUNTER)
    assert bool(metric.buckets) == (metric.kind is MetricKind.HISTOGRAM)
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert metric.documentation.endswith(".")


def test_names_are_distinct_and_each_is_published_once_through_ray() -> None:
    assert len({metric.name for metric in ALL_METRICS}) == len(ALL_METRICS)
    assert set(INGRESS_METRICS) | set(REPLICA_METRICS) == set(ALL_METRICS)
    assert not set(INGRESS_METRICS) & set(REPLICA_METRICS)


def test_values_are_recorded_by_kind() -> None:
    metrics = IngressMetrics()
    for value in (2, 3):
        metrics.record(TOKENS, value, "m")
        metrics.record(OUTSTANDING_TOKENS, value, "m")
        metrics.record(QUEUE_SECONDS, value, "m")
    metrics.record(TOKENS, 1, "another")

    shown = values(metrics.exposition())

    assert shown["rerank_tokens_total", "m"] == 5
    assert shown["rerank_tokens_total", "another"] == 1
    assert shown["rerank_outstanding_tokens", "m"] == 3
    assert shown["rerank_queue_seconds_sum", "m"] == 5
    assert shown["rerank_queue_seconds_bucket", "2.5,m"] == 1


class KeptValues:
    """Stands in for Ray's metrics."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def record(self, metric: Metric, value: float, *labels: str) -> None:
        self.names.append(metric.name)


def test_ray_receives_the_ingresss_own_values_and_no_replicas_report() -> None:
    ray = KeptValues()
    metrics = IngressMetrics(ray)
    metrics.record(TOKENS, 5, "m")
    metrics.add_report("m", report())
    metrics.exposition()
    assert ray.names == [TOKENS.name]


def test_an_ingress_aggregates_its_replicas() -> None:
    metrics = IngressMetrics()
    metrics.add_report("m", report("host:1", mfu=0.2, memory_limit_bytes=80_000_000))
    metrics.add_report("m", report("host:2", mfu=0.4, batches=((64, 0.1),)))
    metrics.add_report("m", report("host:2", mfu=0.6, memory_limit_bytes=40_000_000, waiting_tokens=10, batches=()))

    shown = values(metrics.exposition())

    assert shown["rerank_batch_tokens_count", "m"] == 3
    assert shown["rerank_batch_tokens_sum", "m"] == 4164
    assert shown["rerank_device_busy_seconds_total", "m"] == 6
    assert shown["rerank_passage_cache_hits_total", "m"] == 9
    assert shown["rerank_device_waiting_tokens", "m"] == 80
    assert shown["rerank_device_memory_bytes", "m"] == 10_000_000
    assert shown["rerank_device_memory_limit_bytes", "m"] == 120_000_000
    assert shown["rerank_device_mfu", "m"] == pytest.approx(0.4)


def test_a_replica_without_recent_answers_is_left_out() -> None:
    now = [0.0]
    metrics = IngressMetrics(clock=lambda: now[0])
    metrics.add_report("m", report("host:1"))
    now[0] = 50.0
    metrics.add_report("m", report("host:2"))
    now[0] = 70.0
    assert values(metrics.exposition())["rerank_device_waiting_tokens", "m"] == 70

    now[0] = 200.0

    assert values(metrics.exposition())["rerank_device_waiting_tokens", "m"] == 0


def test_a_cpu_has_no_utilisation_and_no_memory_limit() -> None:
    metrics = IngressMetrics()
    metrics.add_report("m", report())
    shown = values(metrics.exposition())
    assert ("rerank_device_mfu", "m") not in shown
    assert ("rerank_device_memory_limit_bytes", "m") not in shown
