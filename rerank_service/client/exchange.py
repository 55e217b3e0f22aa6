"""Turns a call of `rank` into request bodies, and the responses into one ranking. The module sends nothing.

A call with more passages than a request allows becomes several requests. The logit of a pair does not depend on the
other pairs in the request, so the combined answers equal the ranking of one large request. A cascade is the exception:
which passages its stages keep depends on the request, so a call for a cascade must be one request.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote

from .errors import (
    ApiError,
    AuthenticationError,
    DeadlineExceededError,
    ErrorDetail,
    InvalidRequestError,
    ModelNotFoundError,
    RateLimitedError,
    ServiceUnavailableError,
)
from .explanation import Explanation, read_explanations
from .ranking import PassageWindows, RankedPassage, Ranking, Usage

__all__ = ["Options", "Part", "PartAnswer", "Truncate", "combine", "cut", "read_answer"]

Truncate = Literal["NONE", "END"]

_ERROR_OF_STATUS: dict[int, type[ApiError]] = {
    400: InvalidRequestError,
    401: AuthenticationError,
    403: AuthenticationError,
    413: InvalidRequestError,
    415: InvalidRequestError,
    422: InvalidRequestError,
    429: RateLimitedError,
    503: ServiceUnavailableError,
    504: DeadlineExceededError,
}


class Options(NamedTuple):
    """Options shared by all parts of a call."""

    model: str | None
    """None: the service's default model."""
    truncate: Truncate
    windows: PassageWindows | None
    explain: int | None = None
    """How many of the best passages to explain. None: none."""

    def fields(self) -> dict[str, Any]:
        """The fields of a request's body."""
        fields: dict[str, Any] = {} if self.model is None else {"model": self.model}
        fields["truncate"] = self.truncate
        if self.windows is not None:
            fields["passage_windows"] = asdict(self.windows)
        if self.explain is not None:
            fields["explain"] = {"top_n": self.explain}
        return fields


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive passages sent in one request."""

    first_index: int
    num_passages: int
    body: bytes


@dataclass(frozen=True, slots=True)
class PartAnswer:
    """The service's answer for one part."""

    logits: list[float]
    """One logit per passage, in the order of the part's passages."""
    usage: Usage
    timings_ms: dict[str, float]
    num_truncated: int | None
    num_unscored: int | None
    explanations: Mapping[int, Explanation]
    """Explanations by the index of the passage in the part."""
    stages: Mapping[str, int]
    """Passages that each stage of a cascade has scored; empty for other models."""


def cut(query: str, passages: Sequence[str], options: Options, max_passages: int) -> list[Part]:
    """Splits a call into parts of at most `max_passages` passages. Without passages, there are no parts."""
    if isinstance(passages, str):
        raise TypeError("passages is a single string; pass a sequence of strings")
    common = options.fields()
    parts = []
    for first_index in range(0, len(passages), max_passages):
        texts = [{"text": text} for text in passages[first_index : first_index + max_passages]]
        body = {"query": {"text": query}, "passages": texts, **common}
        encoded = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        parts.append(Part(first_index, len(texts), encoded))
    return parts


def read_answer(part: Part, status: int, headers: Mapping[str, str], content: bytes, request_id: str) -> PartAnswer:
    """Reads a response. Raises `ApiError` for an error status, or if the body does not rank this part's passages."""
    body = _parsed(content)
    if status != 200:
        raise _error(part, status, headers, body, request_id)
    try:
        logits = {int(entry["index"]): float(entry["logit"]) for entry in body["rankings"]}
        usage = Usage(int(body["usage"]["prompt_tokens"]), int(body["usage"]["total_tokens"]))
        explanations = read_explanations(body.get("explanations", ()))
    except (KeyError, TypeError, ValueError):
        message = "the answer is not a ranking; check that base_url is the address of a rerank service"
        raise ApiError(status, message, request_id=request_id) from None
    is_complete = sorted(logits) == list(range(part.num_passages)) and len(body["rankings"]) == part.num_passages
    if not is_complete or not all(map(math.isfinite, logits.values())):
        message = f"the answer does not have one finite logit for each of the {part.num_passages} passages"
        raise ApiError(status, message, request_id=request_id)
    return PartAnswer(
        [logits[index] for index in range(part.num_passages)],
        usage,
        _timings_ms(headers.get("server-timing", "")),
        _count(headers.get("x-rerank-truncated-passages")),
        _count(headers.get("x-rerank-unscored-passages")),
        explanations,
        _stages(headers.get("x-rerank-stages", "")),
    )


