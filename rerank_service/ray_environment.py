"""Environment variables that Ray reads when its processes start: set them on every node before `ray start`.

`rerank-service serve` sets those that are not set yet.
"""

from collections.abc import MutableMapping

from rerank_service.ingress.proxy import IMPORT_PATH

__all__ = ["RAY_ENVIRONMENT", "set_ray_environment"]

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


def set_ray_environment(environment: MutableMapping[str, str]) -> None:
    """Adds what is missing."""
    for name, value in RAY_ENVIRONMENT.items():
        environment.setdefault(name, value)
