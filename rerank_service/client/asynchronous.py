"""The client for asyncio. It differs from the blocking client only in how it sends requests."""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import httpx
from tenacity import AsyncRetrying

from .base import ClientBase, RankCall
from .exchange import Options, Part, PartAnswer, Truncate
from .ranking import PassageWindows, Ranking
from .retries import retry_options

__all__ = ["AsyncClient"]


class AsyncClient(ClientBase[httpx.AsyncClient]):
    """Ranks passages with a running service. Tasks of one event loop may share a client."""

    async def rank(
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
        sent in several concurrent requests. A cascade ranks only a call that fits in one request. Raises
        `RerankClientError`. If one request fails or the call is cancelled, the other requests are cancelled, and the
        service drops the passages that it has not started to score.
        """
        call = self._call(query, passages, Options(model, truncate, windows, explain), top_n)
        slots = asyncio.Semaphore(self._max_concurrent_requests)
        try:
            async with asyncio.TaskGroup() as tasks:
                sent = [tasks.create_task(self._answer(call, part, slots)) for part in call.parts]
        except ExceptionGroup as failed:
            first = failed.exceptions[0]
            raise first from first.__cause__
        return call.ranking([task.result() for task in sent])

    async def aclose(self) -> None:
        """Closes the connections. The client cannot be used afterwards."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def _open(self, base_url: str, headers: dict[str, str]) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=base_url, headers=headers)

    async def _answer(self, call: RankCall, part: Part, slots: asyncio.Semaphore) -> PartAnswer:
        async with slots:
            retrying = AsyncRetrying(**retry_options(self._max_retries, call.deadline))
            return await retrying(self._send, call, part)

    async def _send(self, call: RankCall, part: Part) -> PartAnswer:
        with self._failures(call):
            async with asyncio.timeout(call.deadline.left_s()):
                response = await self._http.send(self._request(call, part))
        return call.read(part, response)
