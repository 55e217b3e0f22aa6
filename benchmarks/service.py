"""Starts the service with the repository's configuration and measures it under load.

python -m benchmarks.service [--json benchmarks/results/service-cpu.json]
"""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console

from benchmarks.peers.environments import BENCH_FOLDER, OURS, program
from benchmarks.peers.processes import Command, running, stop_on_signals
from benchmarks.ports import free_port
from benchmarks.provenance import provenance, save_record
from rerank_service.tools.bench.service import Load, bench_service
from rerank_service.tools.cli.bench_service import probe_line, service_table

_SERVE_CONFIG = Path(__file__).parents[1] / "serve_config.yaml"


def main(
    num_requests: Annotated[int, typer.Option("--requests", min=1)] = 16,
    num_passages: Annotated[int, typer.Option("--passages", min=1)] = 100,
    num_clients: Annotated[int, typer.Option("--clients", min=2, help="Clients in the load with many clients.")] = 16,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    json_path: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Starts a service and runs `rerank-service bench service` against it."""
    stop_on_signals()
    port = free_port()
    log = BENCH_FOLDER / "logs" / "service.log"
    with running(_command(port), port, len(os.sched_getaffinity(0)), log) as server:
        load = Load(server.url, (1, num_clients), num_requests, num_passages, 128, repeats, server.pid)
        figures = asdict(bench_service(load))
    console = Console()
    console.print(service_table(figures, f"{num_requests} requests; median of {repeats} runs"))
    console.print(probe_line(figures), highlight=False)
    if json_path:
        record = provenance(["rerank-service", "ray", "torch", "transformers"])
        record["command"] = " ".join(["python -m benchmarks.service", *sys.argv[1:]])
        settings = {"num_requests": num_requests, "num_passages": num_passages, "repeats": repeats}
        record |= {"settings": settings, "results": figures}
        save_record(json_path, record)


def _command(port: int) -> Command:
    """The command `serve run` with the repository's configuration, on a free port."""
    document = yaml.safe_load(_SERVE_CONFIG.read_text(encoding="utf-8"))
    document["http_options"]["port"] = port
    path = BENCH_FOLDER / "configs" / "service.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    arguments = [program(OURS, "serve"), "run", "--address", "local", str(path)]
    return Command(arguments, "/v1/health/ready", {"RAY_USAGE_STATS_ENABLED": "0"})


if __name__ == "__main__":
    typer.run(main)