def combine(passages: Sequence[str], answers: Iterable[PartAnswer], request_id: str, top_n: int | None) -> Ranking:
    """Combines the answers into one ranking of the `top_n` best passages. `answers` are in the order of the parts. If
    `top_n` is None, the ranking has all passages."""
    answers = list(answers)
    logits = [logit for answer in answers for logit in answer.logits]
    explanations = answers[0].explanations if len(answers) == 1 else {}  # a call in several parts has none
    order = sorted(range(len(logits)), key=lambda index: -logits[index])[:top_n]  # stable: equal logits by index
    return Ranking(
        tuple(RankedPassage(index, passages[index], logits[index], explanations.get(index)) for index in order),
        Usage(
            sum(answer.usage.prompt_tokens for answer in answers), sum(answer.usage.total_tokens for answer in answers)
        ),
        request_id,
        max((answer.timings_ms for answer in answers), key=lambda timings: timings.get("total", 0.0), default={}),
        _total([answer.num_truncated for answer in answers]),
        _total([answer.num_unscored for answer in answers]),
        answers[0].stages if len(answers) == 1 else {},  # a cascade ranks one part only
    )


def _count(header: str | None) -> int | None:
    return int(header) if header is not None and header.isdecimal() else None


def _total(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _stages(header: str) -> dict[str, int]:
    """Reads `x-rerank-stages`, like `small=512, large=0;skipped=queue_full`."""
    entries = (entry.partition(";")[0].rpartition("=") for entry in header.split(","))
    return {unquote(name.strip()): int(count) for name, _, count in entries if count.isdecimal()}


def _error(part: Part, status: int, headers: Mapping[str, str], body: Any, request_id: str) -> ApiError:
    envelope = body if isinstance(body, dict) else {}
    details = _details(envelope.get("detail"), part)
    error_class = _ERROR_OF_STATUS.get(status, ApiError)
    if status == 404 and any(detail.code == "model_not_found" for detail in details):
        error_class = ModelNotFoundError
    message = str(envelope.get("message") or "the service gave no reason")
    if part.first_index and "passages[" in message:
        message += f" (the index counts from passages[{part.first_index}], the first passage of this request)"
    return error_class(status, message, details, request_id, _retry_after_s(headers.get("retry-after")))


def _details(problems: Any, part: Part) -> tuple[ErrorDetail, ...]:
    """Reads the problems in an error body. Indices count the caller's passages, not the passages of the part."""
    if not isinstance(problems, list):
        return ()
    details = []
    for problem in problems:
        if isinstance(problem, dict):
            loc = problem["loc"] if isinstance(problem.get("loc"), list) else []
            if loc[:2] == ["body", "passages"] and len(loc) > 2 and isinstance(loc[2], int):
                loc[2] += part.first_index
            details.append(ErrorDetail(tuple(loc), str(problem.get("msg", "")), str(problem.get("type", ""))))
    return tuple(details)


def _retry_after_s(value: str | None) -> float | None:
    """Reads `Retry-After`, which is a number of seconds or, from some proxies, a date."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (date.astimezone(UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _timings_ms(header: str) -> dict[str, float]:
    """Reads a `Server-Timing` header like `parse;dur=0.1, total;dur=12.5`."""
    timings = {}
    for entry in header.split(","):
        name, *parameters = (word.strip() for word in entry.split(";"))
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key == "dur" and value.replace(".", "", 1).isdecimal():
                timings[name] = float(value)
    return timings


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:  # for example an HTML page from a proxy
        return None
