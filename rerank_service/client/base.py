"""What both clients are: their settings, the requests of a call, and failures to reach the service. Sends nothing."""

import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import httpx

from .errors import ConnectionFailed, DeadlineExceededError
from .exchange import Options, Part, PartAnswer, cut, put_together, read_answer
from .ranking import Ranking
from .retries import Deadline

__all__ = ["API_KEY_ENV", "Call", "ClientBase"]

__version__ = "0.1.0"

API_KEY_ENV = "RERANK_SERVICE_API_KEY"

_CONNECT_TIMEOUT_S = 5.0
"""Whatever the deadline: an address where nobody answers is given up earlier."""

_Http = TypeVar("_Http", httpx.Client, httpx.AsyncClient)


@dataclass(frozen=True)
class Call:
    """One call of `rank`."""

    passages: Sequence[str]
    parts: list[Part]
    top_n: int | None
    request_id: str
    timeout_s: float
    deadline: Deadline

    def read(self, part: Part, response: httpx.Response) -> PartAnswer:
        """A part's logits; raises `ApiError`."""
        return read_answer(part, response.status_code, response.headers, response.content, self.request_id)

    def ranking(self, answers: Sequence[PartAnswer]) -> Ranking:
        """Of the answers to all parts, in their order."""
        return put_together(self.passages, answers, self.request_id, self.top_n)

    def overdue(self) -> DeadlineExceededError:
        """The client's own clock ran out."""
        return DeadlineExceededError(
            None, f"there was no answer within {self.timeout_s:g} s", request_id=self.request_id
        )


class ClientBase(ABC, Generic[_Http]):
    """Settings of a client. Connections are kept and used again until it is closed."""

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        model: str | None = None,
        timeout_s: float = 60.0,
        max_retries: int = 4,
        max_passages: int = 512,
        max_concurrent_requests: int = 4,
    ) -> None:
        """`base_url` may end in `/v1`, as other clients want it. `api_key`: null takes the environment variable
        RERANK_SERVICE_API_KEY. `model`: null lets the service choose its default. `timeout_s` is the time of a whole
        call of `rank`, its retries included; the default is the service's own limit. `max_passages` of a request:
        the API's limit. `max_concurrent_requests`: of one call with more passages than that.
        """
        if min(max_passages, max_concurrent_requests) < 1 or max_retries < 0 or timeout_s <= 0:
            raise ValueError("max_passages and max_concurrent_requests start at 1, max_retries at 0, timeout_s above 0")
        self._base_url = _checked(base_url).rstrip("/").removesuffix("/v1")
        self._model = model
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self._max_passages = max_passages
        self._max_concurrent_requests = max_concurrent_requests
        headers = {"Content-Type": "application/json", "User-Agent": f"rerank-service-client/{__version__}"}
        if key := api_key if api_key is not None else os.environ.get(API_KEY_ENV):
            headers["Authorization"] = f"Bearer {key}"
        self._http: _Http = self._open(self._base_url, headers)

    @abstractmethod
    def _open(self, base_url: str, headers: dict[str, str]) -> _Http: ...

    def _call(self, query: str, passages: Sequence[str], options: Options, top_n: int | None) -> Call:
        if top_n is not None and top_n < 1:
            raise ValueError("top_n starts at 1; leave it out for all passages")
        parts = cut(query, passages, options._replace(model=options.model or self._model), self._max_passages)
        return Call(passages, parts, top_n, uuid.uuid4().hex, self._timeout_s, Deadline(self._timeout_s))

    def _request(self, call: Call, part: Part) -> httpx.Request:
        """Raises `DeadlineExceededError` if no time is left."""
        left_s = call.deadline.left_s()
        if left_s < 0.001:  # what the header can say
            raise call.overdue()
        headers = {"x-request-id": call.request_id, "x-request-timeout-seconds": f"{left_s:.3f}"}
        timeout = httpx.Timeout(left_s, connect=min(left_s, _CONNECT_TIMEOUT_S))
        return self._http.build_request("POST", "/v1/ranking", content=part.body, headers=headers, timeout=timeout)

    @contextmanager
    def _failures(self, call: Call) -> Iterator[None]:
        """Turns what the HTTP library and the clock raise into errors of ours."""
        try:
            yield
        except (httpx.TimeoutException, TimeoutError) as error:
            if isinstance(error, httpx.ConnectTimeout) and call.deadline.left_s() > 0:
                raise ConnectionFailed(self._base_url, f"no connection within {_CONNECT_TIMEOUT_S:g} s") from error
            raise call.overdue() from error
        except httpx.HTTPError as error:
            raise ConnectionFailed(self._base_url, str(error) or type(error).__name__) from error


def _checked(base_url: str) -> str:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ValueError(f"base_url {base_url!r} is not a URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"base_url {base_url!r} is not like http://127.0.0.1:8000")
    return base_url
