"""Measures the CPU time of routers and of Serve's single controller by number of replicas, with generated reports.

    python -m benchmarks.control_plane [--json benchmarks/results/control-plane.json]

No cluster is started. One process runs the real code: it builds, encodes and receives the reports and makes the
decisions. The figures are medians over rounds, in CPU time of one thread; they exclude Ray's transport of messages.
"""

import pickle
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import typer
from ray.serve._private import autoscaling_metrics_codec
from ray.serve._private.autoscaling_state import DeploymentAutoscalingState
from ray.serve._private.common import (
    RUNNING_REQUESTS_KEY,
    DeploymentHandleSource,
    DeploymentID,
    HandleMetricReport,
    ReplicaID,
    ReplicaMetricReport,
    RunningReplicaInfo,
    TimeStampedValue,
)
from ray.serve._private.utils import compress_metric_report, decompress_metric_report
from ray.serve.config import AutoscalingConfig as ServeAutoscalingConfig
from rich.console import Console

from benchmarks.provenance import provenance, save_record
from rerank_service.app import serve_autoscaling
from rerank_service.config import AutoscalingConfig
from rerank_service.messages import OFFERED, SPEED, START, WAITING, ReplicaLoad
from rerank_service.routing.autoscaling import ModelLoad, TokenPolicy
from rerank_service.routing.replica_table import ReplicaTable

_DEPLOYMENT = DeploymentID("model", "rerank")
_POINTS = 5
"""Points of a series; one is recorded every `look_back_period_s / 5`."""
_POINT_S = 0.6
_ROUNDS = 9


def measure(num_replicas: int, num_handles: int) -> dict[str, float]:
    """Costs, in microseconds and bytes, for the given numbers of replicas and ingresses."""
    replicas = [ReplicaID(f"{number:08x}", _DEPLOYMENT) for number in range(num_replicas)]
    replica_report = compress_metric_report(_replica_report(replicas[0]))
    handle_report = _handle_report(0, replicas)
    encoded = autoscaling_metrics_codec.encode(handle_report)
    state = _state(replicas, num_handles)
    policy = TokenPolicy(0.8, 2.0, 300.0, 4.0)
    load = ModelLoad(5e6, 5e6, 1e6, 2e5, 60.0, 0.0)
    table, names = ReplicaTable(), [replica.unique_id for replica in replicas]
    for number, name in enumerate(names):
        table.send(number, str(number), name, random.choice([0, 4_000, 12_000]))  # noqa: S311
        table.add_report(ReplicaLoad(name, random.choice([0, 4_000, 12_000]), 2e5, 0.0))  # noqa: S311
    return {
        "replicas": num_replicas,
        "handles": num_handles,
        "route_a_shard_us": _us(lambda: table.best(names, str, 16_000), 20),
        "take_in_replica_report_us": _us(lambda: _take_in_replica(state, replica_report), 20),
        "encode_handle_report_us": _us(lambda: autoscaling_metrics_codec.encode(handle_report), 3),
        "take_in_handle_report_us": _us(lambda: _take_in_handle(state, encoded), 5),
        "decide_us": _us(lambda: state.get_decision_num_replicas(num_replicas), 1),
        "policy_alone_us": _us(lambda: policy.wanted_replicas(load), 200),
        "replica_report_bytes": len(replica_report),
        "handle_report_bytes": len(encoded),
        "membership_bytes_a_replica": _membership_bytes(replicas) / num_replicas,
    }


def _state(replicas: list[ReplicaID], num_handles: int) -> DeploymentAutoscalingState:
    """The controller's autoscaling state of a model to which all replicas and ingresses report."""
    state = DeploymentAutoscalingState(_DEPLOYMENT)
    options = ServeAutoscalingConfig(**serve_autoscaling(AutoscalingConfig(max_replicas=2_000)))
    info: Any = SimpleNamespace(
        deployment_config=SimpleNamespace(autoscaling_config=options, gang_scheduling_config=None),
        target_capacity=None,
        target_capacity_direction=None,
        config_changed=lambda other: False,
    )
    state.register(info, len(replicas))
    state.update_running_replica_ids(replicas)
    for replica in replicas:
        state.record_request_metrics_for_replica(_replica_report(replica))
    for number in range(num_handles):
        _take_in_handle(state, autoscaling_metrics_codec.encode(_handle_report(number, replicas)))
    return state


def _take_in_replica(state: DeploymentAutoscalingState, report: bytes) -> None:
    state.record_request_metrics_for_replica(decompress_metric_report(report))


def _take_in_handle(state: DeploymentAutoscalingState, report: bytes) -> None:
    state.record_columnar_metrics_for_handle(autoscaling_metrics_codec.decode_handle_flat(report))


def _replica_report(replica: ReplicaID) -> ReplicaMetricReport:
    values = {OFFERED: 5_000.0, WAITING: 8_000.0, SPEED: 2e5, START: 60.0}
    return ReplicaMetricReport(replica, {name: _series(value) for name, value in values.items()}, time.time())


def _handle_report(number: int, replicas: list[ReplicaID]) -> HandleMetricReport:
    running = {replica.to_full_id_str(): _series(3.0) for replica in replicas}
    source = DeploymentHandleSource.REPLICA
    return HandleMetricReport(
        _DEPLOYMENT,
        f"handle{number}",
        f"{number:032x}",
        source,
        _series(0.0),
        {RUNNING_REQUESTS_KEY: running},
        time.time(),
    )


def _series(value: float) -> list[TimeStampedValue]:
    now = time.time()
    return [
        TimeStampedValue(now - _POINT_S * (_POINTS - point) - random.random() * 0.1, value * random.random())  # noqa: S311
        for point in range(_POINTS)
    ]


def _membership_bytes(replicas: list[ReplicaID]) -> int:
    """Number of bytes that the controller sends to each handle when a replica is added or removed."""
    infos = [
        RunningReplicaInfo(replica, "n" * 56, "10.0.0.1", None, f"SERVE_REPLICA::{replica.to_full_id_str()}", 1_024)
        for replica in replicas
    ]
    return len(pickle.dumps(infos))


def _us(call: Callable[[], Any], repeats: int) -> float:
    taken = []
    for _ in range(_ROUNDS):
        started = time.thread_time()
        for _ in range(repeats):
            call()
        taken.append((time.thread_time() - started) / repeats)
    return round(1e6 * statistics.median(taken), 1)


def main(
    json_path: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
    sizes: Annotated[
        str, typer.Option(help="Numbers of replicas and ingresses, such as 100x5.")
    ] = "10x1,100x5,300x15,1000x50",
) -> None:
    """Measures each size."""
    results = [measure(*map(int, size.split("x"))) for size in sizes.split(",")]
    Console().print_json(data=results)
    if json_path:
        record = provenance(["rerank-service", "ray"]) | {"results": results}
        save_record(json_path, record)


if __name__ == "__main__":
    typer.run(main)
