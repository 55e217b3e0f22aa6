"""Mixed traffic for the soak test: requests of all sizes and dialects, many of them invalid."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx

__all__ = ["CLIENT_TIMEOUT_S", "KEYS", "MAX_BODY_BYTES", "MODEL", "Traffic"]

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
KEYS = [f"soak-key-{number}" for number in range(50)]
MAX_BODY_BYTES = 200_000
CLIENT_TIMEOUT_S = 70
_CLIENTS = 8
_PAUSE_S = 1.0
"""Mean pause between two requests of a client."""
_WORDS = ["bread", "river", "kidney", "contract", "token", "winter", "harbour", "price", "bridge", "model"]


@dataclass(frozen=True)
class SoakRequest:
    """A request and the statuses allowed for its reply."""

    method: str
    path: str
    body: bytes | None
    headers: dict[str, str]
    allowed: frozenset[int]
    leaves_after_s: float | None = None


def _ranking(rng: random.Random, path: str, fields: dict[str, Any], allowed: set[int], **more: Any) -> SoakRequest:
    headers = {"authorization": f"Bearer {rng.choice(KEYS)}", "content-type": "application/json"}
    if rng.random() < 0.5:
        headers["x-request-id"] = f"soak-{rng.getrandbits(64):x}"
    return SoakRequest(
        "POST", path, json.dumps(fields).encode(), headers | more.pop("headers", {}), frozenset(allowed), **more
    )


def _text(rng: random.Random) -> str:
    return " ".join(rng.choices(_WORDS, k=rng.randint(3, 60)))


def _texts(rng: random.Random) -> list[str]:
    return [_text(rng) for _ in range(rng.choice([1, 1, 5, 10, 20, 60]))]


def _nim(rng: random.Random) -> dict[str, Any]:
    return {"model": MODEL, "query": {"text": _text(rng)}, "passages": [{"text": text} for text in _texts(rng)]}


def _name(rng: random.Random) -> str:
    return f"nobody/{rng.getrandbits(64):x}"


KINDS: Mapping[str, tuple[int, Callable[[random.Random], SoakRequest]]] = {
    "nim": (30, lambda rng: _ranking(rng, "/v1/ranking", _nim(rng), {200})),
    "hosted": (4, lambda rng: _ranking(rng, "/v1/retrieval/nvidia/all-MiniLM-L6-v2/reranking", _nim(rng), {200})),
    "cohere": (
        6,
        lambda rng: _ranking(rng, "/v2/rerank", {"model": MODEL, "query": _text(rng), "documents": _texts(rng)}, {200}),
    ),
    "jina": (6, lambda rng: _ranking(rng, "/v1/rerank", {"query": _text(rng), "documents": _texts(rng)}, {200})),
    "voyage": (
        4,
        lambda rng: _ranking(rng, "/v1/rerank", {"query": _text(rng), "documents": _texts(rng), "top_k": 1}, {200}),
    ),
    "tei": (6, lambda rng: _ranking(rng, "/rerank", {"query": _text(rng), "texts": _texts(rng)}, {200})),
    "vllm score": (4, lambda rng: _ranking(rng, "/score", {"text_1": _text(rng), "text_2": _texts(rng)}, {200})),
    "windows": (2, lambda rng: _ranking(rng, "/v1/ranking", _nim(rng) | {"passages": _long_passages(rng)}, {200})),
    "client leaves": (
        8,
        lambda rng: _ranking(rng, "/v1/ranking", _nim(rng), {200}, leaves_after_s=rng.uniform(0.005, 0.1)),
    ),
    "short deadline": (
        3,
        lambda rng: _ranking(
            rng, "/v1/ranking", _nim(rng), {200, 503, 504}, headers={"x-request-timeout-seconds": "0.02"}
        ),
    ),
    "unknown model": (5, lambda rng: _ranking(rng, "/v1/ranking", _nim(rng) | {"model": _name(rng)}, {404})),
    "unknown model, cohere": (
        3,
        lambda rng: _ranking(rng, "/v2/rerank", {"model": _name(rng), "query": "q", "documents": ["d"]}, {404}),
    ),
    "unknown slug": (
        3,
        lambda rng: _ranking(rng, f"/v1/retrieval/nvidia/{rng.getrandbits(64):x}/reranking", _nim(rng), {200, 404}),
    ),
    "unknown field": (5, lambda rng: _ranking(rng, "/v1/ranking", _nim(rng) | {_name(rng): 1}, {200})),
    "unknown path": (3, lambda rng: _ranking(rng, f"/{_name(rng)}", {}, {404})),
    "unknown method": (
        2,
        lambda rng: SoakRequest(
            f"M{rng.getrandbits(32):X}",
            "/v1/ranking",
            None,
            {"authorization": f"Bearer {KEYS[0]}"},
            frozenset({400, 405}),
        ),
    ),
    "unknown key": (
        4,
        lambda rng: _ranking(rng, "/v1/ranking", _nim(rng), {401}, headers={"authorization": f"Bearer {_name(rng)}"}),
    ),
    "not JSON": (
        2,
        lambda rng: SoakRequest(
            "POST",
            "/v1/ranking",
            b'{"query": ' + str(rng.getrandbits(64)).encode(),
            {"authorization": f"Bearer {rng.choice(KEYS)}", "content-type": "application/json"},
            frozenset({400}),
        ),
    ),
    "body too large": (
        2,
        lambda rng: _ranking(rng, "/v1/ranking", _nim(rng) | {_name(rng): "x" * MAX_BODY_BYTES}, {413}),
    ),
    "models": (
        2,
        lambda rng: SoakRequest(
            "GET", "/v1/models", None, {"authorization": f"Bearer {rng.choice(KEYS)}"}, frozenset({200})
        ),
    ),
    "ready": (2, lambda _: SoakRequest("GET", "/v1/health/ready", None, {}, frozenset({200}))),
}
"""Weight of each kind of request, and the function that makes such requests."""


def _long_passages(rng: random.Random) -> list[dict[str, str]]:
    return [{"text": " ".join(_text(rng) for _ in range(40))} for _ in range(2)]


class Traffic:
    """Clients that each send one request after another, with pauses."""

    def __init__(self, url: str, seed: int) -> None:
        self.outcomes: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
        self.unexpected: Counter[str] = Counter()
        self._url = url
        self._seed = seed

    async def run_until(self, stop: asyncio.Event) -> None:
        """Sends requests until `stop` is set, and waits for the last replies."""
        await asyncio.gather(*(self._client(random.Random(f"{self._seed}/{n}"), stop) for n in range(_CLIENTS)))  # noqa: S311

    async def _client(self, rng: random.Random, stop: asyncio.Event) -> None:
        kinds, weights = list(KINDS), [weight for weight, _ in KINDS.values()]
        while not stop.is_set():
            limits = httpx.Limits(max_connections=1)
            async with httpx.AsyncClient(base_url=self._url, limits=limits, timeout=CLIENT_TIMEOUT_S) as client:
                for _ in range(rng.randint(1, 20)):  # number of requests per connection
                    (kind,) = rng.choices(kinds, weights)
                    await self._send(client, kind, KINDS[kind][1](rng))
                    with suppress(TimeoutError):
                        await asyncio.wait_for(stop.wait(), rng.expovariate(1 / _PAUSE_S))

    async def _send(self, client: httpx.AsyncClient, kind: str, request: SoakRequest) -> None:
        timeout_s = request.leaves_after_s or CLIENT_TIMEOUT_S
        try:
            response = await client.request(
                request.method, request.path, content=request.body, headers=request.headers, timeout=timeout_s
            )
        except httpx.TransportError as error:
            outcome = type(error).__name__
            is_expected = request.leaves_after_s is not None
        else:
            outcome = str(response.status_code)
            is_expected = response.status_code in request.allowed
        self.outcomes[kind][outcome] += 1
        if not is_expected:
            self.unexpected[f"{kind}: {outcome}"] += 1
