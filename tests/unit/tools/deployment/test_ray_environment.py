"""The environment of Ray's processes. `tests/unit/cluster/test_kuberay.py` compares the manifests with it."""

from importlib import import_module

from rerank_service.http.proxies.retry import MAX_ATTEMPTS
from rerank_service.tools.deployment.ray_environment import HAPROXY_ENVIRONMENT, RAY_ENVIRONMENT, set_ray_environment


def test_only_missing_variables_are_added() -> None:
    environment = {"RAY_USAGE_STATS_ENABLED": "1"}
    set_ray_environment(environment)
    assert environment == RAY_ENVIRONMENT | {"RAY_USAGE_STATS_ENABLED": "1"}
    set_ray_environment(environment, haproxy=True)
    assert environment == RAY_ENVIRONMENT | HAPROXY_ENVIRONMENT | {"RAY_USAGE_STATS_ENABLED": "1"}


def test_values_repeated_as_literals_equal_those_of_the_proxies() -> None:
    module, _, function = RAY_ENVIRONMENT["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"].partition(":")

    assert getattr(import_module(module), function)()
    assert HAPROXY_ENVIRONMENT["RAY_SERVE_HAPROXY_RETRIES"] == str(MAX_ATTEMPTS - 1)
