import ast
import inspect
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from rerank_service import config
from rerank_service.client import Client
from rerank_service.config import LimitsConfig, RerankConfig, load_config, parse_config
from rerank_service.errors import ConfigError
from rerank_service.tools.cli.plan import plan

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
        ({}, "models: required, but missing"),
        ({"models": []}, "models: must have at least 1 item, not 0"),
        (changed(batchign={}), r"models[0].batchign: unknown setting; did you mean `batching`\?$"),
        (changed(windowtokens=3), r"models[0].windowtokens: unknown setting; did you mean `window_tokens`\?$"),
        (changed(engine={"dtipe": "int8"}), r"engine.dtipe: unknown setting; did you mean `dtype`\?$"),
        (changed(engine={"yes_no": {"yess": "y"}}), r"engine.yes_no.yess: unknown setting"),
        (changed(zzz=3), "models[0].zzz: unknown setting$"),
        (
            {"models": [MODEL], "limits": {"request_timeout_s": float("inf")}},
            "limits.request_timeout_s: must be a finite number, not inf",
        ),
        (changed(batching=3), "models[0].batching: must be a mapping of settings, not 3"),
        (
            changed(batching={"max_batch_tokens": 0}),
            "models[0].batching.max_batch_tokens: must be greater than 0, not 0",
        ),
        (changed(window_tokens=4), "models[0].window_tokens: must be greater than or equal to 16, not 4"),
        (changed(checkpoint={"source": "nvidia/x"}), "needs revision: its 40-digit commit"),
        (changed(checkpoint={"source": "nvidia/x", "revision": "main"}), "needs revision"),
        (changed(checkpoint={"source": "what is this"}), "neither 'package:NAME', a folder"),
        (
            changed(checkpoint={"source": "s3://b/x"}),
            "needs revision: the 64 digits that `rerank-service pull s3://b/x`",
        ),
        (changed(checkpoint={"source": "s3://b/x", "revision": "0" * 40}), "needs revision: the 64 digits"),
        (
            changed(checkpoint={"source": "ftp://me:secret@h/x"}),
            "ftp:// must be followed by a path without credentials",
        ),
        (changed(engine={"device": "tpu"}), "models[0].engine.device: must match pattern .*, not 'tpu'"),
        (changed(engine={"dtype": "int3"}), "models[0].engine.dtype: must be 'auto', .*, not 'int3'"),
        (changed(engine={"prompt_template": "{query}"}), "must contain both {query} and {passage}"),
        (changed(autoscaling={"min_replicas": 3, "max_replicas": 2}), "min_replicas 3 is greater than max_replicas 2"),
        (
            changed(autoscaling={"look_back_period_s": 1}),
            "look_back_period_s 1 must be greater than metrics_interval_s 1",
        ),
        ({"models": [MODEL, MODEL]}, "two models have the same id: nvidia/a; rename one"),
        ({"models": [MODEL, MODEL | {"id": "nvidia_a"}]}, "give the same deployment name"),
        ({"models": [MODEL, MODEL | {"id": "b", "aliases": ["NVIDIA/A"]}]}, "belongs to both 'nvidia/a' and 'b'"),
        ({"models": [MODEL], "service": {"default_model": "b"}}, "default_model 'b' is not among models"),
        (changed(pool="small"), "a pool that is missing from pools: small"),
        ({"models": [MODEL], "pools": [{"name": "small"}]}, "a pool that no model uses: small"),
        (
            changed(pool="small", replica={"num_cpus": 2}),
            "a model in a pool cannot set replica: set them on the pool 'small'",
        ),
    ],
)
def test_a_wrong_configuration_raises_one_readable_error(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.sub(r"([(\[{])", r"\\\1", message)) as caught:
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


