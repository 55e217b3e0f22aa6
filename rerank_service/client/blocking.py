"""The client for code without an event loop; a part is sent here, everything else is shared."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import httpx
from tenacity import Retrying

from .base import Call, ClientBase
from .exchange import Options, Part, PartAnswer, Truncate
from .ranking import PassageWindows, Ranking
from .retries import retry_options

__all__ = ["Client"]


class Client(ClientBase[httpx.Client]):
    """Ranks passages by a running service. Threads may share one."""

    def rank(
        self,
        query: str,
        passages: Sequence[str],
        *,
        model: str | None = None,
        truncate: Truncate = "END",
        top_n: int | None = None,
        windows: PassageWindows | None = None,
    ) -> Ranking:
        """Passages by relevance to `query`, or the `top_n` best. No passages: an empty ranking, and no request.
        `windows` ranks a passage that does not fit in the model's window by its best part.

        More than `max_passages` go as several requests at a time, from threads, since a request waits. Raises
        `RerankClientError`; if one request fails, those on their way are waited for and the rest is not sent.
        """
        call = self._call(query, passages, Options(model, truncate, windows), top_n)
        if len(call.parts) <= 1:
            return call.ranking([self._answer(call, part) for part in call.parts])
        with ThreadPoolExecutor(min(self._max_concurrent_requests, len(call.parts))) as threads:
            return call.ranking(list(threads.map(lambda part: self._answer(call, part), call.parts)))

    def close(self) -> None:
        """Gives the connections back; the client is of no use afterwards."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, base_url: str, headers: dict[str, str]) -> httpx.Client:
        # Connections are as many as the caller's threads want: a wait for one would come on top of the deadline.
        return httpx.Client(base_url=base_url, headers=headers, limits=httpx.Limits(max_keepalive_connections=100))

    def _answer(self, call: Call, part: Part) -> PartAnswer:
        return Retrying(**retry_options(self._max_retries, call.deadline))(self._send, call, part)

    def _send(self, call: Call, part: Part) -> PartAnswer:
        with self._failures(call):
            response = self._http.send(self._request(call, part))
        return call.read(part, response)
