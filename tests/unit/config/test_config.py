import ast
import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from rerank_service import config
from rerank_service.config import RerankConfig, load_config, parse_config
from rerank_service.errors import ConfigError

ROOT = Path(__file__).parents[3]
MODEL = {"id": "nvidia/a", "checkpoint": {"source": "/models/a"}}


def changed(**changes: Any) -> dict[str, Any]:
    return {"models": [MODEL | changes]}


@pytest.mark.parametrize("name", ["serve_config.yaml", "cluster/serve_config.gpu.yaml"])
def test_the_shipped_configurations_are_valid(name: str) -> None:
    settings = load_config(ROOT / name)
    assert settings.models


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "models: Field required"),
        ({"models": []}, "models: Tuple should have at least 1 item"),
        (changed(batchign={}), "models.0.batchign: Extra inputs are not permitted"),
        (
            changed(batching={"max_batch_tokens": 0}),
            "models.0.batching.max_batch_tokens: Input should be greater than 0, not 0",
        ),
        (changed(window_tokens=4), "models.0.window_tokens: .*16, not 4"),
        (changed(checkpoint={"source": "nvidia/x"}), "needs revision: its 40-digit commit"),
        (changed(checkpoint={"source": "nvidia/x", "revision": "main"}), "needs revision"),
        (changed(checkpoint={"source": "what is this"}), "neither 'package:NAME', a folder"),
        (
            changed(checkpoint={"source": "s3://b/x"}),
            "needs revision: the 64 digits that `rerank-service pull s3://b/x`",
        ),
        (changed(checkpoint={"source": "s3://b/x", "revision": "0" * 40}), "needs revision: the 64 digits"),
        (changed(checkpoint={"source": "ftp://me:secret@h/x"}), "ftp:// is to be followed by a path, without credent"),
        (changed(engine={"device": "tpu"}), "models.0.engine.device: .*, not 'tpu'"),
        (changed(engine={"dtype": "int3"}), "models.0.engine.dtype"),
        (changed(engine={"prompt_template": "{query}"}), "needs both {query} and {passage}"),
        (changed(autoscaling={"min_replicas": 3, "max_replicas": 2}), "min_replicas 3 is above max_replicas 2"),
        (changed(autoscaling={"look_back_period_s": 1}), "look_back_period_s must be above"),
        ({"models": [MODEL, MODEL]}, "two models have the same id"),
        ({"models": [MODEL, MODEL | {"id": "nvidia_a"}]}, "the same deployment name"),
        ({"models": [MODEL, MODEL | {"id": "b", "aliases": ["NVIDIA/A"]}]}, "belongs to both 'nvidia/a' and 'b'"),
        ({"models": [MODEL], "service": {"default_model": "b"}}, "default_model 'b' is not among models"),
        (changed(pool="small"), "a pool that is not among pools: small"),
        ({"models": [MODEL], "pools": [{"name": "small"}]}, "one that no model names: small"),
        (changed(pool="small", replica={"num_cpus": 2}), "a model in a pool has no replica of its own"),
    ],
)
def test_a_bad_configuration_is_one_readable_error(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")) as caught:
        parse_config(args)

    assert "pydantic" not in str(caught.value)


def serve_file(folder: Path, *applications: dict[str, Any]) -> Path:
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump({"applications": list(applications)}))
    return path


def ingress(*models: dict[str, Any]) -> dict[str, Any]:
    return {"name": "rerank", "import_path": "rerank_service.app:build_app", "args": {"models": list(models)}}


def apart(name: str, model: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "import_path": "rerank_service.app:build_model", "args": model}


def test_a_model_may_have_an_application_of_its_own(tmp_path: Path) -> None:
    path = serve_file(tmp_path, apart("a", MODEL), ingress(MODEL | {"application": "a"}, MODEL | {"id": "b"}))

    assert [model.application for model in load_config(path).models] == ["a", None]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (apart("x", MODEL), "application 'a' must be in this file"),
        (apart("a", MODEL | {"window_tokens": 64}), "its args must be the model's own"),
    ],
)
def test_both_applications_must_be_told_the_same(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(serve_file(tmp_path, ingress(MODEL | {"application": "a"}), other))


def test_an_application_that_no_model_names_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model names the application a"):
        load_config(serve_file(tmp_path, ingress(MODEL), apart("a", MODEL)))


def test_what_is_not_always_there_does_not_hold_up_readiness() -> None:
    rare = {"autoscaling": {"min_replicas": 0}}
    models = [MODEL, MODEL | {"id": "rare"} | rare, *(MODEL | {"id": f"pooled-{n}", "pool": "p"} for n in range(3))]
    config = parse_config({"models": models, "pools": [{"name": "p"}]})

    assert [model.id for model in config.probed_models] == ["nvidia/a", "pooled-0"]


def test_shards_suit_the_hardware_of_whoever_scores() -> None:
    gpus = {"replica": {"num_gpus": 1}}
    config = parse_config(
        {
            "models": [MODEL, MODEL | {"id": "b"} | gpus, MODEL | {"id": "c", "pool": "p"}],
            "pools": [{"name": "p"} | gpus],
        }
    )

    assert [config.shard_tokens_of(model) for model in config.models] == [4_096, 16_384, 16_384]


def test_the_default_model_is_the_first_or_the_named() -> None:
    two = [MODEL, MODEL | {"id": "b", "aliases": ["bee"]}]
    assert RerankConfig.model_validate({"models": two}).default_model_id == "nvidia/a"
    assert RerankConfig.model_validate({"models": two, "service": {"default_model": "Bee"}}).default_model_id == "Bee"


def test_deployment_names_follow_from_ids() -> None:
    (model,) = RerankConfig.model_validate(changed(id="nvidia/llama-3.2 (x)")).models
    assert model.deployment_name == "nvidia_llama-3.2_x_"


@pytest.mark.parametrize("text", ["", "a: 1", "applications: []", "applications: 5", "a: [", "applications: [{}]"])
def test_a_file_that_is_no_serve_configuration_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"serve\.yaml"):
        load_config(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")


def test_every_setting_is_documented() -> None:
    models = [item for item in vars(config).values() if inspect.isclass(item) and issubclass(item, BaseModel)]
    undocumented = [
        f"{model.__name__}.{name}"
        for model in models
        for name, field in model.model_fields.items()
        if not field.description
    ]
    assert undocumented == []


def test_the_settings_module_imports_nothing_heavy() -> None:
    tree = ast.parse(Path(inspect.getfile(config)).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {"ray", "torch", "transformers", "fastapi"} & {str(module).split(".")[0] for module in imported}
