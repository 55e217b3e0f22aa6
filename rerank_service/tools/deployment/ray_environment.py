"""Environment variables that Ray reads when its processes start. Set them on every node before `ray start`.

`rerank-service serve` sets the variables that are not set yet. Commands print them without importing FastAPI, so two
values from `http.proxies` are repeated here as literals; a test compares them.
"""

import sys
from collections.abc import MutableMapping
from pathlib import Path

__all__ = ["HAPROXY_ENVIRONMENT", "RAY_ENVIRONMENT", "set_ray_environment"]

RAY_ENVIRONMENT = {
    # A self-hosted service sends no usage statistics.
    "RAY_USAGE_STATS_ENABLED": "0",
    # Clients cannot turn off timeouts with a header, and no request is lost when an ingress dies.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "rerank_service.http.proxies.headers:proxy_middlewares",
    # Serve updates its own gauges and counters every 5 seconds instead of every 0.1; Ray exports them every 10 seconds.
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "5000",
    # Requests of a hung replica move to other replicas at once, not after the time for a graceful shutdown.
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    # A dead HAProxy or proxy is replaced after three failed checks: 4 to 5 seconds without connections instead of 28.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    # A dead node is detected after 3 to 4 seconds instead of 15; until then, requests to the node wait.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}

HAPROXY_ENVIRONMENT = {
    # HAProxy instead of Serve's own proxies, directly in front of the ingress replicas.
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # gRPC between ingresses and replicas, with one thread fewer in each. Do not set without HAProxy (ray issue 62982).
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # A shard may be one passage of 32 MB; gRPC's default limit is 4 MB.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(256 * 1024 * 1024),
    # If an ingress dies before it answers, HAProxy sends the request to another ingress, as `http.proxies.retry` does
    # without HAProxy. For this, the whole request must fit in HAProxy's buffer, into which `rerank-haproxy` reads it.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_RETRIES": "1",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(256 * 1024),
    # After a reload, the old HAProxy process finishes its requests; limits.request_timeout_s allows up to ten minutes.
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "660",
    # An ingress that is being removed still accepts requests for this time, until every HAProxy has been reloaded.
    # Serve's default of 30 s is for load balancers that address the ingresses directly.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
    # Every HAProxy, also that of another node, names the client's address to the ingress; uvicorn believes it.
    "FORWARDED_ALLOW_IPS": "*",
    "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(sys.executable).with_name("rerank-haproxy")),
}
"""Variables to add to `RAY_ENVIRONMENT` on every node of a cluster with HAProxy in front. They work only on Linux;
HAProxy itself is installed with Ray."""


def set_ray_environment(environment: MutableMapping[str, str], *, haproxy: bool = False) -> None:
    """Adds the variables that are not set yet to `environment`."""
    for name, value in (RAY_ENVIRONMENT | (HAPROXY_ENVIRONMENT if haproxy else {})).items():
        environment.setdefault(name, value)
