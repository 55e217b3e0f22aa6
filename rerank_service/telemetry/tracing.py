"""OpenTelemetry traces: a span a request, one a shard, and what its replica did with it.

All spans are made in the ingress, from what replicas answer: a replica needs no exporter, and one that dies leaves a
span that says so. Off unless a collector is configured; then the extra `tracing` is needed. Spans carry sizes, times
and error codes, never text. Knows neither HTTP nor Ray.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import NoOpTracer, Span, SpanKind, StatusCode, Tracer, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from rerank_service.config import TracingConfig
from rerank_service.errors import ConfigError, RerankError
from rerank_service.messages import Shard, ShardScores

__all__ = ["Tracing", "mark_error", "trace_id", "traceparent"]

_NAME = "rerank_service"
_W3C = TraceContextTextMapPropagator()
_EXPORT_TIMEOUT_S = 5.0


class Tracing:
    """Makes spans, and sends them to the collector in a thread of its own."""

    def __init__(self, config: TracingConfig) -> None:
        """Raises `ConfigError` where the exporter is not installed."""
        self._provider = None if config.otlp_endpoint is None else _provider(config)
        self._tracer: Tracer = self._provider.get_tracer(_NAME) if self._provider else NoOpTracer()

    @contextmanager
    def request(self, name: str, headers: Mapping[str, str], attributes: Mapping[str, Any]) -> Iterator[Span]:
        """A request from outside, continuing the trace that its W3C `traceparent` header names."""
        with self._span(name, SpanKind.SERVER, attributes, _W3C.extract(headers)) as span:
            yield span

    @contextmanager
    def shard(self, shard: Shard, attempt: int) -> Iterator[Span]:
        """One call of a replica, below the request that is being answered."""
        attributes = {
            "rerank.model": shard.model,
            "rerank.num_pairs": len(shard.passages),
            "rerank.estimated_tokens": shard.num_tokens,
            "rerank.attempt": attempt,
        }
        with self._span("score shard", SpanKind.CLIENT, attributes) as span:
            yield span

    def stages(self, span: Span, scores: ShardScores) -> None:
        """What the replica did with the shard, by its own clock, one after the other."""
        if not span.is_recording():
            return
        if scores.report is not None:
            span.set_attribute("rerank.replica", scores.report.replica)
        span.set_attribute("rerank.num_tokens", sum(scores.num_tokens))
        started_ns = int(scores.started_at * 1e9)
        for name, seconds in (
            ("tokenise", scores.tokenise_s),
            ("queue", scores.queue_s),
            ("forward", scores.forward_s),
        ):
            ended_ns = started_ns + int(seconds * 1e9)
            self._tracer.start_span(name, start_time=started_ns).end(ended_ns)
            started_ns = ended_ns

    def close(self) -> None:
        """Sends what is left; waits for the collector some seconds at most."""
        if self._provider is not None:
            self._provider.force_flush(int(1000 * _EXPORT_TIMEOUT_S))
            self._provider.shutdown()

    @contextmanager
    def _span(
        self, name: str, kind: SpanKind, attributes: Mapping[str, Any], context: Context | None = None
    ) -> Iterator[Span]:
        with self._tracer.start_as_current_span(
            name,
            context,
            kind,
            dict(attributes),
            record_exception=False,  # its message may have the client's text
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except BaseException as error:
                mark_error(span, error)
                raise


def mark_error(span: Span, error: BaseException) -> None:
    """What is told of a failure: its code or its class, never its message."""
    span.set_attribute("error.type", error.code if isinstance(error, RerankError) else type(error).__name__)
    span.set_status(StatusCode.ERROR)


def traceparent() -> dict[str, str]:
    """The W3C header of the span that is current; empty where none is."""
    headers: dict[str, str] = {}
    _W3C.inject(headers)
    return headers


def trace_id() -> str | None:
    """Of the trace that is current, in hex, as logs have it; null where none is recorded."""
    context = get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid and context.trace_flags.sampled else None


def _provider(config: TracingConfig) -> Any:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ImportError:
        raise ConfigError("tracing.otlp_endpoint needs the extra: pip install 'rerank-service[tracing]'") from None
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(config.sample_ratio)),
        resource=Resource.create({"service.name": config.service_name}),
    )
    exporter = OTLPSpanExporter(endpoint=config.otlp_endpoint, timeout=_EXPORT_TIMEOUT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider
