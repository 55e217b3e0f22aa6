"""Environment variables that Ray reads when its processes start: set them on every node before `ray start`.

`rerank-service serve` sets those that are not set yet.
"""

import sys
from collections.abc import MutableMapping
from pathlib import Path

from rerank_service.http.proxies.headers import IMPORT_PATH
from rerank_service.http.proxies.retry import MAX_ATTEMPTS

__all__ = ["HAPROXY_ENVIRONMENT", "RAY_ENVIRONMENT", "set_ray_environment"]

RAY_ENVIRONMENT = {
    # A self-hosted service calls nobody.
    "RAY_USAGE_STATS_ENABLED": "0",
    # No client's header turns off timeouts, and a dead ingress costs no request.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": IMPORT_PATH,
    # What a hung replica has is scored elsewhere at once, not after its time for a graceful end.
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    # A dead node is known after 3 to 4 seconds instead of 15; until then its requests wait.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}

HAPROXY_ENVIRONMENT = {
    # HAProxy in place of Serve's own proxies, straight to the ingress replicas. It listens on all interfaces.
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # gRPC between ingress and replicas, one thread less in each. Never without HAProxy (ray issue 62982).
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # A shard may be one passage of 32 MB; gRPC's own limit is 4.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(256 * 1024 * 1024),
    # A request whose ingress dies before it has said anything goes to another, as the middleware does elsewhere; for
    # that HAProxy must hold all of it, in a buffer of this size, which our wrapper tells it to.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_RETRIES": str(MAX_ATTEMPTS - 1),
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(256 * 1024),
    # A HAProxy that a reload has replaced finishes its requests: limits.request_timeout_s may be up to ten minutes.
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "660",
    # A leaving ingress accepts for this long, until every HAProxy has been reloaded without it. Serve's 30 s are for
    # load balancers that know the ingresses themselves.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
    "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(sys.executable).with_name("rerank-haproxy")),
}
"""On top of `RAY_ENVIRONMENT`, on every node of a cluster whose front is HAProxy (Linux; the wheel comes with Ray)."""


def set_ray_environment(environment: MutableMapping[str, str], *, haproxy: bool = False) -> None:
    """Adds what is missing."""
    for name, value in (RAY_ENVIRONMENT | (HAPROXY_ENVIRONMENT if haproxy else {})).items():
        environment.setdefault(name, value)
