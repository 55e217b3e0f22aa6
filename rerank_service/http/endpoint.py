"""The ranking endpoint: the routes of all APIs, and the processing of each ranking request.

The steps are: authenticate, apply rate limits, read and parse the body, select the model, rank, reply.
"""

import asyncio
import math
import re
import time
import uuid
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any, Protocol

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from rerank_service.config import RerankConfig
from rerank_service.errors import (
    BodyTooLarge,
    FieldProblem,
    InvalidRequest,
    PairTooLong,
    RequestTooLarge,
    UnsupportedMediaType,
)
from rerank_service.http.access import ApiKeys, RateLimits
from rerank_service.http.dialects import (
    NIM,
    Body,
    Dialect,
    RankingCall,
    RankingQuery,
    ReadingRules,
    routes_of,
    rules_of,
)
from rerank_service.http.envelope import error_response
from rerank_service.http.openapi import RANKING_OPERATION, dialect_operation
from rerank_service.http.proxies.headers import FORWARDED_TIMEOUT_HEADER, TIMEOUT_HEADER
from rerank_service.http.versions import RankCall, Scored
from rerank_service.messages import Deadline, Ranked, Truncate
from rerank_service.routing.explain import plan_explanation, with_explanations
from rerank_service.routing.model_router import ModelRouter
from rerank_service.routing.ranker import Ranker
from rerank_service.telemetry.observation import CLIENT_DISCONNECTED, Observation, Observer

__all__ = ["Detour", "DirectRankings", "RankingEndpoint", "ranking_routes", "request_timeout_s"]

_PASSAGES = attrgetter("passages")
_JSON = re.compile(r"application/(json|.*\+json)")


class Detour(Protocol):
    """Ranks the calls for a model in another way than with this model's replicas alone."""

    async def rank(
        self,
        call: RankingCall,
        observation: Observation,
        caller: str,
        client_id: str | None,
        deadline: Deadline,
        rank: RankCall,
    ) -> Scored:
        """Ranks a call for the observed model. `rank` ranks a call with the replicas of one model."""
        ...


