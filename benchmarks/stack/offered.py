"""Closed-loop and open-loop load on the stack; every ranking is checked against the expected one."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import httpx

from benchmarks.stack.simulated import simulated_logit
from rerank_service.routing.ranker import estimate_tokens

__all__ = ["Answered", "OfferedRequest", "draw_request", "offer_closed", "offer_open", "outcomes", "schedule"]

_QUERY = "Which replica is the fastest?"
_FILLER = "word " * 60
_SIZES = {1: 4, 5: 3, 20: 4, 100: 2, 300: 1}
"""Weight of each number of passages per request."""


@dataclass(frozen=True)
class OfferedRequest:
    """A request and its expected ranking."""

    body: bytes
    order: tuple[int, ...]
    lengths: tuple[int, ...]
    """Tokens of each pair, as counted by the simulated engine."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all pairs."""
        return sum(self.lengths)


@dataclass(frozen=True)
class Answered:
    """A request that has ended, and its outcome."""

    sent_at: float
    done_at: float
    outcome: str
    """`right` or `wrong` for a ranking, else the HTTP status or the name of the error."""
    num_tokens: int


@dataclass
class _AnswerLog:
    url: str
    answers: list[Answered] = field(default_factory=list)

    async def ask(self, client: httpx.AsyncClient, question: OfferedRequest) -> None:
        sent_at = time.perf_counter()
        try:
            response = await client.post(self.url, content=question.body, headers={"content-type": "application/json"})
        except httpx.TransportError as error:
            outcome = type(error).__name__
        else:
            outcome = _judge(response, question)
        self.answers.append(Answered(sent_at, time.perf_counter(), outcome, question.num_tokens))


def _judge(response: httpx.Response, question: OfferedRequest) -> str:
    if response.status_code != 200:
        return str(response.status_code)
    order = tuple(ranking["index"] for ranking in json.loads(response.content)["rankings"])
    return "right" if order == question.order else "wrong"


def draw_request(rng: random.Random) -> OfferedRequest:
    """A random request: mostly small, sometimes large, with passages of 40 to 300 bytes."""
    size = rng.choices(list(_SIZES), weights=list(_SIZES.values()))[0]
    lengths = rng.choices([40, 120, 300], k=size)
    passages = [f"{rng.getrandbits(64):x} {_FILLER}"[:length] for length in lengths]
    logits = [simulated_logit(_QUERY, passage) for passage in passages]
    order = tuple(sorted(range(size), key=lambda index: (-logits[index], index)))
    body = json.dumps({"query": {"text": _QUERY}, "passages": [{"text": passage} for passage in passages]}).encode()
    return OfferedRequest(body, order, tuple(estimate_tokens(_QUERY, passage) for passage in passages))


def _client(num_connections: int) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=num_connections, max_keepalive_connections=num_connections)
    return httpx.AsyncClient(timeout=600, limits=limits)


async def offer_closed(
    url: str, questions: Iterator[OfferedRequest], num_clients: int, duration_s: float
) -> list[Answered]:
    """Closed loop: each client sends its next request when the previous one is answered."""
    record = _AnswerLog(url)
    stop_at = time.perf_counter() + duration_s

    async def ask_on(client: httpx.AsyncClient) -> None:
        while time.perf_counter() < stop_at:
            await record.ask(client, next(questions))

    async with _client(num_clients) as client:
        await asyncio.gather(*(ask_on(client) for _ in range(num_clients)))
    return record.answers


def schedule(
    questions: Iterator[OfferedRequest], tokens_per_s: float, duration_s: float, rng: random.Random
) -> Iterator[tuple[float, OfferedRequest]]:
    """Yields requests with the times at which they are due, as a Poisson process that ends after `duration_s`."""
    due_s = 0.0
    while due_s < duration_s:
        question = next(questions)
        due_s += rng.expovariate(1.0) * question.num_tokens / tokens_per_s
        yield due_s, question


async def offer_open(
    url: str, questions: Iterator[OfferedRequest], tokens_per_s: float, duration_s: float, rng: random.Random
) -> list[Answered]:
    """Open loop: requests arrive at a mean rate of `tokens_per_s`, whether or not earlier ones are answered."""
    record = _AnswerLog(url)
    tasks: set[asyncio.Task[None]] = set()
    started_at = time.perf_counter()
    async with _client(2_000) as client:
        for due_s, question in schedule(questions, tokens_per_s, duration_s, rng):
            await asyncio.sleep(max(0.0, started_at + due_s - time.perf_counter()))
            task = asyncio.ensure_future(record.ask(client, question))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
    return record.answers


def outcomes(answers: Sequence[Answered]) -> dict[str, int]:
    """Number of requests by outcome."""
    return dict(Counter(answer.outcome for answer in answers))
