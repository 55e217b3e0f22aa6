"""Records every ranking request, successful or not, in metrics, a log line, a span and the reply's headers.

The records hold sizes, times and codes, never text.
"""

import asyncio
import logging
import random
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from fastapi import Request
from opentelemetry.trace import Span

from rerank_service.config import LogConfig
from rerank_service.errors import QueueFull, RateLimited, RequestTooLarge, RerankError, WaitTooLong
from rerank_service.messages import Ranked
from rerank_service.telemetry import metrics
from rerank_service.telemetry.ingress_metrics import IngressMetrics
from rerank_service.telemetry.tracing import Tracing, mark_error, traceparent

__all__ = ["CLIENT_DISCONNECTED", "Observation", "Observer"]

logger = logging.getLogger(__name__)

CLIENT_DISCONNECTED = 499
"""nginx's status for a request whose client disconnected. Only metrics and logs show it."""
_SHED = (QueueFull, WaitTooLong, RequestTooLarge)
_SERVER_TIMING = (
    "parse;dur={parse_ms}, tokenise;dur={tokenise_ms}, queue;dur={queue_ms}, forward;dur={forward_ms}, "
    "total;dur={total_ms}"
)
"""W3C Server Timing, which browsers and proxies display."""

_FIELD_NAME = re.compile(r"[A-Za-z0-9_.-]{1,40}")
_MAX_FIELD_NAMES = 10
_KNOWN_FIELDS = frozenset(
    (
        *("documents", "encoding_format", "instruct", "instruction", "is_truncated", "kwargs", "max_chunks_per_doc"),
        *("max_tokens_per_doc", "metadata", "model", "model-id", "normalize", "overlap_tokens", "passages", "priority"),
        *("query", "rank_fields", "raw_scores", "relevant_spans", "return_documents", "return_embeddings"),
        *("return_len", "return_text", "texts", "threshold", "top_k", "top_n", "topN", "truncate"),
        *("truncate_prompt_tokens", "truncation", "use_activation", "user"),
    )
)
"""Ignored fields that metrics and logs name. Clients send these fields to one API or another."""


@dataclass(slots=True)
class _Totals:
    """Sums over the rankings of a request's queries; the times are those of the slowest query."""

    num_passages: int = 0
    num_explaining: int = 0
    num_tokens: int = 0
    num_truncated: int = 0
    num_unscored: int = 0
    num_shards: int = 0
    tokenise_s: float = 0.0
    queue_s: float = 0.0
    forward_s: float = 0.0
    total_s: float = 0.0


@dataclass(slots=True)
class Observation:
    """Facts about one request, filled in by the endpoint as they become known."""

    span: Span
    reply_headers: dict[str, str]
    """Headers of the reply, whether it is an answer or an error."""
    dialect: str
    """Dialect of the request. Until the body is read, this is the first dialect of the path."""
    model_id: str = "unknown"
    """Id of the resolved model. It is never the client's text, because it becomes a label."""
    ignored_fields: tuple[str, ...] = ()
    """Fields of the body that the API does not have, as the client names them."""
    parse_s: float = 0.0
    totals: _Totals | None = None
    """Null unless the request was ranked."""
    timings_ms: dict[str, float] = field(default_factory=dict)
    """Time spent in each stage of a ranked request, in the order of the stages."""
    stage_timings: str = ""
    """More entries of the header `Server-Timing`: a comma before each."""
    more_fields: dict[str, str] = field(default_factory=dict)
    """More fields of the log line."""
    status: int = 500
    error: RerankError | None = None
    started_s: float = field(default_factory=time.perf_counter)

    def add_rankings(self, rankings: Sequence[Ranked]) -> None:
        """Sums up the rankings of the request's queries, and sets the reply headers that describe them."""
        totals = self.totals = _Totals()
        for ranked in rankings:
            totals.num_passages += len(ranked.logits)
            totals.num_explaining += ranked.num_explaining
            totals.num_tokens += ranked.num_tokens
            totals.num_truncated += ranked.num_truncated
            totals.num_unscored += ranked.num_unscored
            totals.num_shards += ranked.num_shards
            totals.tokenise_s = max(totals.tokenise_s, ranked.tokenise_s)
            totals.queue_s = max(totals.queue_s, ranked.queue_s)
            totals.forward_s = max(totals.forward_s, ranked.forward_s)
            totals.total_s = max(totals.total_s, ranked.total_s)
        self.timings_ms = {
            "parse_ms": round(1000 * self.parse_s, 1),
            "tokenise_ms": round(1000 * totals.tokenise_s, 1),
            "queue_ms": round(1000 * totals.queue_s, 1),
            "forward_ms": round(1000 * totals.forward_s, 1),
            "total_ms": round(1000 * totals.total_s, 1),
        }
        self.reply_headers["Server-Timing"] = _SERVER_TIMING.format_map(self.timings_ms) + self.stage_timings
        self.reply_headers["x-model"] = quote(self.model_id, safe="/:@")
        self.reply_headers["x-rerank-truncated-passages"] = str(totals.num_truncated)
        self.reply_headers["x-rerank-unscored-passages"] = str(totals.num_unscored)

    def fail(self, error: Exception) -> RerankError:
        """Records the error that ended the request, and returns the error that the client receives."""
        mark_error(self.span, error)
        if isinstance(error, RerankError):
            self.error = error
            return error
        logger.error("unexpected error type=%s", type(error).__name__, exc_info=error)
        return RerankError()


