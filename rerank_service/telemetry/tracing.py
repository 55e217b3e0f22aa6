"""OpenTelemetry traces: one span per request, one per shard, and one per stage of the replica's work.

The ingress creates all spans from the replicas' answers, so replicas need no exporter, and a lost replica still leaves
a span with the error. Tracing is off unless a collector is configured, and sending to a collector needs the extra
`tracing`. Spans carry sizes, times and error codes, never text.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from opentelemetry.trace import INVALID_SPAN, NoOpTracer, Span, SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from rerank_service.config import TracingConfig
from rerank_service.errors import ConfigError, RerankError
from rerank_service.messages import Shard, ShardScores

__all__ = ["Tracing", "mark_error", "traceparent"]

_NAME = "rerank_service"
_TRACEPARENT = "traceparent"
_W3C = TraceContextTextMapPropagator()
_EXPORT_TIMEOUT_S = 5.0


class Tracing:
    """Creates spans, and exports them to the collector in a separate thread."""

    def __init__(self, config: TracingConfig) -> None:
        """Raises `ConfigError` if a collector is configured and the exporter is not installed."""
        self._provider = None if config.otlp_endpoint is None else _provider(config)
        self._tracer: Tracer = self._provider.get_tracer(_NAME) if self._provider else NoOpTracer()

    @contextmanager
    def span(
        self, name: str, attributes: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> Iterator[Span]:
        """Starts a child of the current span. With the `headers` of a client's request, the span instead continues the
        client's trace, which the W3C header `traceparent` identifies."""
        if self._provider is None and (headers is None or _TRACEPARENT not in headers):  # there is nothing to continue
            yield INVALID_SPAN
            return
        with self._tracer.start_as_current_span(
            name,
            None if headers is None else _W3C.extract(headers),
            SpanKind.CLIENT if headers is None else SpanKind.SERVER,
            dict(attributes),
            record_exception=False,  # an exception's message may hold the client's text
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except BaseException as error:
                mark_error(span, error)
                raise

    def shard(self, shard: Shard, attempt: int) -> AbstractContextManager[Span]:
        """The span of one call to a replica, a child of the current request's span."""
        attributes = {
            "rerank.model": shard.model,
            "rerank.num_pairs": len(shard.passages),
            "rerank.estimated_tokens": shard.num_tokens,
            "rerank.attempt": attempt,
        }
        return self.span("score shard", attributes)

    def stages(self, span: Span, scores: ShardScores) -> None:
        """Adds a child span per stage of the replica's work to the shard's `span`, timed by the replica's clock."""
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
        """Exports the remaining spans; blocks for a few seconds at most."""
        if self._provider is not None:
            self._provider.force_flush(int(1000 * _EXPORT_TIMEOUT_S))
            self._provider.shutdown()


def mark_error(span: Span, error: BaseException) -> None:
    """Marks the span as failed, with the error's code or class; the message is left out."""
    span.set_attribute("error.type", error.code if isinstance(error, RerankError) else type(error).__name__)
    span.set_status(StatusCode.ERROR)


def traceparent() -> dict[str, str]:
    """The W3C header `traceparent` of the current span; empty if there is no span."""
    headers: dict[str, str] = {}
    _W3C.inject(headers)
    return headers


def _provider(config: TracingConfig) -> Any:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ImportError:
        raise ConfigError("tracing.otlp_endpoint needs an extra: pip install 'rerank-service[tracing]'") from None
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(config.sample_ratio)),
        resource=Resource.create({"service.name": config.service_name}),
    )
    exporter = OTLPSpanExporter(endpoint=config.otlp_endpoint, timeout=_EXPORT_TIMEOUT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider
