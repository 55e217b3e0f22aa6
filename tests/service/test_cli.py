"""The command line against the running service."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rerank_service.config import RerankConfig
from rerank_service.tools.cli.main import app
from tests.service.running import KEY, LLAMA, MINILM, MISTRAL, Service

runner = CliRunner()


@pytest.fixture
def passages(tmp_path: Path) -> str:
    path = tmp_path / "passages.txt"
    path.write_text("A croissant is a pastry.\nParis is the capital of France.\n")
    return str(path)


def test_models(service: Service) -> None:
    shown = runner.invoke(app, ["models", "--url", service.url])
    answer = json.loads(runner.invoke(app, ["models", "--url", service.url, "--json"]).stdout)

    assert shown.exit_code == 0
    assert answer["data"][0]["id"] == LLAMA
    assert all(entry["root"] in shown.stdout for entry in answer["data"])


def test_rank(service: Service, passages: str) -> None:
    result = runner.invoke(app, ["rank", "capital of France?", passages, "--url", service.url, "--model", MINILM])

    assert result.exit_code == 0
    assert result.stdout.splitlines()[1].endswith("Paris is the capital of France.")


def test_rank_with_a_key(service: Service, passages: str) -> None:
    command = ["rank", "q", passages, "--url", service.keyed_url, "--json"]

    refused = runner.invoke(app, command)
    answered = runner.invoke(app, [*command, "--key", KEY])

    assert refused.exit_code == 2
    assert "401: Missing API key" in refused.stderr
    assert sorted(ranking["index"] for ranking in json.loads(answered.stdout)["rankings"]) == [0, 1]


def test_verify_distinguishes_the_model_from_another(service: Service, config: RerankConfig) -> None:
    folder = config.models[0].checkpoint.source
    command = ["verify", folder, "--dtype", "float32", "--url", service.url, "--json"]

    right = runner.invoke(app, [*command, "--served-as", LLAMA])
    wrong = runner.invoke(app, [*command, "--served-as", MISTRAL])

    assert right.exit_code == 0, right.output
    assert json.loads(right.stdout)["served"] == f"the service at {service.url}"
    assert wrong.exit_code == 1, wrong.output