class Observer:
    """Reports requests to the metrics, the log and the traces."""

    def __init__(self, config: LogConfig, metrics: IngressMetrics, tracing: Tracing) -> None:
        self._sample_ratio = config.access_sample_ratio
        self._metrics = metrics
        self._tracing = tracing

    @contextmanager
    def observe(self, request: Request, dialect: str) -> Iterator[Observation]:
        """Yields an observation of `request`, and reports it when the block ends."""
        route = str(getattr(request.scope.get("route"), "path", ""))  # not the path, which may contain anything
        attributes = {"http.request.method": request.method, "http.route": route}
        with self._tracing.span(f"{request.method} {route}", attributes, request.headers) as span:
            observation = Observation(span, traceparent(), dialect)
            try:
                yield observation
            except asyncio.CancelledError:
                observation.status = CLIENT_DISCONNECTED
                raise
            finally:
                known_fields = _note_ignored_fields(observation) if observation.ignored_fields else ()
                span.set_attribute("rerank.dialect", observation.dialect)
                span.set_attribute("http.response.status_code", observation.status)
                self._record(observation, known_fields)
                if observation.totals is None or random.random() < self._sample_ratio:  # noqa: S311 - no secret
                    self._log(observation, known_fields)

    def _record(self, observation: Observation, ignored_fields: Sequence[str]) -> None:
        record, model, error = self._metrics.record, observation.model_id, observation.error
        record(metrics.REQUESTS, 1, model, str(observation.status), observation.dialect)
        if observation.status == CLIENT_DISCONNECTED:
            record(metrics.CANCELLED_REQUESTS, 1, model)
        elif isinstance(error, RateLimited):
            record(metrics.LIMITED_REQUESTS, 1, error.what)
        elif isinstance(error, _SHED):
            record(metrics.SHED_REQUESTS, 1, model, error.code)
        for field_name in ignored_fields:
            record(metrics.IGNORED_FIELDS, 1, field_name, observation.dialect)
        if (totals := observation.totals) is not None:
            record(metrics.PASSAGES, totals.num_passages + totals.num_explaining, model)
            record(metrics.REQUEST_PASSAGES, totals.num_passages, model)
            record(metrics.TOKENS, totals.num_tokens, model)
            record(metrics.TRUNCATED_PAIRS, totals.num_truncated, model)
            record(metrics.UNSCORED_PAIRS, totals.num_unscored, model)
            record(metrics.REQUEST_SECONDS, totals.total_s, model)
            record(metrics.TOKENISE_SECONDS, totals.tokenise_s, model)
            record(metrics.QUEUE_SECONDS, totals.queue_s, model)
            record(metrics.FORWARD_SECONDS, totals.forward_s, model)

    def _log(self, observation: Observation, ignored_fields: Sequence[str]) -> None:
        """Logs one line per request; JSON logs have the same values as fields."""
        fields: dict[str, Any] = {
            "status": observation.status,
            "dialect": observation.dialect,
            "model": observation.model_id,
        }
        if observation.error is not None:
            fields["code"] = observation.error.code
        if ignored_fields:
            fields["ignored_fields"] = ",".join(ignored_fields)
        if (totals := observation.totals) is None:
            fields["total_ms"] = round(1000 * (time.perf_counter() - observation.started_s), 1)
        else:
            fields |= {
                "num_passages": totals.num_passages,
                **({"num_explaining": totals.num_explaining} if totals.num_explaining else {}),
                "num_tokens": totals.num_tokens,
                "num_truncated": totals.num_truncated,
                "num_unscored": totals.num_unscored,
                "num_shards": totals.num_shards,
                **observation.timings_ms,
            }
        fields |= observation.more_fields
        if observation.span.is_recording():
            fields["trace_id"] = f"{observation.span.get_span_context().trace_id:032x}"
        line = "request"
        for name, value in fields.items():
            line += f" {name}={value}"
        logger.info("%s", line, extra=fields)


def _note_ignored_fields(observation: Observation) -> Sequence[str]:
    """Names the ignored fields in a reply header, where `other` stands for names that do not suit a header. Returns the
    names for metrics and logs: names in `_KNOWN_FIELDS`, or `other`."""
    names = observation.ignored_fields
    shown = dict.fromkeys(name if _FIELD_NAME.fullmatch(name) else "other" for name in names)
    observation.reply_headers["x-ignored-fields"] = ", ".join(list(shown)[:_MAX_FIELD_NAMES])
    return sorted({name if name in _KNOWN_FIELDS else "other" for name in names})
