"""Every error survives the way between two processes, and its envelope has every field."""

import inspect
import pickle

import pytest

from rerank_service import errors
from rerank_service.errors import FieldProblem, RerankError

EXAMPLES = [
    RerankError(),
    errors.InvalidRequest([FieldProblem(("body", "query"), "query is required", "missing")]),
    errors.PairTooLong(3, 9000, 8192),
    errors.InvalidApiKey(True),
    errors.InvalidApiKey(False),
    errors.UnknownModel("x", ["a", "b"]),
    errors.BodyTooLarge(10),
    errors.UnsupportedMediaType("Content-Type", "text/plain", "send JSON"),
    errors.QueueFull(5, 4),
    errors.ReplicaUnavailable("m"),
    errors.RequestTimedOut(60.0),
    errors.NonFiniteLogit(2),
    errors.EngineFailed("RuntimeError"),
]


def test_there_is_an_example_of_every_error() -> None:
    classes = {item for item in vars(errors).values() if inspect.isclass(item) and issubclass(item, RerankError)}
    assert {type(example) for example in EXAMPLES} == classes


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_pickling_keeps_everything(error: RerankError) -> None:
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (type(copy), copy.args, copy.message, copy.problems) == (
        type(error),
        error.args,
        error.message,
        error.problems,
    )
    assert str(copy) == error.message


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_every_error_says_something(error: RerankError) -> None:
    assert error.message
    assert 400 <= error.http_status < 600
    assert error.problems
    for problem in error.problems:
        assert problem.message
        assert problem.code
    assert (error.retry_after_s is not None) == (error.http_status == 503)


def test_the_phrase_clients_look_for() -> None:
    assert str(errors.PairTooLong(0, 9000, 8192)).startswith(
        "Input length 9000 exceeds maximum allowed token size 8192"
    )
