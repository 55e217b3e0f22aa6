"""The time limit of a request."""

import pytest

from rerank_service.errors import InvalidRequest
from rerank_service.http.endpoint import request_timeout_s


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 30.0),
        ({"x-request-timeout-seconds": "2.5"}, 2.5),
        ({"x-request-timeout-seconds": "900"}, 30.0),
        ({"x-rerank-timeout-seconds": "3"}, 3.0),
        ({"x-rerank-timeout-seconds": "3", "x-request-timeout-seconds": "20"}, 3.0),
    ],
)
def test_a_client_can_shorten_the_services_limit(headers: dict[str, str], seconds: float) -> None:
    assert request_timeout_s(headers, 30.0) == seconds


@pytest.mark.parametrize("value", ["", "soon", "0", "-1", "nan", "inf"])
def test_a_limit_must_be_a_positive_number(value: str) -> None:
    with pytest.raises(InvalidRequest, match="x-request-timeout-seconds must be a positive number") as caught:
        request_timeout_s({"x-request-timeout-seconds": value}, 30.0)
    assert caught.value.problems[0].loc == ("header", "x-request-timeout-seconds")
