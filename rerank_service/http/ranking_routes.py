"""Which paths rank, and in which dialects. Knows no body."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from rerank_service.config import DialectName
from rerank_service.http.dialects import NIM, Dialect, routes_of
from rerank_service.http.endpoint import Answering
from rerank_service.http.openapi import RANKING_OPERATION, dialect_operation

__all__ = ["ranking_routes"]


def ranking_routes(answering: Answering, dialects: Sequence[DialectName]) -> APIRouter:
    """NVIDIA's routes, and those of the dialects that are spoken."""
    routes = APIRouter()
    _add_nim(routes, answering)
    for path, spoken in routes_of(dialects).items():
        _add_dialects(routes, answering, path, spoken)
    return routes


def _add_nim(routes: APIRouter, answering: Answering) -> None:
    async def rank(request: Request) -> Response:
        return await answering.answer(request, (NIM,))

    async def rank_at_slug(slug: str, request: Request) -> Response:
        return await answering.answer(request, (NIM,), slug)

    options: dict[str, Any] = {
        "methods": ["POST"],
        "tags": ["Reranking"],
        "openapi_extra": RANKING_OPERATION,
        "response_class": Response,
    }
    routes.add_api_route(
        "/v1/ranking",
        rank,
        operation_id="rankPassages",
        summary="Rank Candidate Passages",
        description="Score candidate passages against a query using a NeMo Retriever reranker.",
        **options,
    )
    routes.add_api_route(
        "/v1/retrieval/nvidia/reranking",
        rank,
        operation_id="rankPassagesHosted",
        summary="Rank, at the hosted URL",
        **options,
    )
    routes.add_api_route(
        "/v1/retrieval/nvidia/{slug}/reranking",
        rank_at_slug,
        operation_id="rankPassagesHostedModel",
        summary="Rank, at the hosted URL of a model",
        description="The slug is the model's name with `_` for `.`. A model named in the body wins.",
        **options,
    )


def _add_dialects(routes: APIRouter, answering: Answering, path: str, spoken: tuple[Dialect, ...]) -> None:
    async def rank(request: Request) -> Response:
        return await answering.answer(request, spoken)

    names = ", ".join(dialect.name for dialect in spoken)
    routes.add_api_route(
        path,
        rank,
        methods=["POST"],
        tags=["Dialects"],
        operation_id="rank" + path.replace("/", "_"),
        summary=f"Rank, in the dialect of {names}",
        description="Of several dialects, the one whose own fields the body has answers, else the first named.",
        openapi_extra=dialect_operation(spoken),
        response_class=Response,
    )
