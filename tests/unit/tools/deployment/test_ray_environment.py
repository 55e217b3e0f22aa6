"""What Ray's processes are told at their start; `test_cluster_kuberay.py` holds the manifests against it."""

from rerank_service.tools.deployment.ray_environment import HAPROXY_ENVIRONMENT, RAY_ENVIRONMENT, set_ray_environment


def test_only_what_is_missing_is_added() -> None:
    environment = {"RAY_USAGE_STATS_ENABLED": "1"}
    set_ray_environment(environment)
    assert environment == RAY_ENVIRONMENT | {"RAY_USAGE_STATS_ENABLED": "1"}
    set_ray_environment(environment, haproxy=True)
    assert environment == RAY_ENVIRONMENT | HAPROXY_ENVIRONMENT | {"RAY_USAGE_STATS_ENABLED": "1"}
