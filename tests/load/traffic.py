"""A steady mixed load over HTTP. Every answer is checked."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

__all__ = ["Question", "Traffic", "Verdicts"]

_TOLERANCE = 1e-4
"""Largest difference between the logit of a pair in a batch and its logit alone, in float32."""
_ALLOWED = (429, 503, 504)
"""Error statuses that a valid request may receive, according to the documentation, in the error envelope."""


@dataclass(frozen=True)
class Question:
    """A request and its expected logits."""

    body: dict[str, Any]
    logits: Sequence[float]


@dataclass
class Verdicts:
    """Results of the requests of one phase."""

    requests: int = 0
    ok: int = 0
    wrong: int = 0
    lost: int = 0
    """Number of requests without an answer because the connection broke."""
    doubled: int = 0
    hung: int = 0
    """Number of requests still unanswered one second after their deadline."""
    left: int = 0
    """Number of requests whose client disconnected on purpose."""
    failed: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0
    longest_gap_s: float = 0.0
    """Longest time between two correct answers."""


class Traffic:
    """Several clients, each of which sends one question after another."""

    def __init__(self, url: str, questions: Sequence[Question], deadline_s: float, headers: dict[str, str]) -> None:
        self._url = url
        self._questions = questions
        self._deadline_s = deadline_s
        self._headers = headers

    @asynccontextmanager
    async def running(self, num_clients: int, seed: str, leaving_share: float = 0.0) -> Any:
        """Sends requests while the block runs. The verdicts are complete when the block has ended."""
        verdicts = Verdicts()
        stop = asyncio.Event()
        self._last_ok = time.perf_counter()
        rngs = [random.Random(f"{seed}/{client}") for client in range(num_clients)]
        clients = [asyncio.ensure_future(self._client(rng, verdicts, stop, leaving_share)) for rng in rngs]
        try:
            yield verdicts
        finally:
            stop.set()
            await asyncio.gather(*clients)

    async def _client(self, rng: random.Random, verdicts: Verdicts, stop: asyncio.Event, leaving_share: float) -> None:
        limits = httpx.Limits(max_keepalive_connections=0)  # a new connection for each request
        async with httpx.AsyncClient(timeout=self._deadline_s + 1, limits=limits, headers=self._headers) as client:
            while not stop.is_set():
                question = rng.choice(self._questions)
                verdicts.requests += 1
                started = time.perf_counter()
                if rng.random() < leaving_share:
                    await self._leave(client, question, rng, verdicts)
                else:
                    await self._ask(client, question, verdicts)
                verdicts.longest_s = max(verdicts.longest_s, time.perf_counter() - started)

    async def _ask(self, client: httpx.AsyncClient, question: Question, verdicts: Verdicts) -> None:
        try:
            response = await client.post(self._url, json=question.body)
        except httpx.TimeoutException:
            verdicts.hung += 1
            return
        except httpx.TransportError:
            verdicts.lost += 1
            return
        if response.status_code != 200:
            verdicts.failed[_cause(response)] += 1
            await asyncio.sleep(0.2)
            return
        self._judge(response.json(), question, verdicts)

    def _judge(self, answer: dict[str, Any], question: Question, verdicts: Verdicts) -> None:
        indices = [ranking["index"] for ranking in answer["rankings"]]
        if len(set(indices)) < len(indices):
            verdicts.doubled += 1
        elif not _is_right(answer["rankings"], question.logits):
            verdicts.wrong += 1
        else:
            verdicts.ok += 1
            now = time.perf_counter()
            verdicts.longest_gap_s = max(verdicts.longest_gap_s, now - self._last_ok)
            self._last_ok = now

    async def _leave(
        self, client: httpx.AsyncClient, question: Question, rng: random.Random, verdicts: Verdicts
    ) -> None:
        verdicts.left += 1
        with suppress(httpx.TransportError):
            await client.post(self._url, json=question.body, timeout=rng.uniform(0.005, 0.1))


def _cause(response: httpx.Response) -> str:
    try:
        body = response.json()
        code = body["detail"][0]["type"]
    except (ValueError, KeyError, IndexError, TypeError):
        return f"{response.status_code} outside the envelope"
    return (
        f"{response.status_code} {code}" if response.status_code in _ALLOWED else f"{response.status_code} {code} (!)"
    )


def _is_right(rankings: Sequence[dict[str, Any]], logits: Sequence[float]) -> bool:
    served = [ranking["logit"] for ranking in rankings]
    return (
        sorted(ranking["index"] for ranking in rankings) == list(range(len(logits)))
        and served == sorted(served, reverse=True)
        and all(abs(ranking["logit"] - logits[ranking["index"]]) <= _TOLERANCE for ranking in rankings)
    )
