"""What every dialect is made of, and what it hands to the core. Pure; knows no dialect."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic_core import from_json

from rerank_service.config import LimitsConfig
from rerank_service.errors import FieldProblem, InvalidRequest, Loc, PairTooLong, RequestTooLarge, RerankError
from rerank_service.messages import Fitting, Ranked

__all__ = ["Body", "Call", "Dialect", "Fields", "Question", "Refusal", "probability", "top"]

Fields = Mapping[str, Any]
"""A body's top level."""


class Body:
    """A request's body, parsed when somebody asks."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw.removeprefix(b"\xef\xbb\xbf")  # .NET clients send a byte order mark

    @cached_property
    def fields(self) -> Fields:
        """Raises `InvalidRequest` unless the body is a JSON object."""
        try:
            fields = from_json(self.raw, cache_strings="keys")
        except ValueError as error:
            raise _invalid(f"The body is not valid JSON: {error}", "json_invalid") from None
        if not isinstance(fields, dict):
            raise _invalid("The body must be a JSON object", "model_type")
        return fields


class Question(NamedTuple):
    """A query and what is ranked for it."""

    query: str
    passages: Sequence[str]
    indices: Sequence[int] | None = None
    """Where the request has these passages; null: in the same places."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request, whatever API it came by."""

    model: str | None
    """Null: the default model."""
    questions: tuple[Question, ...]
    """Nearly always one."""
    fitting: Fitting
    """For passages beyond the model's window."""
    reply: Callable[[Sequence[Ranked], str], BaseModel]
    """From the questions' rankings and the model's id to the answer."""
    passage_at: Callable[[int], Loc]
    """The place in the body of a passage, by its index in the request."""
    query_at: Callable[[int], Loc] = lambda _: ("query",)
    """The place in the body of that passage's query."""
    way_out: str = ""
    """What a client sends to have a long pair cut. Empty: pairs are always cut."""

    @property
    def num_passages(self) -> int:
        """Of all questions."""
        return sum(len(question.passages) for question in self.questions)

    def in_its_words(self, error: RerankError, question: Question) -> RerankError:
        """The error with the fields of this request's body in place of NVIDIA's."""
        match error:
            case PairTooLong():
                index = error.index if question.indices is None else question.indices[error.index]
                places = self.passage_at(index), self.query_at(index)
                return PairTooLong(index, error.num_tokens, error.max_tokens, *places, self.way_out)
            case RequestTooLarge():
                return RequestTooLarge(error.num_tokens, error.max_tokens, str(self.passage_at(0)[0]))
        return error


class Refusal(NamedTuple):
    """An error in an API's own form."""

    status: int
    body: BaseModel


@dataclass(frozen=True, slots=True)
class Dialect:
    """An API on the routes where it is spoken."""

    name: str
    """Label of metrics, logs and traces."""
    paths: tuple[str, ...]
    request: type[BaseModel]
    response: type[BaseModel]
    error: type[BaseModel]
    read: Callable[[Body, LimitsConfig], Call]
    """Raises `InvalidRequest`."""
    refuse: Callable[[RerankError], Refusal]
    recognises: Callable[[Fields], bool] = lambda _: False
    """Whether a body can only be of this dialect, among those that share a path."""


def probability(logit: float) -> float:
    """The logistic function, which does not overflow."""
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    grown = math.exp(logit)
    return grown / (1 + grown)


def top(ranked: Ranked, limit: int | None) -> list[tuple[int, float]]:
    """Index and logit of the best passages; all of them without a limit."""
    return [(index, ranked.logits[index]) for index in ranked.order[:limit]]


def _invalid(message: str, code: str) -> InvalidRequest:
    return InvalidRequest([FieldProblem(("body",), message, code)])
