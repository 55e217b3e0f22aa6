"""The errors of the client.

    RerankClientError
    ├── ConnectionFailed              two attempts did not reach the service or lost the connection
    └── ApiError                      the service answered with an error
        ├── InvalidRequestError       400, 413, 415, 422: the request must be changed
        ├── AuthenticationError       401, 403
        ├── ModelNotFoundError        404 for an unknown model; the message lists the served models
        ├── RateLimitedError          429 with no retries or no time left
        ├── ServiceUnavailableError   503 with no retries or no time left
        └── DeadlineExceededError     504, or the client's own `timeout_s` has passed

A message is the text of the service's error. It never contains a query or a passage.
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
    """One problem with a request: the path of the field, a message, and a code for programs."""

    loc: tuple[str | int, ...]
    message: str
    code: str


class RerankClientError(Exception):
    """Base class of the client's errors."""


class ConnectionFailed(RerankClientError):
    """The service was not reached, or it closed the connection before it answered."""

    def __init__(self, base_url: str, cause: str) -> None:
        super().__init__(base_url, cause)
        self.base_url = base_url
        self.cause = cause

    def __str__(self) -> str:
        return f"cannot reach {self.base_url} ({self.cause})"


class ApiError(RerankClientError):
    """The service answered with an error, or with something other than a ranking."""

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
        """HTTP status; None if there was no answer in time."""
        self.message = message
        self.details = details
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message if self.status is None else f"{self.status}: {self.message}"


class InvalidRequestError(ApiError):
    """The request is malformed or exceeds a limit; `details` name the fields."""


class AuthenticationError(ApiError):
    """The service requires an API key, and the key is missing or invalid."""


class ModelNotFoundError(ApiError):
    """The service has no model with the requested name."""


class RateLimitedError(ApiError):
    """The key's per-minute quota is exhausted."""


class ServiceUnavailableError(ApiError):
    """The service is at capacity, or lost the replica that was working on the request."""


class DeadlineExceededError(ApiError):
    """The deadline passed before the service answered."""