class RankingEndpoint:
    """Answers ranking requests."""

    def __init__(
        self,
        config: RerankConfig,
        keys: ApiKeys,
        rate_limits: RateLimits,
        router: ModelRouter,
        ranker: Ranker,
        observer: Observer,
        detours: Mapping[str, Detour],
    ) -> None:
        """`detours` maps the ids of cascades and of models with versions to what ranks their calls."""
        self._limits = config.limits
        self._keys = keys
        self._rate_limits = rate_limits
        self._router = router
        self._ranker = ranker
        self._observer = observer
        self._detours = detours

    async def answer(
        self, request: Request, dialects: Sequence[Dialect], rules: ReadingRules, slug: str | None = None
    ) -> Response:
        """Returns the ranking or the error, in the body's dialect. `slug` is the model's name in the URL."""
        dialect = dialects[0]
        with self._observer.observe(request, dialect.name) as observation:
            try:
                caller = self._keys.authenticate(request.headers, request.client and request.client.host)
                headers = await self._rate_limits.take("requests", caller, 1)
                timeout_s = request_timeout_s(request.headers, self._limits.request_timeout_s)
                slug_model = None if slug is None else self._router.resolve_slug(slug)
                body = await read_json_body(request, self._limits.max_body_bytes)

                started_s = time.perf_counter()
                if len(dialects) > 1:  # on a shared path, the body's fields identify the dialect
                    dialect = next((one for one in dialects if one.recognises(body.fields)), dialect)
                    observation.dialect = dialect.name
                call = dialect.read(body, rules)
                observation.ignored_fields = body.ignored_fields
                num_passages = sum(map(len, map(_PASSAGES, call.queries)))
                if num_passages > rules.max_passages:
                    raise call.too_many_passages(num_passages, rules.max_passages)
                observation.parse_s = time.perf_counter() - started_s

                model = (call.model is None and slug_model) or self._router.resolve(call.model, call.any_model)
                observation.model_id = model.id
                headers |= await self._rate_limits.take("passages", caller, num_passages)
                deadline = Deadline.after(timeout_s)  # the time for uploading the body does not count
                client_id = request.headers.get("x-request-id")
                if (detour := self._detours.get(model.id)) is None:
                    rankings, more = await self._rank(call, caller, client_id, model.id, deadline)
                else:
                    rankings, more = await detour.rank(call, observation, caller, client_id, deadline, self._rank)
                observation.add_rankings(rankings)
                # In explanations, null is a value.
                reply = call.reply(rankings, model.id).model_dump_json(exclude_none=call.explain_top_n is None)
                response = Response(reply, headers=headers | more, media_type="application/json")
            except ClientDisconnect:
                response = Response(status_code=CLIENT_DISCONNECTED)
            except Exception as error:
                response = error_response(observation.fail(error), dialect)
            observation.status = response.status_code
        response.headers.update(observation.reply_headers)
        return response

    async def _rank(
        self,
        call: RankingCall,
        caller: str,
        client_id: str | None,
        model_id: str,
        deadline: Deadline,
        explain: bool = False,
    ) -> Scored:
        """Ranks each query, and explains the ranking if the call asks for it. Returns headers for the answer too.
        Errors name the fields of the client's body."""
        request_id = uuid.uuid4().hex
        # With the model in the id, a request that a version refused still counts as load of the model that answers.
        load_id = client_id and f"{client_id} {model_id}"

        async def rank(query: RankingQuery) -> Ranked:
            try:
                return await self._ranker.rank(
                    model_id,
                    query.text,
                    query.passages,
                    call.fitting,
                    deadline,
                    request_id=request_id,
                    client_id=load_id,
                    caller=caller,
                    explain=explain,
                )
            except (PairTooLong, RequestTooLarge) as error:
                raise call.with_own_fields(error, query) from None

        if len(call.queries) == 1:  # the usual case, which needs no task
            rankings = [await rank(call.queries[0])]
            if call.explain_top_n is None:
                return rankings, {}
            return await self._explain(call, rankings, model_id, deadline, caller, client_id)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(rank(query)) for query in call.queries]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None  # the first failure cancelled the other queries
        return [task.result() for task in tasks], {}

    async def _explain(
        self,
        call: RankingCall,
        rankings: Sequence[Ranked],
        model_id: str,
        deadline: Deadline,
        caller: str,
        client_id: str | None,
    ) -> Scored:
        """Returns the ranking of the call's only query with its explanations, and headers for the answer. The
        explanations count against the same quota and deadline as the ranking."""
        (query,), (ranked,) = call.queries, rankings
        plan = plan_explanation(query.passages, ranked, call.explain_top_n or 0)
        if not plan.passages:
            return [with_explanations(ranked, plan, None)], {}
        headers = await self._rate_limits.take(
            "passages", caller, len(plan.passages), ", or send a lower explain.top_n"
        )
        # Passages that fit also fit without a sentence, even under `truncate: NONE`.
        fitting = replace(call.fitting, truncate=Truncate.END)
        passes = replace(call, queries=(RankingQuery(query.text, plan.passages),), fitting=fitting, explain_top_n=None)
        try:
            (scored,), _ = await self._rank(passes, caller, client_id, model_id, deadline, plan.aligns)
        except RequestTooLarge as error:
            raise RequestTooLarge(error.num_tokens, error.max_tokens, "explain.top_n", "send a lower value") from None
        if scored.numerics != ranked.numerics:  # a rolling update changed the precision between the two passes
            return await self._rank(call, caller, client_id, model_id, deadline)
        return [with_explanations(ranked, plan, scored)], headers


def request_timeout_s(headers: Mapping[str, str], limit_s: float) -> float:
    """Time limit of a request: the limit that the client sends, if any, but at most `limit_s`.

    Raises `InvalidRequest` if the header is not a positive number.
    """
    value = headers.get(FORWARDED_TIMEOUT_HEADER, headers.get(TIMEOUT_HEADER))
    if value is None:
        return limit_s
    try:
        timeout_s = float(value)
    except ValueError:
        timeout_s = math.nan
    if not 0 < timeout_s < math.inf:
        message = f"{TIMEOUT_HEADER} must be a positive number of seconds; leave it out to use the service's limit"
        raise InvalidRequest([FieldProblem(("header", TIMEOUT_HEADER), message, "invalid_timeout")])
    return min(timeout_s, limit_s)


