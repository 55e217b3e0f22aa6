"""Traces reach an OTLP collector in this process and carry no text."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from rerank_service.config import ModelConfig
from rerank_service.errors import QueueFull
from rerank_service.messages import Shard
from tests.local_service import LocalReplica, local_api
from tests.models import local_model

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
BODY = {"query": {"text": "a secret question"}, "passages": [{"text": "secret one"}, {"text": "secret two"}]}


class Collector:
    """Receives OTLP over HTTP."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}/v1/traces"
        self.bodies: list[bytes] = []

    @property
    def spans(self) -> list[Span]:
        """Spans of requests, without the spans of readiness."""
        requests = [ExportTraceServiceRequest.FromString(body) for body in self.bodies]
        scopes = [scope for one in requests for resource in one.resource_spans for scope in resource.scope_spans]
        spans = [span for scope in scopes for span in scope.spans]
        traces = {span.trace_id for span in spans if span.kind == Span.SPAN_KIND_SERVER}
        return sorted((span for span in spans if span.trace_id in traces), key=lambda s: s.start_time_unix_nano)


@pytest.fixture
def collector() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    taken = Collector(server.server_port)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield taken
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def model(checkpoints: dict[str, Path]) -> ModelConfig:
    return local_model(checkpoints["llama_bidirec"], window_tokens=64)


@pytest.fixture
def ask(collector: Collector, model: ModelConfig) -> Any:
    """Sends a ranking to a service with tracing, and then stops the service so that all spans arrive."""

    async def send(replica: Any, **headers: str) -> httpx.Response:
        api = local_api([model], {model.id: replica}, tracing={"otlp_endpoint": collector.endpoint})
        transport = httpx.ASGITransport(api, raise_app_exceptions=False)
        async with api.router.lifespan_context(api), httpx.AsyncClient(transport=transport, base_url="http://r") as c:
            return await c.post("/v1/ranking", json=BODY, headers=headers)

    return send


def attributes(span: Span) -> dict[str, Any]:
    return {pair.key: pair.value.string_value or pair.value.int_value for pair in span.attributes}


async def test_a_request_has_spans_for_its_shard_and_the_replicas_stages(
    collector: Collector, model: ModelConfig, ask: Any
) -> None:
    response = await ask(LocalReplica(model), traceparent=f"00-{TRACE}-{PARENT}-01")

    by_name = {span.name: span for span in collector.spans}
    request, shard = by_name["POST /v1/ranking"], by_name["score shard"]
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    assert request.parent_span_id.hex() == PARENT
    assert shard.parent_span_id == request.span_id
    assert {by_name[name].parent_span_id for name in ("tokenise", "queue", "forward")} == {shard.span_id}
    assert by_name["queue"].end_time_unix_nano == by_name["forward"].start_time_unix_nano
    assert attributes(request)["http.response.status_code"] == 200
    assert attributes(shard)["rerank.num_pairs"] == 2
    assert attributes(shard)["rerank.num_tokens"] == response.json()["usage"]["total_tokens"]
    assert response.headers["traceparent"] == f"00-{TRACE}-{request.span_id.hex()}-01"
    assert not any(b"secret" in body for body in collector.bodies)


async def test_a_failure_is_marked_with_its_code(collector: Collector, ask: Any) -> None:
    class Full:
        async def remote(self, shard: Shard) -> None:
            raise QueueFull(10, 20, 3)

    response = await ask(Full())

    assert response.status_code == 503
    spans = {span.name: span for span in collector.spans}
    assert {attributes(span)["error.type"] for span in spans.values()} == {"queue_full"}
    assert attributes(spans["POST /v1/ranking"])["http.response.status_code"] == 503
    assert response.headers["traceparent"].split("-")[1] == spans["POST /v1/ranking"].trace_id.hex()


async def test_an_unsampled_trace_stays_unsampled(collector: Collector, model: ModelConfig, ask: Any) -> None:
    response = await ask(LocalReplica(model), traceparent=f"00-{TRACE}-{PARENT}-00")

    assert response.status_code == 200
    assert collector.spans == []
    assert response.headers["traceparent"].endswith("-00")


async def test_requests_succeed_without_a_reachable_collector(model: ModelConfig) -> None:
    settings = {"tracing": {"otlp_endpoint": "http://127.0.0.1:9/v1/traces"}}
    api = local_api([model], {model.id: LocalReplica(model)}, **settings)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://r") as client:
        assert (await client.post("/v1/ranking", json=BODY)).status_code == 200
