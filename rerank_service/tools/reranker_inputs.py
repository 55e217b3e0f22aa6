"""Checks the arguments of `Reranker`'s methods, and names them in the errors that engines raise.

Messages never contain a query or a passage.
"""

import operator
import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, TypeAlias

from rerank_service.client import PassageWindows as ClientWindows
from rerank_service.config import ModelConfig
from rerank_service.engine.score_all import QueryPassages
from rerank_service.errors import Loc, NonFiniteLogit, PairTooLong, QueryTooLong, dotted
from rerank_service.messages import MIN_WINDOW_TOKENS, Fitting, PassageWindows, Truncate

__all__ = [
    "Places",
    "check_model",
    "check_top_n",
    "checked_fitting",
    "checked_pairs",
    "checked_questions",
    "placed",
]

Places: TypeAlias = Callable[[int], tuple[Loc, Loc]]
"""Returns the places of a pair's query and passage in the arguments. Pairs are numbered across all queries."""


def check_model(model: Any) -> None:
    """Raises `TypeError` unless `model` is a name, a folder or complete settings."""
    if not isinstance(model, str | os.PathLike | ModelConfig):
        raise TypeError(f"model is of type {type(model).__name__}; pass a name, a folder or a ModelConfig")


def check_top_n(top_n: int | None) -> None:
    """Raises `TypeError` or `ValueError` unless `top_n` is null or a number of passages."""
    if top_n is None:
        return
    _integer(top_n, "top_n")
    if top_n < 1:
        raise ValueError("top_n must be at least 1; leave it out to return all passages")


def checked_fitting(truncate: str, windows: ClientWindows | None) -> Fitting:
    """Converts the options to the engine's form. Raises `TypeError` or `ValueError` if one is invalid."""
    if truncate not in (*Truncate,):
        raise ValueError(f"truncate is {truncate!r}; it must be 'END' or 'NONE'")
    if windows is None:
        return Fitting(Truncate(truncate))
    if not isinstance(windows, ClientWindows):
        raise TypeError(
            f"windows is of type {type(windows).__name__}; pass rerank_service.client.PassageWindows, such as "
            "PassageWindows(max_per_passage=8)"
        )
    least = {"max_per_passage": 1, "tokens": MIN_WINDOW_TOKENS, "overlap_tokens": 0}
    for name, smallest in least.items():
        value = getattr(windows, name)
        if value is None and name == "tokens":
            continue
        _integer(value, f"windows.{name}")
        if value < smallest:
            raise ValueError(f"windows.{name} is {value}; it must be at least {smallest}")
    own = PassageWindows(windows.max_per_passage, windows.tokens, windows.overlap_tokens)
    return Fitting(Truncate(truncate), windows=own)


def checked_questions(
    query: str | Sequence[str], passages: Sequence[str] | Sequence[Sequence[str]]
) -> tuple[list[QueryPassages], Places]:
    """The queries, each with its passages. Raises `TypeError` or `ValueError`."""
    if isinstance(query, str):
        question: QueryPassages = (_not_blank(query, "query"), _texts(passages, "passages"))
        return [question], lambda index: (("query",), ("passages", index))
    queries = [_not_blank(text, f"query[{number}]") for number, text in enumerate(_texts(query, "query"))]
    listed = _listed(passages, "passages")
    if all(isinstance(one, str) for one in listed):
        shared = _texts(listed, "passages")
        return [(text, shared) for text in queries], lambda index: (
            ("query", index // len(shared)),
            ("passages", index % len(shared)),
        )
    if len(listed) != len(queries):
        raise ValueError(
            f"query has length {len(queries)}, but passages has {len(listed)} lists; give one list of passages for all "
            "queries, or one list for each query"
        )
    own = [_texts(texts, f"passages[{number}]") for number, texts in enumerate(listed)]
    ends = list(accumulate(map(len, own)))

    def places(index: int) -> tuple[Loc, Loc]:
        number = bisect_right(ends, index)
        return ("query", number), ("passages", number, index - ends[number] + len(own[number]))

    return list(zip(queries, own, strict=True)), places


def checked_pairs(pairs: Sequence[Sequence[str]] | Sequence[str]) -> tuple[list[tuple[str, str]], bool]:
    """The pairs, and whether `pairs` is a single pair. Raises `TypeError` or `ValueError`."""
    listed = _listed(pairs, "pairs")
    is_single = bool(listed) and isinstance(listed[0], str)
    checked = []
    for number, pair in enumerate([listed] if is_single else listed):
        name = "pairs" if is_single else f"pairs[{number}]"
        texts = _texts(pair, name)
        if len(texts) != 2:
            raise ValueError(f"{name} has {len(texts)} texts; a pair is a query and a passage")
        checked.append((_not_blank(texts[0], f"{name}[0]"), texts[1]))
    return checked, is_single


def placed(error: PairTooLong | NonFiniteLogit, places: Places) -> PairTooLong | NonFiniteLogit:
    """The same error, with a message that names the arguments."""
    if isinstance(error, NonFiniteLogit):
        query_at, passage_at = places(error.first)
        error.message = (
            f"The model's logit of {dotted(passage_at)} for {dotted(query_at)} is not a finite number; "
            "load the model with dtype='float32'"
        )
        return error
    query_at, passage_at = places(error.index)
    if isinstance(error, QueryTooLong):
        return QueryTooLong(error.index, error.num_tokens, error.max_tokens, query_at)
    remedy = "truncate='END'" if error.num_windows == 1 else "a larger windows.max_per_passage, or truncate='END'"
    return PairTooLong(error.index, error.num_tokens, error.max_tokens, error.num_windows, passage_at, query_at, remedy)


def _integer(value: Any, name: str) -> None:
    try:
        operator.index(value)  # also accepts the integers of numpy
    except TypeError:
        raise TypeError(f"{name} is of type {type(value).__name__}; pass an integer") from None


def _listed(sequence: Any, name: str) -> list[Any]:
    if isinstance(sequence, str):
        raise TypeError(f"{name} is a single string; pass a sequence")
    try:
        return list(sequence)
    except TypeError:
        raise TypeError(f"{name} is of type {type(sequence).__name__}; pass a sequence") from None


def _texts(sequence: Any, name: str) -> list[str]:
    texts = []
    for index, text in enumerate(_listed(sequence, name)):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{index}] is of type {type(text).__name__}; pass a string")
        texts.append(text)
    return texts


def _not_blank(query: str, name: str) -> str:
    if not query.strip():
        raise ValueError(f"{name} is blank; give some text")
    return query
