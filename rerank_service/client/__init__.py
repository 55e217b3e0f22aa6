"""The Python client: `Client` and `AsyncClient` over one set of requests, answers, errors and retries.

It speaks HTTP and knows nothing of the service's own modules (but for `fitting`, a few lines of plain Python); what it
needs are httpx and tenacity.
"""

from rerank_service.client.asynchronous import AsyncClient
from rerank_service.client.blocking import Client
from rerank_service.client.errors import (
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
from rerank_service.client.ranking import RankedPassage, Ranking, Usage
from rerank_service.fitting import PassageWindows

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
