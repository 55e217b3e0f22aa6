"""Deployments of commit 127c9e3 keep working: its configurations, commands, routes, metrics and imports.

`tests/compatibility/` contains the Serve configurations and the node environment of that commit (`git show
127c9e3:PATH`). Its `contract.json` was generated from the code of that commit: the commands with their options, the
keys and values of the configuration's JSON schema, the paths of the OpenAPI document, the metrics, and the client's
exported names.
"""

import json
import shlex
from collections.abc import Iterator
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from ray.serve import Application
from ray.serve.schema import ServeDeploySchema
from typer.testing import CliRunner

from rerank_service import client
from rerank_service.config import AuthConfig, RerankConfig, parse_serve_config
from rerank_service.telemetry.metrics import ALL_METRICS
from rerank_service.tools.cli.main import app
from tests.local_service import local_api
from tests.models import embedded_model

FOLDER = Path(__file__).parents[1] / "compatibility"
CONTRACT = json.loads((FOLDER / "contract.json").read_text())
FILES = [
    "serve_config.yaml",
    "cluster/serve_config.gpu.yaml",
    "cluster/compose/serve_config.cpu.yaml",
    "cluster/compose/serve_config.gpu.yaml",
    "cluster/ray-up/serve_config.yaml",
    "cluster/kuberay/base/rayservice.yaml",
    "cluster/kuberay/overlays/dev-cpu/rayservice.yaml",
    "cluster/kuberay/overlays/one-gpu/rayservice.yaml",
    "cluster/kuberay/overlays/many-nodes/rayservice.yaml",
]

each_file = pytest.mark.parametrize("file", FILES)


def serve_config_of(file: str) -> str:
    """The Serve configuration in a file: either the whole file, or a field of a RayService or of a patch."""
    content = yaml.safe_load((FOLDER / file).read_text())
    if isinstance(content, list):
        return str(next(patch["value"] for patch in content if patch["path"] == "/spec/serveConfigV2"))
    return str(content["spec"]["serveConfigV2"]) if "spec" in content else (FOLDER / file).read_text()


def resolved(import_path: str) -> Any:
    module, name = import_path.split(":")
    return getattr(import_module(module), name)


@each_file
def test_a_configuration_is_valid_for_the_service_and_for_serve(file: str) -> None:
    text = serve_config_of(file)

    assert parse_serve_config(text, file).models
    ServeDeploySchema.model_validate(yaml.safe_load(text))


@each_file
def test_a_configuration_builds(file: str, tmp_path: Path) -> None:
    (tmp_path / "key-hashes").write_text("0" * 64)
    for application in yaml.safe_load(serve_config_of(file))["applications"]:
        args = application["args"]
        if "key_hashes_file" in args.get("auth", {}):
            args["auth"]["key_hashes_file"] = str(tmp_path / "key-hashes")

        assert isinstance(resolved(application["import_path"])(args), Application)


@pytest.mark.parametrize("file", FILES[1:])  # the first file was written by hand
def test_the_command_that_wrote_a_configuration_still_writes_the_same_settings(file: str) -> None:
    text = serve_config_of(file)
    command = text.partition("\n")[0].removeprefix("# Written by: rerank-service ")

    printed = CliRunner().invoke(app, shlex.split(command))

    assert printed.exit_code == 0, printed.output
    assert parse_serve_config(printed.stdout, "today") == parse_serve_config(text, file)


def test_the_node_environment_names_an_existing_callback() -> None:
    environment = yaml.safe_load((FOLDER / "cluster/kuberay/base/ray-environment.yaml").read_text())["data"]

    (middleware, *_) = resolved(environment["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"])()

    assert callable(middleware.cls)


def test_api_keys_come_from_the_same_variable() -> None:
    assert AuthConfig().keys_env == "RERANK_SERVICE_API_KEYS"


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    if hasattr(command, "load"):  # a subcommand is imported only when it is called
        command = command.load()
    subcommands = getattr(command, "commands", None)
    if subcommands is None:
        yield " ".join(path), command
    else:
        for name, subcommand in subcommands.items():
            yield from commands(subcommand, (*path, name))


@pytest.mark.parametrize("name", CONTRACT["commands"])
def test_a_command_takes_the_same_options_and_arguments(name: str) -> None:
    before, params = CONTRACT["commands"][name], dict(commands(typer.main.get_command(app)))[name].params
    arguments = [param for param in params if param.param_type_name == "argument"]

    assert set(before["options"]) <= {option for param in params for option in (*param.opts, *param.secondary_opts)}
    variables = ([param.envvar] if isinstance(param.envvar, str) else param.envvar or [] for param in params)
    assert set(before["environment"]) <= set(chain.from_iterable(variables))
    assert [argument.name for argument in arguments][: len(before["arguments"])] == before["arguments"]
    assert not [argument.name for argument in arguments[len(before["arguments"]) :] if argument.required]


def keys_of(schema: dict[str, Any], node: dict[str, Any], path: str = "") -> Iterator[str]:
    """Dotted keys of a JSON schema, and `key=value` for each value of an enumeration."""
    if "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    for option in (*node.get("anyOf", ()), *node.get("oneOf", ()), *node.get("allOf", ())):
        yield from keys_of(schema, option, path)
    if isinstance(node.get("items"), dict):
        yield from keys_of(schema, node["items"], path + "[]")
    for key, value in node.get("properties", {}).items():
        inner = f"{path}.{key}".lstrip(".")
        yield inner
        yield from keys_of(schema, value, inner)
    for value in node.get("enum", ()):
        yield f"{path}={value}"
    if "const" in node:
        yield f"{path}={node['const']}"


def test_every_configuration_key_still_exists() -> None:
    schema = RerankConfig.model_json_schema()

    assert set(CONTRACT["configuration"]) - set(keys_of(schema, schema)) == set()


def test_every_route_is_still_served() -> None:
    model = embedded_model()
    paths = local_api([model], {}).openapi()["paths"]

    assert set(CONTRACT["routes"]) <= {f"{method.upper()} {path}" for path in paths for method in paths[path]}


def test_every_metric_keeps_its_name_kind_and_labels() -> None:
    today = {metric.name: metric for metric in ALL_METRICS}

    for name, before in CONTRACT["metrics"].items():
        assert today[name].kind.value == before["kind"]
        assert set(before["labels"]) <= set(today[name].labels)


@pytest.mark.parametrize("name", CONTRACT["client"])
def test_the_client_exports_the_same_names(name: str) -> None:
    assert hasattr(client, name)
