"""The client for code without an event loop. It differs from the asyncio client only in how it sends requests."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import httpx
from tenacity import Retrying

from .base import ClientBase, RankCall
from .exchange import Options, Part, PartAnswer, Truncate
from .ranking import PassageWindows, Ranking
from .retries import retry_options

__all__ = ["Client"]


class Client(ClientBase[httpx.Client]):
    """Ranks passages with a running service. Threads may share a client."""

    def rank(
        self,
        query: str,
        passages: Sequence[str],
        *,
        model: str | None = None,
        truncate: Truncate = "END",
        top_n: int | None = None,
        windows: PassageWindows | None = None,
        explain: int | None = None,
    ) -> Ranking:
        """Ranks `passages` by relevance to `query` and returns all of them, or the `top_n` best.

        Without passages, the ranking is empty and no request is sent. With `windows`, a passage that is longer than the
        model's window is scored by its best window. With `explain=3`, the three best passages have an `explanation`;
        the call must then fit in one request, otherwise `ValueError` is raised. More than `max_passages` passages are
        sent in several concurrent requests from separate threads. A cascade ranks only a call that fits in one request.
        Raises `RerankClientError`. If one request fails, the call waits for the requests in flight and sends no others.
        """
        call = self._call(query, passages, Options(model, truncate, windows, explain), top_n)
        if len(call.parts) <= 1:
            return call.ranking([self._answer(call, part) for part in call.parts])
        with ThreadPoolExecutor(min(self._max_concurrent_requests, len(call.parts))) as threads:
            return call.ranking(list(threads.map(lambda part: self._answer(call, part), call.parts)))

    def close(self) -> None:
        """Closes the connections. The client cannot be used afterwards."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, base_url: str, headers: dict[str, str]) -> httpx.Client:
        # Only idle connections are limited: waiting for a free connection would count against the deadline.
        return httpx.Client(base_url=base_url, headers=headers, limits=httpx.Limits(max_keepalive_connections=100))

    def _answer(self, call: RankCall, part: Part) -> PartAnswer:
        return Retrying(**retry_options(self._max_retries, call.deadline))(self._send, call, part)

    def _send(self, call: RankCall, part: Part) -> PartAnswer:
        with self._failures(call):
            response = self._http.send(self._request(call, part))
        return call.read(part, response)
