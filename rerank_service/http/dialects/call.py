"""Types shared by all dialects: a body, the ranking call read from a body, and the dialect itself."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic_core import from_json

from rerank_service.config import LimitsConfig, PathConfig, RankingPath, RerankConfig
from rerank_service.errors import (
    FieldProblem,
    InvalidRequest,
    Loc,
    PairTooLong,
    QueryTooLong,
    RequestTooLarge,
    RerankError,
)
from rerank_service.messages import Fitting, Ranked, Truncate

__all__ = [
    "EXAMPLE_QUERY",
    "EXAMPLE_RERANK",
    "EXAMPLE_TEXTS",
    "Body",
    "Dialect",
    "Fields",
    "RankingCall",
    "RankingQuery",
    "ReadingRules",
    "Refusal",
    "probability",
    "rules_of",
    "top",
]

Fields = Mapping[str, Any]
"""The fields at the top level of a body. None is null."""


@dataclass
class Body:
    """A request's body."""

    raw: bytes
    ignored_fields: tuple[str, ...] = ()
    """Names of fields that the API does not have, such as `top_n` or `query.lang`. The dialect sets them when it reads
    the body."""

    @cached_property
    def fields(self) -> Fields:
        """The body without its null fields, parsed on first use: in every API, null means absent. Raises
        `InvalidRequest` if the body is not a JSON object."""
        try:
            fields = from_json(self.raw, cache_strings="keys")
        except ValueError as error:
            raise _invalid(f"The body is not valid JSON: {error}", "json_invalid") from None
        if not isinstance(fields, dict):
            raise _invalid("The body must be a JSON object", "model_type")
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True, slots=True)
class ReadingRules:
    """The configuration that applies to the bodies of a path."""

    limits: LimitsConfig
    max_passages: int
    """Maximum number of passages in a request."""
    truncate: Truncate | None
    """What happens to long pairs if the request does not say it. Null: what the API specifies."""
    returns_strings: bool
    """Whether returned documents are strings instead of objects, in Jina's and Cohere's APIs."""
    needs_model: bool
    """Whether APIs that require `model` refuse a request without it: the configuration names no default model."""


def rules_of(config: RerankConfig, path: str, *, is_own: bool = False) -> ReadingRules:
    """The rules of a path. NVIDIA's own paths (`is_own`) share the settings of `/v1/ranking`."""
    exception = config.paths.get(RankingPath.RANKING if is_own else RankingPath(path), PathConfig())
    truncate = exception.truncate or config.limits.truncate
    return ReadingRules(
        config.limits,
        config.limits.max_passages if is_own else config.max_documents,
        None if truncate is None else Truncate(truncate),
        exception.documents == "string",
        config.service.default_model is None,
    )


class RankingQuery(NamedTuple):
    """A query and the passages to rank for it."""

    text: str
    passages: Sequence[str]
    indices: Sequence[int] | None = None
    """Each passage's index in the request. Null: `passages` are all passages of the request, in order."""


@dataclass(frozen=True, slots=True)
class RankingCall:
    """A request, independent of the API in which it was sent."""

    model: str | None
    """Null: the default model."""
    queries: tuple[RankingQuery, ...]
    """The queries. Most requests have one query; some dialects pair several queries with passages."""
    fitting: Fitting
    """How passages longer than the model's window are handled."""
    reply: Callable[[Sequence[Ranked], str], BaseModel]
    """Builds the answer from the rankings of the queries and the model's id."""
    passage_at: Callable[[int], Loc]
    """Path of a passage in the body, by the passage's index."""
    query_at: Callable[[int], Loc] = lambda _: ("query",)
    """Path of a passage's query in the body, by the passage's index."""
    way_out: str = ""
    """Field and value that make the service truncate long pairs instead of refusing them. Empty: long pairs are always
    truncated."""
    more_windows: str = ""
    """Field that permits more windows per passage. Empty: the request already has the maximum."""
    any_model: bool = False
    """Whether the default model answers if the service has no model with this name."""
    is_ranking: bool = True
    """Whether the answer is a ranking. False: scores in the request's order, each on its own."""
    explain_top_n: int | None = None
    """How many of the best passages to explain. Null: none. Only a call with one query may have explanations."""

    def too_many_passages(self, count: int, limit: int) -> InvalidRequest:
        """The error for a request with more passages than `limit`."""
        field = str(self.passage_at(0)[0])
        message = f"{field} has {count} entries; at most {limit} are allowed, so split the request"
        return InvalidRequest([FieldProblem(("body", field), message, "too_many_passages")])

    def with_own_fields(self, error: RerankError, query: RankingQuery) -> RerankError:
        """Returns the error with the field names of this request's body in place of NVIDIA's."""
        match error:
            case PairTooLong():
                index = error.index if query.indices is None else query.indices[error.index]
                sizes = index, error.num_tokens, error.max_tokens
                if isinstance(error, QueryTooLong):
                    return QueryTooLong(*sizes, self.query_at(index))
                remedy = self.way_out
                if error.num_windows > 1 and self.more_windows:
                    remedy = f"a larger {self.more_windows}, or {remedy}"
                return PairTooLong(*sizes, error.num_windows, self.passage_at(index), self.query_at(index), remedy)
            case RequestTooLarge():
                return RequestTooLarge(error.num_tokens, error.max_tokens, str(self.passage_at(0)[0]))
        return error


class Refusal(NamedTuple):
    """An error in the form of a dialect."""

    status: int
    body: BaseModel


@dataclass(frozen=True, slots=True)
class Dialect:
    """An API, and the paths on which it is served."""

    name: str
    """Label in metrics, logs and traces."""
    paths: tuple[str, ...]
    request: type[BaseModel]
    response: type[BaseModel]
    error: type[BaseModel]
    read: Callable[[Body, ReadingRules], RankingCall]
    """Parses and validates a body. Raises `InvalidRequest`."""
    refuse: Callable[[RerankError], Refusal]
    example: Mapping[str, Any]
    """A body for the API's documentation, without `model`. On a shared path, its fields select this dialect, unless
    this dialect is the first of the path."""
    recognises: Callable[[Fields], bool] = lambda _: False
    """Whether a body has fields that no other dialect on a shared path has."""


EXAMPLE_QUERY = "What is the capital of France?"
EXAMPLE_TEXTS = ["Paris is the capital of France. It lies on the Seine.", "Berlin is the capital of Germany."]
EXAMPLE_RERANK: dict[str, Any] = {"query": EXAMPLE_QUERY, "documents": EXAMPLE_TEXTS}
"""Example for the dialects with `documents`; each adds its own fields."""


def probability(logit: float) -> float:
    """The logistic function, in a form in which `exp` cannot overflow."""
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    grown = math.exp(logit)
    return grown / (1 + grown)


def top(ranked: Ranked, limit: int | None) -> list[tuple[int, float]]:
    """Index and logit of the `limit` best passages, or of all passages if `limit` is null."""
    return [(index, ranked.logits[index]) for index in ranked.order[:limit]]


def _invalid(message: str, code: str) -> InvalidRequest:
    return InvalidRequest([FieldProblem(("body",), message, code)])