async def read_json_body(request: Request, max_bytes: int) -> Body:
    """Reads the body. The body may be compressed with gzip, and its Content-Type must be JSON or absent.

    Raises `UnsupportedMediaType`, `InvalidRequest` if the gzip stream is damaged, and `BodyTooLarge` as soon as more
    than `max_bytes` arrive, with or without a Content-Length. A compressed body has the same limit before and after
    decompression.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type and not _JSON.fullmatch(media_type):
        raise UnsupportedMediaType("Content-Type", media_type, "send 'Content-Type: application/json'")
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip"):
        raise UnsupportedMediaType("Content-Encoding", encoding, "send the body uncompressed, or use gzip")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise BodyTooLarge(max_bytes)
    gzip = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS) if "gzip" in encoding else None  # zlib's number for gzip
    num_read, raw = 0, bytearray()
    async for chunk in request.stream():
        num_read += len(chunk)
        raw += chunk if gzip is None else _decompress(gzip, chunk, max_bytes + 1 - len(raw))
        if max(num_read, len(raw)) > max_bytes:
            raise BodyTooLarge(max_bytes)
    if gzip is not None and not gzip.eof:
        raise _damaged_gzip()
    return Body(bytes(raw).removeprefix(b"\xef\xbb\xbf"))  # .NET clients send a byte order mark


def _decompress(gzip: "zlib._Decompress", chunk: bytes, max_bytes: int) -> bytes:
    """The next part of a body, at most `max_bytes`, so that a small body cannot fill the memory. Raises
    `InvalidRequest`."""
    try:
        part = gzip.decompress(chunk, max_bytes)
    except zlib.error:
        raise _damaged_gzip() from None
    if gzip.unused_data:  # a second stream; each one would cost a copy of the rest, and no known client sends one
        raise _damaged_gzip()
    return part


def _damaged_gzip() -> InvalidRequest:
    message = "The body is not one complete gzip stream, although Content-Encoding is gzip"
    return InvalidRequest([FieldProblem(("body",), message, "gzip_invalid")])


def ranking_routes(endpoint: RankingEndpoint, config: RerankConfig) -> APIRouter:
    """NVIDIA's routes, and the routes of the enabled dialects. Raises `ConfigError` if a path prefers a dialect that it
    does not have."""
    routes = APIRouter()
    own_rules = rules_of(config, NIM.paths[0], is_own=True)

    async def rank_at_slug(slug: str, request: Request) -> Response:
        return await endpoint.answer(request, (NIM,), own_rules, slug)

    def add(path: str, rank: Callable[..., Awaitable[Response]], tag: str, **options: Any) -> None:
        routes.add_api_route(path, rank, methods=["POST"], tags=[tag], response_class=Response, **options)

    for path, (operation_id, summary, description) in _NIM_ROUTES.items():
        add(
            path,
            rank_at_slug if "{slug}" in path else _route(endpoint, (NIM,), own_rules),
            "Reranking",
            operation_id=operation_id,
            summary=summary,
            description=description,
            openapi_extra=RANKING_OPERATION,
        )
    for path, spoken in routes_of(config.dialects, config.paths).items():
        add(
            path,
            _route(endpoint, spoken, rules_of(config, path)),
            "Dialects",
            operation_id="rank" + path.replace("/", "_"),
            summary=f"Rank in the dialect of {', '.join(dialect.name for dialect in spoken)}",
            description=_DIALECTS_DESCRIPTION,
            openapi_extra=dialect_operation(spoken),
        )
    return routes


_NIM_ROUTES = {
    "/v1/ranking": (
        "rankPassages",
        "Rank Candidate Passages",
        "Ranks candidate passages by their relevance to a query.",
    ),
    "/v1/retrieval/nvidia/reranking": ("rankPassagesHosted", "Rank at the hosted URL", None),
    "/v1/retrieval/nvidia/{slug}/reranking": (
        "rankPassagesHostedModel",
        "Rank at the hosted URL of a model",
        "The slug is the model's name with `_` for `.`. A model named in the body takes precedence.",
    ),
}
"""Operation id, summary and description for each path."""
_DIALECTS_DESCRIPTION = (
    "If several dialects share the path, the body's fields decide between them. "
    "If the fields do not decide, the first dialect listed applies."
)


class DirectRankings:
    """ASGI middleware that calls the function of a ranking route with a fixed path directly.

    These functions take the request, return a response and answer all errors themselves, so they need none of FastAPI's
    route search, dependencies and error handlers, which take a third of the time of a small request
    (docs/decisions/0023). All other requests go through FastAPI.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._routes = {one.path: one for one in routes if isinstance(one, APIRoute) and "{" not in one.path}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        # Uvicorn and Serve include the prefix of a mounted application in the path.
        route = self._routes.get(scope["path"].removeprefix(scope.get("root_path", ""))) if is_post else None
        if route is None:
            return await self._app(scope, receive, send)
        scope["route"] = route
        response: Response = await route.endpoint(Request(scope, receive, send))
        return await response(scope, receive, send)


def _route(
    endpoint: RankingEndpoint, dialects: Sequence[Dialect], rules: ReadingRules
) -> Callable[[Request], Awaitable[Response]]:
    async def rank(request: Request) -> Response:
        return await endpoint.answer(request, dialects, rules)

    return rank
