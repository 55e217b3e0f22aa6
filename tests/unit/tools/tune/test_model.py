"""Every kind of engine trains, and its written checkpoint scores like the trained model."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rerank_service.checkpoints.resolve import resolve_checkpoint
from rerank_service.config import ModelConfig
from rerank_service.engine import Truncate, load_engine
from rerank_service.errors import CheckpointError
from rerank_service.tools.random_checkpoints.make import Architecture
from rerank_service.tools.tune.checkpoint import changed_tensors, write_checkpoint
from rerank_service.tools.tune.lists import TrainingLists
from rerank_service.tools.tune.model import TrainableModel
from tests.colbert import CASES, make
from tests.models import NASTY_PASSAGES, embedded_model, local_model
from tests.quantise import quantise

QUERY = "What is the capital of France?"
LISTS = TrainingLists(
    ["capital of France", "best bread"],
    ["Paris is the capital and largest city of France.", "Bread is baked.", "a stone"],
    [[0, 1], [1, 2]],
    torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 1.0]]),
)
KINDS = [architecture.value for architecture in Architecture]
COLBERT = ["bert", "modernbert-prompts", "stanford"]


@pytest.fixture(scope="module")
def colbert(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("colbert")
    return {f"colbert {name}": make(root / name, CASES[name]) for name in COLBERT}


@pytest.fixture(params=[*KINDS, *(f"colbert {name}" for name in COLBERT), "embedded"])
def settings(request: pytest.FixtureRequest, checkpoints: dict[str, Path], colbert: dict[str, Path]) -> ModelConfig:
    return embedded_model() if request.param == "embedded" else local_model((checkpoints | colbert)[request.param])


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains in float32, whatever this processor computes, so that logits can be compared closely."""
    monkeypatch.setattr("rerank_service.tools.tune.model.computes_bfloat16", lambda: False)


PASSAGES = [*NASTY_PASSAGES, "Paris is the capital and largest city of France. " * 20]
"""The last one is longer than the reach of ModernBERT's local layers."""


def logits(model: TrainableModel) -> list[float]:
    with model.engine.caches_off():
        return model.engine.score(model.engine.tokenise(QUERY, PASSAGES, Truncate.END))


def served_logits(settings: ModelConfig) -> list[float]:
    engine = load_engine(settings)
    return engine.score(engine.tokenise(QUERY, PASSAGES, Truncate.END))


def trained(settings: ModelConfig, method: str = "lora") -> TrainableModel:
    model = TrainableModel(settings, method, rank=4, seed=0)
    optimizer = torch.optim.SGD(model.parameters.values(), lr=1.0)
    for _ in range(3):  # the first step changes only half of an adapter, because the other half is zero
        optimizer.zero_grad()
        model.backward(LISTS)
        torch.nn.utils.clip_grad_norm_(model.parameters.values(), 1.0)
        optimizer.step()
    return model


def test_an_untrained_model_scores_like_the_served_model(settings: ModelConfig) -> None:
    model = TrainableModel(settings, "lora", rank=4, seed=0)

    assert logits(model) == pytest.approx(served_logits(settings), abs=1e-4)


def test_bfloat16_changes_logits_a_little(settings: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rerank_service.tools.tune.model.computes_bfloat16", lambda: True)
    model = trained(settings)
    in_bfloat16 = logits(model)
    weights = {name: weight.detach().clone() for name, weight in model.parameters.items()}

    monkeypatch.undo()
    monkeypatch.setattr("rerank_service.tools.tune.model.computes_bfloat16", lambda: False)
    exact = TrainableModel(settings, "lora", rank=4, seed=0)
    with torch.no_grad():
        for name, weight in exact.parameters.items():
            weight.copy_(weights[name])
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert logits(exact) == pytest.approx(in_bfloat16, abs=0.3)
    assert logits(exact) != in_bfloat16


def test_every_parameter_gets_a_gradient(settings: ModelConfig) -> None:
    model = trained(settings)
    model.backward(LISTS)

    without = [name for name, weight in model.parameters.items() if weight.grad is None or not weight.grad.any()]
    assert without == []


def test_the_written_checkpoint_scores_like_the_trained_model(settings: ModelConfig, tmp_path: Path) -> None:
    model = trained(settings)
    before = served_logits(settings)
    with model.mixed(0.5):
        half = logits(model)
        write_checkpoint(resolve_checkpoint(settings.checkpoint), model.changes(), tmp_path)
    tuned = settings.model_copy(update={"checkpoint": settings.checkpoint.model_copy(update={"source": str(tmp_path)})})

    assert served_logits(tuned) == pytest.approx(half, abs=1e-3)
    assert half != pytest.approx(before, abs=1e-2)
    assert half != pytest.approx(logits(model), abs=1e-2)
    with model.mixed(0.0):
        assert logits(model) == pytest.approx(before, abs=1e-4)


def test_only_adapted_tensors_change(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    model = trained(local_model(checkpoints["bert"]), "head")
    write_checkpoint(checkpoints["bert"], model.changes(), tmp_path)

    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoints["bert"], tmp_path))
    # the classifier's bias is the same for all passages, so it has no gradient
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["classifier.weight"]
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (checkpoints["bert"] / name).read_bytes()


def test_what_will_change_is_known_before_training(settings: ModelConfig) -> None:
    model = TrainableModel(settings, "lora", rank=4, seed=0)
    changed = changed_tensors(resolve_checkpoint(settings.checkpoint), model.changed)

    assert {name: change.shape for name, change in model.changed.items()} == {
        name: change.shape for name, change in model.changes().items()
    }
    assert len(changed) == len(model.changed)


@pytest.mark.parametrize("form", ["float8 by channel", "awq int4"])
def test_a_quantised_checkpoint_is_refused_before_training(
    checkpoints: dict[str, Path], tmp_path: Path, form: str
) -> None:
    quantised, _ = quantise(checkpoints["bert"], tmp_path, form)
    with pytest.raises(CheckpointError, match=r"is quantised .* tune the original weights"):
        changed_tensors(quantised, TrainableModel(local_model(quantised), "lora", rank=4, seed=0).changed)


def test_pickles_and_code_are_not_copied(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    original = tmp_path / "original"
    write_checkpoint(checkpoints["bert"], {}, _made(original))
    for name in ("pytorch_model.bin", "modeling.py", ".hidden", "LICENSE"):
        (original / name).write_text("x")
    write_checkpoint(original, {}, _made(tmp_path / "copy"))

    copied = {path.name for path in (tmp_path / "copy").iterdir()}
    assert "LICENSE" in copied
    assert copied & {"pytorch_model.bin", "modeling.py", ".hidden"} == set()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_model_without_a_head_of_its_own_is_refused(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"qwen3 is a yes_no_decoder, which has no head .* use --method lora"):
        TrainableModel(local_model(checkpoints["qwen3"]), "head", rank=4, seed=0)


def test_a_change_that_fits_no_tensor_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = checkpoints["bert"]
    size = json.loads((folder / "config.json").read_text())["hidden_size"]

    with pytest.raises(CheckpointError, match=r"0 tensors named other\.weight"):
        write_checkpoint(folder, {"other.weight": torch.zeros(1, size)}, tmp_path)
    with pytest.raises(CheckpointError, match=r"classifier\.weight has the shape"):
        write_checkpoint(folder, {"classifier.weight": torch.zeros(2, size)}, tmp_path)
    with pytest.raises(CheckpointError, match=r"\d tensors named dense\.weight"):
        write_checkpoint(folder, {"dense.weight": torch.zeros(size, size)}, tmp_path)
    assert list(tmp_path.iterdir()) == []
