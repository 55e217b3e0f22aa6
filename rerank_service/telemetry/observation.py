"""What is seen of each ranking request, whatever its answer: metrics, a line in the log, a span, headers of the reply.

Sizes, times and codes, never text. Knows no dialect and no model.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request, Response
from opentelemetry.trace import Span
from starlette.requests import ClientDisconnect

from rerank_service.config import LogConfig
from rerank_service.errors import QueueFull, RateLimited, RequestTooLarge, RerankError, WaitTooLong
from rerank_service.messages import Ranked
from rerank_service.telemetry.metrics import definitions
from rerank_service.telemetry.metrics.of_ingress import IngressMetrics
from rerank_service.telemetry.tracing import Tracing, mark_error, trace_id, traceparent

__all__ = ["Observation", "Observer"]

logger = logging.getLogger(__name__)

_CLIENT_LEFT = 499
"""nginx's status of a request whose client hung up; nobody reads it but the metrics."""
_SHED = (QueueFull, WaitTooLong, RequestTooLarge)


@dataclass(slots=True)
class Observation:
    """One request; whoever answers it fills in what it learns."""

    dialect: str
    """Until the body is read, the one that the path's first dialect has."""
    model_id: str = "unknown"
    """Until the model is known: the client's text is no label."""
    ranked: Ranked | None = None
    parse_s: float = 0.0
    status: int = 500
    code: str | None = None
    """Of our error, if it ended in one."""
    started: float = field(default_factory=time.perf_counter)


class Observer:
    """Watches over the answering of requests."""

    def __init__(self, config: LogConfig, metrics: IngressMetrics, tracing: Tracing) -> None:
        self._sample_ratio = config.access_sample_ratio
        self._metrics = metrics
        self._tracing = tracing

    async def answer(
        self,
        request: Request,
        dialect: str,
        respond: Callable[[Observation], Awaitable[Response]],
        refuse: Callable[[RerankError], Response],
    ) -> Response:
        """What `respond` answers or, if that fails, what `refuse` makes of the error; with headers of ours."""
        observation = Observation(dialect)
        attributes = {"http.request.method": request.method, "http.route": _route(request)}
        with self._tracing.request(f"{request.method} {_route(request)}", request.headers, attributes) as span:
            reply_headers = traceparent()
            try:
                response = await self._watched(observation, span, respond, refuse)
            finally:
                span.set_attribute("rerank.dialect", observation.dialect)
                span.set_attribute("http.response.status_code", observation.status)
                self._tell(observation)
        response.headers.update(reply_headers)
        if observation.ranked is not None:
            response.headers["Server-Timing"] = _server_timing(observation, observation.ranked)
            response.headers["x-rerank-truncated-passages"] = str(observation.ranked.num_truncated)
            response.headers["x-rerank-unscored-passages"] = str(observation.ranked.num_unscored)
        return response

    async def _watched(
        self,
        observation: Observation,
        span: Span,
        respond: Callable[[Observation], Awaitable[Response]],
        refuse: Callable[[RerankError], Response],
    ) -> Response:
        try:
            response = await respond(observation)
        except RerankError as error:
            observation.code = error.code
            if isinstance(error, RateLimited):
                self._metrics.record(definitions.LIMITED_REQUESTS, 1, error.what)
            elif isinstance(error, _SHED):
                self._metrics.record(definitions.SHED_REQUESTS, 1, observation.model_id, error.code)
            mark_error(span, error)
            response = refuse(error)
        except ClientDisconnect:
            response = Response(status_code=_CLIENT_LEFT)
        except asyncio.CancelledError:
            observation.status = _CLIENT_LEFT
            raise
        except Exception as error:
            logger.exception("unexpected error type=%s", type(error).__name__)
            mark_error(span, error)
            response = refuse(RerankError())
        observation.status = response.status_code
        return response

    def _tell(self, observation: Observation) -> None:
        model, status = observation.model_id, observation.status
        self._metrics.record(definitions.REQUESTS, 1, model, str(status), observation.dialect)
        if status == _CLIENT_LEFT:
            self._metrics.record(definitions.CANCELLED_REQUESTS, 1, model)
        if observation.ranked is not None:
            self._record(model, observation.ranked)
        if observation.ranked is None or random.random() < self._sample_ratio:  # noqa: S311 - no secret
            fields = _log_fields(observation)
            logger.info("request %s", " ".join(f"{name}={value}" for name, value in fields.items()), extra=fields)

    def _record(self, model: str, ranked: Ranked) -> None:
        record = self._metrics.record
        record(definitions.PASSAGES, len(ranked.logits), model)
        record(definitions.REQUEST_PASSAGES, len(ranked.logits), model)
        record(definitions.TOKENS, ranked.num_tokens, model)
        record(definitions.TRUNCATED_PAIRS, ranked.num_truncated, model)
        record(definitions.UNSCORED_PAIRS, ranked.num_unscored, model)
        record(definitions.REQUEST_SECONDS, ranked.total_s, model)
        record(definitions.TOKENISE_SECONDS, ranked.tokenise_s, model)
        record(definitions.QUEUE_SECONDS, ranked.queue_s, model)
        record(definitions.FORWARD_SECONDS, ranked.forward_s, model)


def _route(request: Request) -> str:
    """As it was declared: a path may hold anything."""
    return str(getattr(request.scope.get("route"), "path", ""))


def _log_fields(observation: Observation) -> dict[str, Any]:
    """The line of a request: what JSON logs have as fields."""
    fields: dict[str, Any] = {
        "status": observation.status,
        "dialect": observation.dialect,
        "model": observation.model_id,
    }
    if observation.code is not None:
        fields["code"] = observation.code
    if (ranked := observation.ranked) is not None:
        fields |= {
            "num_passages": len(ranked.logits),
            "num_tokens": ranked.num_tokens,
            "num_truncated": ranked.num_truncated,
            "num_unscored": ranked.num_unscored,
            "num_shards": ranked.num_shards,
            **{f"{name}_ms": milliseconds for name, milliseconds in _timings(observation, ranked).items()},
        }
    else:
        fields["total_ms"] = round(1000 * (time.perf_counter() - observation.started), 1)
    if (trace := trace_id()) is not None:
        fields["trace_id"] = trace
    return fields


def _timings(observation: Observation, ranked: Ranked) -> dict[str, float]:
    """Milliseconds, in the order of a request's way."""
    seconds = {
        "parse": observation.parse_s,
        "tokenise": ranked.tokenise_s,
        "queue": ranked.queue_s,
        "forward": ranked.forward_s,
        "total": ranked.total_s,
    }
    return {name: round(1000 * value, 1) for name, value in seconds.items()}


def _server_timing(observation: Observation, ranked: Ranked) -> str:
    """W3C Server Timing: browsers' and proxies' tools show it."""
    return ", ".join(f"{name};dur={value}" for name, value in _timings(observation, ranked).items())
