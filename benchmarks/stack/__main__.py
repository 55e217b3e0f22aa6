"""Measures the stack around simulated devices; one subcommand per measurement.

python -m benchmarks.stack overhead|scaling|router|overload|step|costs|control|open-load [--json FILE]
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.peers.processes import stop_on_signals
from benchmarks.provenance import provenance, save_record
from benchmarks.stack.control import measure_control
from benchmarks.stack.costs import measure_costs
from benchmarks.stack.open_load import measure_open_load
from benchmarks.stack.overhead import measure_overhead
from benchmarks.stack.overload import measure_overload
from benchmarks.stack.router import measure_routers
from benchmarks.stack.scaling import measure_scaling
from benchmarks.stack.step import measure_step

app = typer.Typer(add_completion=False, help="Measures the stack around simulated devices.")
Json = Annotated[Path | None, typer.Option("--json", help="File for the figures.")]
HaProxy = Annotated[bool, typer.Option("--haproxy/--serve-proxy", help="Proxy in front of the ingresses.")]


@app.command()
def overhead(repeats: Annotated[int, typer.Option(min=1)] = 3, json_path: Json = None) -> None:
    """Measures the CPU-milliseconds per request with a null engine."""
    _finish(measure_overhead(repeats), json_path)


@app.command()
def scaling(haproxy: HaProxy = False, replicas: str = "1,2,4,8", json_path: Json = None) -> None:
    """Measures the throughput as a share of device throughput, by number of replicas."""
    _finish(measure_scaling([int(count) for count in replicas.split(",")], haproxy), json_path)


@app.command()
def overload(haproxy: HaProxy = False, json_path: Json = None) -> None:
    """Measures the goodput at three times the capacity."""
    _finish(measure_overload(haproxy), json_path)


@app.command()
def router(rounds: Annotated[int, typer.Option(min=1)] = 2, json_path: Json = None) -> None:
    """Measures the latency with the service's request router and with Serve's own."""
    _finish(measure_routers(rounds), json_path)


@app.command()
def step(haproxy: HaProxy = False, json_path: Json = None) -> None:
    """Measures autoscaling from one replica to four and back."""
    _finish(measure_step(haproxy), json_path)


@app.command()
def costs(haproxy: HaProxy = False, json_path: Json = None) -> None:
    """Measures the CPU-milliseconds per request, by process, request size and number of shards."""
    _finish(measure_costs(haproxy), json_path)


@app.command()
def control(json_path: Json = None) -> None:
    """Measures the CPU use of Serve's controller behind HAProxy, by number of replicas."""
    _finish(measure_control(), json_path)


@app.command()
def open_load(haproxy: HaProxy = False, replicas: str = "1,2,4,8", json_path: Json = None) -> None:
    """Measures the latency at 70% load by number of replicas, to validate the simulation."""
    _finish(measure_open_load([int(count) for count in replicas.split(",")], haproxy), json_path)


def _finish(results: Any, path: Path | None) -> None:
    Console().print_json(data=results)
    if path:
        record = provenance(["rerank-service", "ray"])
        record["command"] = " ".join(["python -m benchmarks.stack", *sys.argv[1:]])
        save_record(path, record | {"results": results})


if __name__ == "__main__":
    stop_on_signals()
    app()
