"""NVIDIA's own API: `/v1/ranking` and the hosted URLs of the same. Its bodies are in `nim_schema`."""

from collections.abc import Sequence

from rerank_service.config import LimitsConfig
from rerank_service.errors import RerankError
from rerank_service.http.dialects.call import Body, Call, Dialect, Question, Refusal
from rerank_service.http.dialects.nim_schema import (
    ErrorDetail,
    ErrorEnvelope,
    Ranking,
    RankingRequest,
    RankingResponse,
    Usage,
    WindowOptions,
    parse_ranking_request,
)
from rerank_service.messages import Fitting, PassageWindows, Ranked, Truncate

__all__ = ["NIM"]


def _read(body: Body, limits: LimitsConfig) -> Call:
    request = parse_ranking_request(body.raw, limits)
    passages = [passage.text for passage in request.passages]
    fitting = Fitting(Truncate(request.truncate or Truncate.END), windows=_windows(request.passage_windows, limits))
    return Call(
        request.model,
        (Question(request.query.text, passages),),
        fitting,
        _reply,
        passage_at=lambda index: ("passages", index, "text"),
        query_at=lambda _: ("query", "text"),
        way_out="truncate: END",
    )


def _windows(wanted: WindowOptions | None, limits: LimitsConfig) -> PassageWindows | None:
    if wanted is None:
        return None
    return PassageWindows(
        wanted.max_per_passage or limits.max_windows_per_passage, wanted.tokens, wanted.overlap_tokens
    )


def _reply(rankings: Sequence[Ranked], _: str) -> RankingResponse:
    (ranked,) = rankings
    return RankingResponse(
        rankings=tuple(Ranking(index=index, logit=ranked.logits[index]) for index in ranked.order),
        usage=Usage(prompt_tokens=ranked.num_tokens, total_tokens=ranked.num_tokens),
    )


def _refuse(error: RerankError) -> Refusal:
    detail = tuple(ErrorDetail(loc=loc, msg=text, type=code) for loc, text, code in error.problems)
    return Refusal(error.http_status, ErrorEnvelope(message=error.message, detail=detail, type=error.category))


NIM = Dialect(
    name="nim",
    paths=("/v1/ranking", "/v1/retrieval/nvidia/reranking", "/v1/retrieval/nvidia/{slug}/reranking"),
    request=RankingRequest,
    response=RankingResponse,
    error=ErrorEnvelope,
    read=_read,
    refuse=_refuse,
)
