import ast
import inspect
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from rerank_service import config
from rerank_service.config import RerankConfig, load_config, parse_config
from rerank_service.errors import ConfigError

ROOT = Path(__file__).parents[2]
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
        (changed(engine={"device": "tpu"}), "models.0.engine.device: .*, not 'tpu'"),
        (changed(engine={"dtype": "int3"}), "models.0.engine.dtype"),
        (changed(engine={"prompt_template": "{query}"}), "needs both {query} and {passage}"),
        (changed(autoscaling={"min_replicas": 3, "max_replicas": 2}), "min_replicas 3 is above max_replicas 2"),
        (changed(autoscaling={"look_back_period_s": 1}), "look_back_period_s must be above"),
        ({"models": [MODEL, MODEL]}, "two models have the same id"),
        ({"models": [MODEL, MODEL | {"id": "nvidia_a"}]}, "the same deployment name"),
        ({"models": [MODEL, MODEL | {"id": "b", "aliases": ["NVIDIA/A"]}]}, "belongs to both 'nvidia/a' and 'b'"),
        ({"models": [MODEL], "service": {"default_model": "b"}}, "default_model 'b' is not among models"),
    ],
)
def test_a_bad_configuration_is_one_readable_error(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")) as caught:
        parse_config(args)

    assert "pydantic" not in str(caught.value)


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
