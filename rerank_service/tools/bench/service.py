"""Load test of a running service: one client, many clients, mixed sizes, and a small request behind a large one."""

import asyncio
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from rerank_service.checkpoints.resolve import resolve_checkpoint
from rerank_service.config import CheckpointConfig
from rerank_service.engine.text.tokenise import load_tokenizer
from rerank_service.tools.bench.apis import NIM, PreparedRequest
from rerank_service.tools.bench.measure import LoadFigures, measure_load, median_figures
from rerank_service.tools.bench.probe import BIG_PASSAGES, SmallBehindBig, probe_small_behind_big
from rerank_service.tools.bench.workload import ENCODER, QUERY, Lengths, draw_lengths, make_passages

__all__ = ["Load", "ServiceFigures", "bench_service"]

_MIXED_CLIENTS = 4
_MIXED_SIZES = {1: 3, 10: 3, 100: 3, 512: 1}
"""Weight of each number of passages per request; most requests are far below the limit."""


@dataclass(frozen=True)
class Load:
    """Settings of the load."""

    url: str
    clients: Sequence[int]
    num_requests: int
    num_passages: int
    passage_tokens: int
    repeats: int
    pid: int | None = None
    """Root process of the service, if it runs on this machine."""

    model: str | None = None
    headers: Mapping[str, str] | None = None


@dataclass(frozen=True)
class ServiceFigures:
    """Figures of a service, as medians over the repeats."""

    loads: dict[str, LoadFigures]
    small_alone_s: float
    small_behind_big_s: float
    big_s: float
    wait_share: float | None
    """Wait of the small request as a share of the large request's time; null if the large request ended first."""


def bench_service(load: Load) -> ServiceFigures:
    """Runs all loads in turn, `repeats` times. Raises `RuntimeError` if the service answers no request."""
    tokenizer = load_tokenizer(resolve_checkpoint(CheckpointConfig(source=ENCODER)))
    url = load.url.rstrip("/") + NIM.path
    _warm_up(load, url, tokenizer)
    figures: dict[str, list[LoadFigures]] = {}
    probes = []
    for repeat in range(load.repeats):
        for name, requests, num_clients in _loads(load, tokenizer, repeat):
            measured, _ = measure_load(url, requests, num_clients, load.pid, load.headers)
            figures.setdefault(name, []).append(measured)
        big, small = (_request(load, tokenizer, count, repeat) for count in (BIG_PASSAGES, 1))
        probes.append(asyncio.run(probe_small_behind_big(url, big, small, load.headers)))
    return _summary({name: median_figures(repeats) for name, repeats in figures.items()}, probes)


def _summary(loads: dict[str, LoadFigures], probes: Sequence[SmallBehindBig]) -> ServiceFigures:
    shares = [probe.wait_share for probe in probes if probe.wait_share is not None]
    return ServiceFigures(
        loads=loads,
        small_alone_s=statistics.median(probe.small_alone_s for probe in probes),
        small_behind_big_s=statistics.median(probe.small_s for probe in probes),
        big_s=statistics.median(probe.big_s for probe in probes),
        wait_share=statistics.median(shares) if shares else None,
    )


def _loads(load: Load, tokenizer: Tokenizer, seed: int) -> Iterator[tuple[str, list[PreparedRequest], int]]:
    """Name, requests and number of clients of each load; no text is sent twice."""
    for num_clients in load.clients:
        requests = [
            _request(load, tokenizer, load.num_passages, seed=1000 * seed + index) for index in range(load.num_requests)
        ]
        yield f"{num_clients} client{'s' if num_clients > 1 else ''}", requests, num_clients
    yield "mixed", list(_mixed_requests(load, tokenizer, seed)), _MIXED_CLIENTS


def _request(load: Load, tokenizer: Tokenizer, num_passages: int, seed: int) -> PreparedRequest:
    """A request whose passages have `passage_tokens` tokens each, including two special tokens."""
    passages = make_passages(tokenizer, [max(1, load.passage_tokens - 2)] * num_passages, seed)
    return _prepared(load, passages)


def _mixed_requests(load: Load, tokenizer: Tokenizer, seed: int) -> Iterator[PreparedRequest]:
    """Requests with 1 to 512 passages; a request contains either short snippets or chunks."""
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    sizes = rng.choices(list(_MIXED_SIZES), weights=list(_MIXED_SIZES.values()), k=load.num_requests)
    for index, size in enumerate(sizes):
        distribution = rng.choice([Lengths.SHORT, Lengths.CHUNKS])
        request_seed = 1000 * seed + index
        lengths = draw_lengths(distribution, size, request_seed)
        yield _prepared(load, make_passages(tokenizer, lengths, request_seed))


def _prepared(load: Load, passages: Sequence[str]) -> PreparedRequest:
    return NIM.request(QUERY, passages, **({"model": load.model} if load.model else {}))


def _warm_up(load: Load, url: str, tokenizer: Tokenizer) -> None:
    _, run = measure_load(url, [_request(load, tokenizer, load.num_passages, seed=0)], 1, headers=load.headers)
    if not run.answers[0].is_ok:
        reply = run.answers[0]
        reason = (
            f"{reply.status} {reply.body[:300].decode(errors='replace')}"
            if reply.status
            else "no connection; is it running?"
        )
        raise RuntimeError(f"{url} does not answer a ranking request: {reason}")
