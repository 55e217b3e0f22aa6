"""Code that both clients share: settings, the requests of a call, and failures to reach the service.

The module sends nothing."""

import gzip
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import httpx

from .errors import ConnectionFailed, DeadlineExceededError, InvalidRequestError
from .exchange import Options, Part, PartAnswer, combine, cut, read_answer
from .ranking import Ranking
from .retries import Deadline

__all__ = ["API_KEY_ENVS", "DEFAULT_URL", "URL_ENV", "ClientBase", "RankCall", "__version__"]

__version__ = "0.1.0"
"""Equal to the version of the service's package. It is a literal because setuptools reads it without an import."""

URL_ENV = "RERANK_SERVICE_URL"
DEFAULT_URL = "http://127.0.0.1:8000"
API_KEY_ENVS = ("RERANK_SERVICE_API_KEY", "NVIDIA_API_KEY")
"""Environment variables with the API key; the first one that is set counts."""

_CONNECT_TIMEOUT_S = 5.0
"""Time limit for opening a connection, so that a call to an unreachable address fails before a long deadline ends."""

_Http = TypeVar("_Http", httpx.Client, httpx.AsyncClient)


@dataclass(frozen=True)
class RankCall:
    """One call of `rank`. It holds the requests and combines their responses into a ranking."""

    passages: Sequence[str]
    parts: list[Part]
    top_n: int | None
    request_id: str
    timeout_s: float
    deadline: Deadline

    def read(self, part: Part, response: httpx.Response) -> PartAnswer:
        """The answer for one part. Raises `ApiError`, and `InvalidRequestError` if a cascade has ranked a part of the
        passages: only a ranking of all passages shows which of them the next stage must score."""
        answer = read_answer(part, response.status_code, response.headers, response.content, self.request_id)
        if answer.stages and len(self.parts) > 1:
            message = (
                f"{response.headers.get('x-model', 'this model')} is a cascade, which ranks all passages in one "
                f"request: send at most {self.parts[0].num_passages} passages, or name one of its stages as model"
            )
            raise InvalidRequestError(response.status_code, message, request_id=self.request_id)
        return answer

    def ranking(self, answers: Sequence[PartAnswer]) -> Ranking:
        """Combines the answers, in the order of the parts, into the ranking."""
        return combine(self.passages, answers, self.request_id, self.top_n)

    def overdue(self) -> DeadlineExceededError:
        """The error for a call that the service has not answered by the deadline."""
        return DeadlineExceededError(None, f"no answer within {self.timeout_s:g} s", request_id=self.request_id)


class ClientBase(ABC, Generic[_Http]):
    """Base class of both clients. Connections are kept open and reused until the client is closed."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        model: str | None = None,
        timeout_s: float = 60.0,
        max_retries: int = 4,
        max_passages: int = 512,
        max_concurrent_requests: int = 4,
        compress_requests: bool = False,
    ) -> None:
        """Creates a client without opening a connection. Raises `ValueError` for an invalid argument.

        - `base_url`: address of the service; a trailing `/v1` is accepted. None means the environment variable
          RERANK_SERVICE_URL or, without it, http://127.0.0.1:8000.
        - `api_key`: None means the environment variable RERANK_SERVICE_API_KEY or, without it, NVIDIA_API_KEY.
        - `model`: None means the service's default model.
        - `timeout_s`: deadline of a whole call of `rank`, retries included. The default is the service's own limit.
        - `max_retries`: maximum number of retries of each request after status 429 or 503.
        - `max_passages`: maximum passages per request; the default is the API's limit.
        - `max_concurrent_requests`: maximum requests in flight in a call with more than `max_passages` passages.
        - `compress_requests`: whether to send requests in gzip, for a slow network.
        """
        if min(max_passages, max_concurrent_requests) < 1 or max_retries < 0 or timeout_s <= 0:
            raise ValueError(
                "max_passages and max_concurrent_requests must be at least 1, max_retries at least 0, "
                "and timeout_s above 0"
            )
        address = base_url if base_url is not None else os.environ.get(URL_ENV) or DEFAULT_URL
        self._base_url = _checked(address).rstrip("/").removesuffix("/v1")
        self._model = model
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self._max_passages = max_passages
        self._max_concurrent_requests = max_concurrent_requests
        self._compress_requests = compress_requests
        headers = {"Content-Type": "application/json", "User-Agent": f"rerank-service-client/{__version__}"}
        if key := api_key if api_key is not None else _key_from_environment():
            headers["Authorization"] = f"Bearer {key}"
        self._http: _Http = self._open(self._base_url, headers)

    @abstractmethod
    def _open(self, base_url: str, headers: dict[str, str]) -> _Http: ...

    def _call(self, query: str, passages: Sequence[str], options: Options, top_n: int | None) -> RankCall:
        if top_n is not None and top_n < 1:
            raise ValueError("top_n must be at least 1; leave it out to return all passages")
        if options.explain is not None and options.explain < 1:
            raise ValueError("explain must be at least 1; leave it out for no explanations")
        if options.explain is not None and len(passages) > self._max_passages:
            raise ValueError(
                f"explain needs all passages in one request, but {len(passages)} passages are more than max_passages "
                f"({self._max_passages}); rank them first, then explain the best ones"
            )
        parts = cut(query, passages, options._replace(model=options.model or self._model), self._max_passages)
        return RankCall(passages, parts, top_n, uuid.uuid4().hex, self._timeout_s, Deadline(self._timeout_s))

    def _request(self, call: RankCall, part: Part) -> httpx.Request:
        """Builds the request for one part. Raises `DeadlineExceededError` if no time is left."""
        left_s = call.deadline.left_s()
        if left_s < 0.001:  # the header's resolution
            raise call.overdue()
        headers = {"x-request-id": call.request_id, "x-request-timeout-seconds": f"{left_s:.3f}"}
        body = part.body
        if self._compress_requests:
            body, headers["Content-Encoding"] = gzip.compress(body, compresslevel=6), "gzip"
        timeout = httpx.Timeout(left_s, connect=min(left_s, _CONNECT_TIMEOUT_S))
        return self._http.build_request("POST", "/v1/ranking", content=body, headers=headers, timeout=timeout)

    @contextmanager
    def _failures(self, call: RankCall) -> Iterator[None]:
        """Turns errors of httpx and timeouts into `RerankClientError`."""
        try:
            yield
        except (httpx.TimeoutException, TimeoutError) as error:
            if isinstance(error, httpx.ConnectTimeout) and call.deadline.left_s() > 0:
                raise ConnectionFailed(self._base_url, f"no connection within {_CONNECT_TIMEOUT_S:g} s") from error
            raise call.overdue() from error
        except httpx.HTTPError as error:
            raise ConnectionFailed(self._base_url, str(error) or type(error).__name__) from error


def _key_from_environment() -> str | None:
    return next(filter(None, map(os.environ.get, API_KEY_ENVS)), None)


def _checked(base_url: str) -> str:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ValueError(f"base_url {base_url!r} is not a URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"base_url {base_url!r} must be an http or https URL, such as http://127.0.0.1:8000")
    return base_url
