"""Every way in which a call of the client fails. Knows no HTTP beyond a number.

    RerankClientError
    ├── ConnectionFailed              the service was not reached, or broke the connection off, twice
    └── ApiError                      the service answered with an error
        ├── InvalidRequestError       400, 413, 415, 422: the request has to change
        ├── AuthenticationError       401, 403
        ├── ModelNotFoundError        404 for the model; the message lists those that are served
        ├── RateLimitedError          429, and no retry was left or in time
        ├── ServiceUnavailableError   503, and no retry was left or in time
        └── DeadlineExceededError     504, or the client's own `timeout_s` is over

A message is what the service said. It never holds a query or a passage.
"""

from typing import NamedTuple

__all__ = [
    "ApiError",
    "AuthenticationError",
    "ConnectionFailed",
    "DeadlineExceededError",
    "ErrorDetail",
    "InvalidRequestError",
    "ModelNotFoundError",
    "RateLimitedError",
    "RerankClientError",
    "ServiceUnavailableError",
]


class ErrorDetail(NamedTuple):
    """One thing that is wrong with a request: where it is, in words, and a code for programs."""

    loc: tuple[str | int, ...]
    message: str
    code: str


class RerankClientError(Exception):
    """A ranking did not come about."""


class ConnectionFailed(RerankClientError):
    """The service was not reached, or it broke the connection off."""

    def __init__(self, base_url: str, cause: str) -> None:
        super().__init__(base_url, cause)
        self.base_url = base_url
        self.cause = cause

    def __str__(self) -> str:
        return f"cannot reach {self.base_url} ({self.cause})"


class ApiError(RerankClientError):
    """The service answered, but not with a ranking."""

    def __init__(
        self,
        status: int | None,
        message: str,
        details: tuple[ErrorDetail, ...] = (),
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(status, message, details, request_id, retry_after_s)
        self.status = status
        """Null if there was no answer in time."""
        self.message = message
        self.details = details
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message if self.status is None else f"{self.status}: {self.message}"


class InvalidRequestError(ApiError):
    """The request has not the API's form, or is over a limit; `details` name the fields."""


class AuthenticationError(ApiError):
    """The service asks for a key, and this one is missing or wrong."""


class ModelNotFoundError(ApiError):
    """No model of that name is served."""


class RateLimitedError(ApiError):
    """The key has used up what a minute allows."""


class ServiceUnavailableError(ApiError):
    """The service has no room, or lost who worked on the request."""


class DeadlineExceededError(ApiError):
    """There was no answer in time."""
