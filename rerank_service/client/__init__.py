"""The Python client of the rerank service: `Client` and, for asyncio, `AsyncClient`.

The client needs httpx and tenacity, but none of the service's modules. The same files also form a separate
distribution, `rerank-service-client`, imported as `rerank_service_client`; imports in this package are therefore
relative.
"""

from .asynchronous import AsyncClient
from .base import __version__
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
from .explanation import Explanation, SentenceContribution, Span, TokenMatch
from .ranking import PassageWindows, RankedPassage, Ranking, Usage

__all__ = [
    "ApiError",
    "AsyncClient",
    "AuthenticationError",
    "Client",
    "ConnectionFailed",
    "DeadlineExceededError",
    "ErrorDetail",
    "Explanation",
    "InvalidRequestError",
    "ModelNotFoundError",
    "PassageWindows",
    "RankedPassage",
    "Ranking",
    "RateLimitedError",
    "RerankClientError",
    "SentenceContribution",
    "ServiceUnavailableError",
    "Span",
    "TokenMatch",
    "Usage",
    "__version__",
]
