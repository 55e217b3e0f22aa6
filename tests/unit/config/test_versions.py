"""The rules for versions of models, and what the rest of the configuration makes of them."""

from typing import Any

import pytest
import yaml

from rerank_service.config import parse_config, parse_serve_config
from rerank_service.errors import ConfigError

MODEL = {"id": "org/model", "checkpoint": {"source": "/first"}}
SECOND = {"id": "org/second", "checkpoint": {"source": "/second"}}


def version(name: str = "org/model-v2", **settings: Any) -> dict[str, Any]:
    shares = settings.pop("version", {"traffic_percent": 5})
    return {"id": name, "checkpoint": {"source": "/new"}, "version": {"of": "org/model"} | shares, **settings}


def test_a_version_is_neither_listed_nor_the_default_nor_required() -> None:
    config = parse_config({"models": [version(), MODEL, SECOND]})

    assert [model.id for model in config.models] == ["org/model-v2", "org/model", "org/second"]
    assert [model.id for model in config.listed_models] == ["org/model", "org/second"]
    assert config.default_model_id == "org/model"
    assert [model.id for model in config.probed_models] == ["org/model", "org/second"]
    assert list(config.versions) == ["org/model-v2"]
    assert config.versions["org/model-v2"].traffic_percent == 5


@pytest.mark.parametrize(
    ("models", "problem"),
    [
        ([MODEL, version(version={"of": "org/other"})], "version.of 'org/other' must be the id of a model that is not"),
        ([MODEL, version(), version("org/v3", version={"of": "org/model-v2"})], "version.of 'org/model-v2' must be"),
        ([version(version={"of": "org/model-v2"})], "every model is a version of another model"),
        (
            [MODEL, version(version={"traffic_percent": 60}), version("org/v3", version={"traffic_percent": 41})],
            "the versions of org/model have more than 100 traffic_percent together",
        ),
        ([MODEL, version(version={"traffic_percent": 5, "shadow_percent": 5})], "either traffic_percent or shadow"),
        ([MODEL, version(version={"traffic_percent": 101})], "must be less than or equal to 100, not 101"),
        ([MODEL, version(autoscaling={"min_replicas": 0})], "a version needs replicas that always run"),
    ],
)
def test_contradictions_are_refused(models: list[dict[str, Any]], problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config({"models": models})

    assert problem in str(refused.value)


def test_a_version_in_a_pool_is_refused() -> None:
    with pytest.raises(ConfigError, match="a version needs replicas that always run"):
        parse_config({"models": [MODEL, version(pool="shared")], "pools": [{"name": "shared"}]})


def test_a_version_cannot_be_the_default_model() -> None:
    with pytest.raises(ConfigError, match=r"service\.default_model 'org/model-v2' is a version"):
        parse_config({"models": [MODEL, version()], "service": {"default_model": "org/model-v2"}})


@pytest.mark.parametrize("own_args", [{}, {"version": {"of": "org/model"}}], ids=["without", "with other shares"])
def test_the_application_of_a_version_needs_no_shares(own_args: dict[str, Any]) -> None:
    """Only the ingress uses the shares, so that changing them does not change the replicas' application."""
    settings = {"id": "org/model-v2", "checkpoint": {"source": "/new"}}
    document = {
        "applications": [
            {"name": "v2", "import_path": "rerank_service.app:build_model", "args": settings | own_args},
            {
                "name": "rerank",
                "import_path": "rerank_service.app:build_app",
                "args": {"models": [MODEL, version(application="v2")]},
            },
        ]
    }

    config = parse_serve_config(yaml.safe_dump(document), "serve.yaml")

    assert config.models[1].version is not None
