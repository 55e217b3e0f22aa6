"""Starts the stack with simulated devices behind Serve's own proxy or HAProxy."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from benchmarks.peers.environments import BENCH_FOLDER, OURS, program
from benchmarks.peers.processes import Command, Server, running
from benchmarks.ports import free_port
from rerank_service.tools.deployment.ray_environment import HAPROXY_ENVIRONMENT, RAY_ENVIRONMENT

__all__ = ["MODEL", "Stack", "started"]

MODEL = "simulated"
_ROOT = Path(__file__).parents[2]
_CPUS = 2

Stack = dict[str, Any]
"""`args` of `simulated.build_app`, without the settings that `started` adds."""


@contextmanager
def started(
    stack: Stack,
    *,
    replicas: tuple[int, int] = (1, 1),
    haproxy: bool = False,
    model: dict[str, Any] | None = None,
    overrides: Sequence[dict[str, Any]] = (),
    **settings: Any,
) -> Iterator[Server]:
    """Runs the service. `replicas` are the minimum and maximum number of replicas; `model` extends the settings of the
    model, and `settings` extends those of the service. `overrides` are Serve's options of deployments.
    """
    port = free_port()
    path = BENCH_FOLDER / "configs" / "stack.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    document = _document(stack, port, replicas, model or {}, settings, haproxy)
    document["applications"][0]["deployments"] = list(overrides)
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    variables: dict[str, str | None] = {"PYTHONPATH": str(_ROOT), **RAY_ENVIRONMENT}
    if haproxy:
        variables |= HAPROXY_ENVIRONMENT
        variables["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"] = "0"
    arguments = [program(OURS, "serve"), "run", "--address", "local", str(path)]
    log = BENCH_FOLDER / "logs" / "stack.log"
    with running(Command(arguments, "/v1/health/ready", variables), port, _CPUS, log) as server:
        yield server


def _document(
    stack: Stack, port: int, replicas: tuple[int, int], model: dict[str, Any], settings: dict[str, Any], haproxy: bool
) -> dict[str, Any]:
    fewest, most = replicas
    base = {
        "id": MODEL,
        "checkpoint": {"source": "/simulated"},
        "replica": {"num_cpus": 0},
        "autoscaling": {"min_replicas": fewest, "max_replicas": most},
    }
    application = {
        "name": "rerank",
        "route_prefix": "/",
        "import_path": "benchmarks.stack.simulated:build_app",
        "args": {**stack, "settings": {"models": [base | model], **settings}},
    }
    http_options = {"host": "0.0.0.0" if haproxy else "127.0.0.1", "port": port}  # noqa: S104 - HAProxy needs this address
    return {"proxy_location": "HeadOnly", "http_options": http_options, "applications": [application]}
