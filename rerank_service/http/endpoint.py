"""The one path of every ranking request, whatever API it came by: key, rates, deadline, body, model, ranking, answer.

Knows no dialect by name, and nothing of Ray.
"""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from fastapi import Request, Response

from rerank_service.config import RerankConfig
from rerank_service.errors import PairTooLong, RequestTooLarge
from rerank_service.http.auth import ApiKeys
from rerank_service.http.body import read_json_body
from rerank_service.http.deadline import client_timeout_s
from rerank_service.http.dialects import Body, Call, Dialect, Question
from rerank_service.http.envelope import error_response
from rerank_service.http.rate_limits import RateLimits, caller_of
from rerank_service.messages import Ranked
from rerank_service.routing.merged import merged
from rerank_service.routing.model_router import ModelRouter
from rerank_service.routing.ranker import Ranker
from rerank_service.telemetry.observation import Observation, Observer

__all__ = ["Answering"]


@dataclass(slots=True)
class _Exchange:
    """A request and the dialect it is answered in: the path's first, until its body tells."""

    request: Request
    dialects: Sequence[Dialect]
    slug: str | None
    dialect: Dialect

    def recognise(self, body: Body) -> None:
        """Where several dialects share a path, the one that only such a body can be of."""
        if len(self.dialects) > 1:
            fields = body.fields
            self.dialect = next((one for one in self.dialects if one.recognises(fields)), self.dialect)


class Answering:
    """Answers ranking requests."""

    def __init__(
        self,
        config: RerankConfig,
        keys: ApiKeys,
        rate_limits: RateLimits,
        router: ModelRouter,
        ranker: Ranker,
        observer: Observer,
    ) -> None:
        self._limits = config.limits
        self._rate_limits = rate_limits
        self._keys = keys
        self._router = router
        self._ranker = ranker
        self._observer = observer

    async def answer(self, request: Request, dialects: Sequence[Dialect], slug: str | None = None) -> Response:
        """The answer, or the refusal, in one of `dialects`; `slug` is the model that a hosted URL names."""
        exchange = _Exchange(request, dialects, slug, dialects[0])
        return await self._observer.answer(
            request,
            exchange.dialect.name,
            partial(self._answer, exchange),
            lambda error: error_response(error, exchange.dialect),
        )

    async def _answer(self, exchange: _Exchange, observation: Observation) -> Response:
        request = exchange.request
        self._keys.check(request.headers.get("authorization"))
        caller = self._caller(request)
        headers = await self._rate_limits.take_request(caller)
        timeout_s = client_timeout_s(request.headers)
        slug_model = None if exchange.slug is None else self._router.resolve_slug(exchange.slug)
        raw = await read_json_body(request, self._limits.max_body_bytes)
        call = self._read(exchange, Body(raw), observation)
        model = slug_model if call.model is None and slug_model else self._router.resolve(call.model)
        observation.model_id = model.id
        headers |= await self._rate_limits.take_passages(caller, call.num_passages)
        rank = partial(
            self._ranker.rank,
            model.id,
            fitting=call.fitting,
            timeout_s=timeout_s,
            request_id=uuid.uuid4().hex,
            client_id=request.headers.get("x-request-id"),
            caller=caller,
        )
        rankings = await _rank_all(call, rank)
        observation.ranked = merged(rankings)
        answer = call.reply(rankings, model.id).model_dump_json(exclude_none=True)
        return Response(answer, headers=headers, media_type="application/json")

    def _read(self, exchange: _Exchange, body: Body, observation: Observation) -> Call:
        started = time.perf_counter()
        exchange.recognise(body)
        observation.dialect = exchange.dialect.name
        call = exchange.dialect.read(body, self._limits)
        observation.parse_s = time.perf_counter() - started
        return call

    def _caller(self, request: Request) -> str:
        authorization = request.headers.get("authorization") if self._keys.are_required else None
        return caller_of(authorization, request.client and request.client.host)


async def _rank_all(call: Call, rank: Callable[[str, Sequence[str]], Awaitable[Ranked]]) -> list[Ranked]:
    """Ranks every question of the request; errors name the fields of its body."""

    async def answer(question: Question) -> Ranked:
        try:
            return await rank(question.query, question.passages)
        except (PairTooLong, RequestTooLarge) as error:
            raise call.in_its_words(error, question) from None

    if len(call.questions) == 1:
        return [await answer(call.questions[0])]
    tasks = [asyncio.ensure_future(answer(question)) for question in call.questions]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
