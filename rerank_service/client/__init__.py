"""The Python client: `Client` and `AsyncClient` over one set of requests, answers, errors and retries.

It speaks HTTP and knows nothing of the service's own modules (but for `fitting`, a few lines of plain Python); what it
needs are httpx and tenacity.
"""

from .asynchronous import AsyncClient
from .blocking import Client
from .errors import (
    ApiError,
    AuthenticationError,
    ConnectionFailed,
    DeadlineExceededError,
    ErrorDetail,
    InvalidRequestError,
    ModelNotFoundError,
    RateLimitedError,
    RerankClientError,
    ServiceUnavailableError,
)
from .ranking import PassageWindows, RankedPassage, Ranking, Usage

__all__ = [
    "ApiError",
    "AsyncClient",
    "AuthenticationError",
    "Client",
    "ConnectionFailed",
    "DeadlineExceededError",
    "ErrorDetail",
    "InvalidRequestError",
    "ModelNotFoundError",
    "PassageWindows",
    "RankedPassage",
    "Ranking",
    "RateLimitedError",
    "RerankClientError",
    "ServiceUnavailableError",
    "Usage",
]