def test_a_model_may_have_its_own_application(tmp_path: Path) -> None:
    path = serve_file(tmp_path, apart("a", MODEL), ingress(MODEL | {"application": "a"}, MODEL | {"id": "b"}))

    assert [model.application for model in load_config(path).models] == ["a", None]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (apart("x", MODEL), "application 'a' must be in this file"),
        (apart("a", MODEL | {"window_tokens": 64}), "and the same settings as the model"),
    ],
)
def test_a_model_has_the_same_settings_in_both_applications(
    tmp_path: Path, other: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(serve_file(tmp_path, ingress(MODEL | {"application": "a"}), other))


def test_an_application_that_no_model_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model uses these applications: a"):
        load_config(serve_file(tmp_path, ingress(MODEL), apart("a", MODEL)))


def test_readiness_does_not_wait_for_models_started_on_demand() -> None:
    rare = {"autoscaling": {"min_replicas": 0}}
    models = [MODEL, MODEL | {"id": "rare"} | rare, *(MODEL | {"id": f"pooled-{n}", "pool": "p"} for n in range(3))]
    config = parse_config({"models": models, "pools": [{"name": "p"}]})

    assert [model.id for model in config.probed_models] == ["nvidia/a", "pooled-0"]


def test_the_default_shard_size_depends_on_the_hardware_of_the_replicas() -> None:
    gpus = {"replica": {"num_gpus": 1}}
    config = parse_config(
        {
            "models": [MODEL, MODEL | {"id": "b"} | gpus, MODEL | {"id": "c", "pool": "p"}],
            "pools": [{"name": "p"} | gpus],
        }
    )

    assert [config.shard_tokens_of(model) for model in config.models] == [4_096, 16_384, 16_384]


def test_the_default_model_is_the_first_unless_the_configuration_names_another() -> None:
    two = [MODEL, MODEL | {"id": "b", "aliases": ["bee"]}]
    assert RerankConfig.model_validate({"models": two}).default_model_id == "nvidia/a"
    assert RerankConfig.model_validate({"models": two, "service": {"default_model": "Bee"}}).default_model_id == "Bee"


def test_a_deployment_name_is_derived_from_the_id() -> None:
    (model,) = RerankConfig.model_validate(changed(id="nvidia/llama-3.2 (x)")).models
    assert model.deployment_name == "nvidia_llama-3.2_x_"


@pytest.mark.parametrize("text", ["", "a: 1", "applications: []", "applications: 5", "a: [", "applications: [{}]"])
def test_the_message_names_a_file_that_is_not_a_serve_configuration(tmp_path: Path, text: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"serve\.yaml"):
        load_config(path)


def test_a_repeated_key_is_refused_and_a_merged_key_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("applications:\n- args: {}\n  args: {models: []}\n")
    with pytest.raises(ConfigError, match=r"line 3: the key 'args' occurs twice in one mapping; remove one"):
        load_config(path)

    path.write_text(
        "applications: [{args: {models: [&a {id: a, checkpoint: &c {source: /a}}, {<<: *a, id: b}, "
        "{id: c, checkpoint: {<<: *c, source: /c}}]}}]"
    )
    assert [model.id for model in load_config(path).models] == ["a", "b", "c"]


def test_the_message_names_a_missing_file(tmp_path: Path) -> None:
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


def test_the_configuration_imports_nothing_heavy() -> None:
    heavy = {"ray", "torch", "transformers", "fastapi"}
    for path in Path(inspect.getfile(config)).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom | ast.Import):
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
                assert not heavy & {module.partition(".")[0] for module in modules}, path


def test_a_configuration_survives_pickling() -> None:
    settings = load_config(ROOT / "serve_config.yaml")
    assert pickle.loads(pickle.dumps(settings)) == settings  # noqa: S301 - our own bytes


def test_the_client_and_the_planner_have_the_defaults_of_the_service() -> None:
    """Both repeat the values: the client is installed without the service, and the command line must start fast."""
    limits = LimitsConfig()
    client = inspect.signature(Client).parameters
    assert client["timeout_s"].default == limits.request_timeout_s
    assert client["max_passages"].default == limits.max_passages
    assert inspect.signature(plan).parameters["timeout_s"].default == limits.request_timeout_s
