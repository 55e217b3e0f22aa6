import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rerank_service.engine import Truncate, load_engine, loading
from rerank_service.engine.device.precision import Precision
from rerank_service.errors import CheckpointError
from tests.fetching import contents, hub_with, isolated_environment
from tests.models import local_model


def test_pickled_weights_are_refused_without_opening_them(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((checkpoints["bert"] / name).read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")

    with pytest.raises(CheckpointError, match=r"only pickled weights \(pytorch_model\.bin\).*save_pretrained"):
        load_engine(local_model(tmp_path))


@pytest.mark.parametrize("weights", ["model-Q4_K_M.gguf", "model.onnx"])
def test_weights_for_other_runtimes_are_refused_by_name(
    weights: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((checkpoints["bert"] / name).read_bytes())
    (tmp_path / weights).write_bytes(b"weights")

    with pytest.raises(CheckpointError, match=rf"has no \*\.safetensors file, only {weights}, which no engine reads"):
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


def test_a_native_model_that_refers_to_code_loads_if_its_engine_is_configured(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((checkpoints["bert"] / name).read_bytes())
    config = json.loads((checkpoints["bert"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "code.Config"}}))
    (tmp_path / "code.py").write_text("raise SystemExit('was run')\n")

    with pytest.raises(CheckpointError, match=r"you can set engine\.kind"):
        load_engine(local_model(tmp_path))
    engine, original = (
        load_engine(local_model(folder, engine={"kind": "sequence_classifier"}))
        for folder in (tmp_path, checkpoints["bert"])
    )
    pairs = engine.tokenise("a question", ["a passage"], Truncate.END)
    assert engine.score(pairs) == original.score(pairs)


def test_the_error_for_an_unknown_architecture_names_the_setting(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}')

    with pytest.raises(CheckpointError, match=r"T5ForConditionalGeneration.*engine\.kind"):
        load_engine(local_model(tmp_path))


def test_a_half_written_weights_file_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    for path in checkpoints["llama_bidirec"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])

    with pytest.raises(CheckpointError):
        load_engine(local_model(tmp_path))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists the mapped files")
def test_no_bias_keeps_the_weights_file_mapped(checkpoints: dict[str, Path]) -> None:
    path = checkpoints["bert"] / "model.safetensors"
    model = loading.load_weights(
        AutoModelForSequenceClassification,
        checkpoints["bert"],
        loading.classifier_config(checkpoints["bert"]),
        precision=Precision(torch.float32),
        device=torch.device("cpu"),
        attention=None,
    )
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    mapped = [range(*(int(end, 16) for end in line.split()[0].split("-"))) for line in lines]
    views = {
        parameter.dim()
        for parameter in model.parameters()
        if any(parameter.data_ptr() in addresses for addresses in mapped)
    }

    assert views == {2}  # matrices are not copied: replicas share their pages


@pytest.mark.parametrize(
    ("configured", "tokenizer", "positions", "expected"),
    [(None, 512, 8192, 512), (None, None, 8192, 8192), (256, 512, 8192, 256), (1024, 512, 8192, 1024)],
)
def test_window(configured: int | None, tokenizer: int | None, positions: int | None, expected: int) -> None:
    assert loading.resolve_window(configured, tokenizer, positions) == expected


def test_an_unknown_window_must_be_configured() -> None:
    with pytest.raises(CheckpointError, match="set window_tokens"):
        loading.resolve_window(None, None, None)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_half_written_settings_are_refused(checkpoints: dict[str, Path], tmp_path: Path, name: str) -> None:
    for file, content in contents(checkpoints["bert"]).items():
        (tmp_path / file).write_bytes(content[:200] if file == name else content)

    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_engine(local_model(tmp_path))


def test_a_checkpoint_is_fetched_only_once(
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
