"""What Ray's processes are told at their start, in code and in the cluster configuration."""

import shlex
from pathlib import Path

from rerank_service.ray_environment import HAPROXY_ENVIRONMENT, RAY_ENVIRONMENT, set_ray_environment


def test_only_what_is_missing_is_added() -> None:
    environment = {"RAY_USAGE_STATS_ENABLED": "1"}
    set_ray_environment(environment)
    assert environment == RAY_ENVIRONMENT | {"RAY_USAGE_STATS_ENABLED": "1"}
    set_ray_environment(environment, haproxy=True)
    assert environment == RAY_ENVIRONMENT | HAPROXY_ENVIRONMENT | {"RAY_USAGE_STATS_ENABLED": "1"}


def test_the_cluster_configuration_names_all_of_it() -> None:
    text = (Path(__file__).parents[2] / "cluster" / "serve_config.gpu.yaml").read_text()
    variables = RAY_ENVIRONMENT | HAPROXY_ENVIRONMENT
    assert Path(variables.pop("RAY_SERVE_HAPROXY_BINARY_PATH")).name == "rerank-haproxy"
    assert "RAY_SERVE_HAPROXY_BINARY_PATH=$(command -v rerank-haproxy)" in text
    wanted = {f"{name}={shlex.quote(value)}" for name, value in variables.items() if name != "RAY_USAGE_STATS_ENABLED"}
    assert not {setting for setting in wanted if setting not in text.replace('"', "'")}
